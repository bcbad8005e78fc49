"""Kills a run, cuts its power, or lets the disk refuse, at its file operations; the end must be the same.

What is tried: a kill at every operation, but at one of seven in the trial save, whose folder the next start removes
unread; a refusal at two of five, by one of three faults in turn. Neither five nor three divides the handful of
operations in which a file is written (open, write, sync, rename), so each kind of operation meets each fault somewhere.

The same command is given again, without faults, and its end is compared bit for bit: every loss, the model, and the
weights, optimizer, scheduler and random state of its checkpoints are those of a run that was never disturbed; and
nothing is left lying about. What was committed, or said to be saved, must be there and be what the run goes on from.

From one kill come four states: what the process has left, and what a power cut at that moment may have left (see
power_cut.py). A state that was resumed before is not resumed again. Two states count as one if they differ in no
name and no byte but run ids, times, process numbers and random parts of temporary names.
"""

import errno
import signal

import pytest

from tests.faults.trials import FAIL_FROM, FAIL_ONCE, HALF_REMOVED, KILL, Bench, shown
from toolkit.errors import UnavailableError

SHARES = 16
"""The operations are dealt out to so many tests, which can run beside each other."""
MARGIN = 10
"""A run has not always the same number of operations: its threads meet in another order, and a slow one tells more."""
EVERY_NTH = 7
"""Of the operations in the trial save."""
FAULTS = ((FAIL_ONCE, errno.ENOSPC), (FAIL_FROM, errno.ENOSPC), (FAIL_ONCE, errno.EIO))


def share(bench: Bench, number: int, *, of_five: int = 5) -> list[int]:
    """Neighbours, because their states are often the same; of the trial's operations, which repeat a save's, some.

    Args:
        bench: the operations.
        number: of the share.
        of_five: how many of five operations are dealt out.
    """
    every = range(1, bench.operations + MARGIN + 1)
    numbers = [at for at in every if (at not in bench.trial or at % EVERY_NTH == 0) and at % 5 < of_five]
    assert len(numbers) >= SHARES
    first, last = (len(numbers) * part // SHARES for part in (number, number + 1))
    return numbers[first:last]


def killed(bench: Bench, at: int) -> list[str]:
    """Kill a run at an operation, resume it from all that may be left, and say what went wrong."""
    outcome, journal = bench.disturbed(KILL, at)
    if outcome.status == 0:
        assert at > journal.operations[-1].number, "it had an operation of this number, and was not killed at it"
        return [f"not killed: {fault}" for fault in bench.whole.faults_of(bench.end_of(outcome), steps=[2, 3])]
    assert outcome.status == -signal.SIGKILL, outcome
    return [
        f"killed after {shown(journal)}; {state.name}: {failure}"
        for state in bench.states(journal)
        for failure in bench.failures(state, bench.promised(journal), steps=[2, 3])
    ]


def refused(bench: Bench, at: int, action: int, error: int) -> list[str]:
    """Let the disk refuse an operation, and say what went wrong then and afterwards."""
    outcome, journal = bench.disturbed(action, at, error)
    operation = next((one for one in journal.operations if one.kind.startswith("failed")), None)
    told = f"{errno.errorcode[error]} at {operation}"
    if outcome.status not in (0, UnavailableError.exit_status):
        return [f"{told}: status {outcome.status}: {outcome.err[-2000:]}"]
    if outcome.status and not outcome.err.startswith("error: "):
        return [f"{told}: there is no message: {outcome.err}"]
    # A save that was refused is one checkpoint less; the last one must be there.
    if outcome.status == 0:
        failures = bench.whole.faults_of(bench.end_of(outcome), steps=[3])
    else:
        failures = bench.failures(next(bench.states(journal)), bench.promised(journal), steps=[3])
    # What the disk did not let go of lies there until the next start.
    return [f"{told}: {failure}" for failure in failures if HALF_REMOVED not in failure]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(SHARES))
def test_killed_or_without_power_it_loses_nothing_that_was_committed_and_ends_the_same(
    bench: Bench, number: int
) -> None:
    assert [failure for at in share(bench, number) for failure in killed(bench, at)] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(SHARES))
def test_a_disk_that_refuses_costs_no_checkpoint_and_ends_in_words(bench: Bench, number: int) -> None:
    sampled = share(bench, number, of_five=2)
    assert [failure for at in sampled for failure in refused(bench, at, *FAULTS[at % len(FAULTS)])] == []


def test_a_few_of_all_these(bench: Bench) -> None:
    commit = bench.last_commit
    failures = killed(bench, commit) + killed(bench, commit + 1)
    assert failures + refused(bench, commit, FAIL_ONCE, errno.ENOSPC) == []
