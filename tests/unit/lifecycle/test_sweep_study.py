"""The trials of a sweep in Optuna's journal: shared out, taken up again, stopped early. Nothing trains here."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit.lifecycle.sweep_study import Claim, SweepStudy
from toolkit.recipe.search_space import SearchSpace, search_space

Claimed = Callable[[SweepStudy], Claim]
GRID = search_space(["rate=0.1,0.2,0.3"])
RANGES = search_space(["rate=1e-4..1e-1", "width=8..64", "tied=true,false"])
DIES = """
import os, sys
from pathlib import Path
from toolkit.lifecycle.sweep_study import SweepStudy
from toolkit.recipe.search_space import search_space
study = SweepStudy(Path(sys.argv[1]), search_space([{axes}]), trials=3, seed=1, prune=True)
claim = study.claimed()
print(claim.run, *claim.values.values(), flush=True)
os.kill(os.getpid(), 9)
"""


def study(folder: Path, space: SearchSpace = GRID, *, prune: bool = True) -> SweepStudy:
    return SweepStudy(folder, space, trials=3, seed=1, prune=prune)


@pytest.fixture
def claimed() -> Iterator[Callable[[SweepStudy], Claim]]:
    """Claims a trial, and holds it until the test ends."""
    with contextlib.ExitStack() as held:

        def claimed(worker: SweepStudy) -> Claim:
            claim = worker.claimed()
            assert claim
            held.enter_context(claim.lock)
            return claim

        yield claimed


def finish(worker: SweepStudy, claim: Claim, loss: float) -> None:
    worker.tell(claim, "finished", loss=loss, step=10)


def test_workers_share_the_grid_out(tmp_path: Path, claimed: Claimed) -> None:
    one, other = study(tmp_path), study(tmp_path)
    claims = [claimed(worker) for worker in (one, other, one)]
    assert [(claim.run, claim.values["rate"]) for claim in claims] == [
        ("trial-000", "0.1"), ("trial-001", "0.2"), ("trial-002", "0.3"),
    ]  # fmt: skip
    assert other.claimed() is None
    for worker, claim, loss in zip((one, other, one), claims, (3.0, 1.0, 2.0), strict=True):
        finish(worker, claim, loss)
    assert study(tmp_path).claimed() is None
    assert [(trial.how, trial.loss) for trial in other.trials_now()] == [
        ("finished", 3.0), ("finished", 1.0), ("finished", 2.0),
    ]  # fmt: skip


def test_a_lock_that_a_killed_worker_has_left_in_the_journal_stops_nobody(
    tmp_path: Path, claimed: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the link, as Optuna makes it, leads nowhere
    here = Path("sweep")
    here.mkdir()
    (here / "study.journal.lock").symlink_to(here / "study.journal")
    code = (
        "from pathlib import Path; from toolkit.lifecycle.sweep_study import SweepStudy; "
        "from toolkit.recipe.search_space import search_space; "
        "print(SweepStudy(Path('sweep'), search_space(['rate=1,2']), trials=2, seed=1, prune=True).claimed().run)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "trial-000\n", done.stderr


def test_a_line_that_a_killed_worker_has_cut_off_spoils_no_other(tmp_path: Path, claimed: Claimed) -> None:
    finish(worker := study(tmp_path), claimed(worker), 1.0)
    journal = tmp_path / "study.journal"
    with journal.open("a") as cut:
        cut.write('{"op_code": 6, "worker')
    assert claimed(study(tmp_path)).run == "trial-001"
    assert [trial.how for trial in study(tmp_path).trials_now()] == ["finished", "running"]


def test_a_worker_killed_as_it_takes_a_trial_up_again_leaves_it_once(tmp_path: Path, claimed: Claimed) -> None:
    dying(tmp_path, "'rate=0.1,0.2,0.3'")
    journal = tmp_path / "study.journal"
    before = len(journal.read_bytes().splitlines())
    first = study(tmp_path).claimed()
    assert first
    first.lock.close()
    lines = journal.read_bytes().splitlines(keepends=True)
    # It was put back, and the worker died before it recorded that the old one has failed.
    until = next(number for number in range(before, len(lines)) if b'"op_code":6' in lines[number])
    journal.write_bytes(b"".join(lines[:until]))
    worker, other = study(tmp_path), study(tmp_path)
    assert [claimed(one).run for one in (worker, other, worker)] == ["trial-000", "trial-001", "trial-002"]
    assert other.claimed() is None


def test_that_a_trial_was_refused_is_known_to_whoever_takes_it_up(tmp_path: Path, claimed: Claimed) -> None:
    refused = claimed(study(tmp_path))
    study(tmp_path).note_refusal(refused)
    refused.lock.close()
    again = claimed(study(tmp_path))
    assert (again.run, again.values, again.was_refused) == (refused.run, refused.values, True)
    assert not claimed(study(tmp_path)).was_refused


def dying(folder: Path, axes: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", DIES.format(axes=axes), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    return done.stdout.split()


def test_the_trial_of_a_killed_worker_is_taken_up_again(tmp_path: Path, claimed: Claimed) -> None:
    assert dying(tmp_path, "'rate=0.1,0.2,0.3'") == ["trial-000", "0.1"]
    worker = study(tmp_path)
    claims = [claimed(worker) for _ in range(3)]
    assert [(claim.run, claim.values["rate"]) for claim in claims] == [
        ("trial-000", "0.1"), ("trial-001", "0.2"), ("trial-002", "0.3"),
    ]  # fmt: skip
    assert worker.claimed() is None


def test_what_was_drawn_is_kept_and_an_interrupted_sweep_draws_what_it_would_have_drawn(
    tmp_path: Path, claimed: Claimed
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run, *values = dying(tmp_path / "one", "'rate=1e-4..1e-1', 'width=8..64', 'tied=true,false'")
    first = claimed(study(tmp_path / "one", RANGES))
    assert (first.run, [*first.values.values()]) == (run, values)
    assert 1e-4 <= float(values[0]) <= 1e-1
    assert 8 <= int(values[1]) <= 64
    assert values[2] in ("true", "false")
    undisturbed = claimed(study(tmp_path / "two", RANGES))
    assert undisturbed.values == first.values
    drawn = [[claimed(study(tmp_path / name, RANGES)).values for _ in range(2)] for name in ("one", "two")]
    assert drawn[0] == drawn[1]
    assert len({str(values) for values in drawn[1]}) == 2
    assert study(tmp_path / "two", RANGES).claimed() is None


def test_a_trial_above_the_median_is_stopped_and_a_failed_one_counts_as_bad(tmp_path: Path, claimed: Claimed) -> None:
    space = search_space(["rate=0.1,0.2,0.3,0.4,0.5"])
    worker = study(tmp_path, space)
    for loss in (1.0, 2.0, 3.0):
        claim = claimed(worker)
        assert not worker.is_hopeless(claim, step=5, loss=loss, may_stop=True)  # too few have finished
        finish(worker, claim, loss)
    bad = claimed(worker)
    assert not worker.is_hopeless(bad, step=4, loss=9.0, may_stop=False)
    assert worker.is_hopeless(bad, step=5, loss=9.0, may_stop=True)
    worker.tell(bad, "stopped early", loss=9.0, step=5)
    good = claimed(worker)
    assert not worker.is_hopeless(good, step=5, loss=1.5, may_stop=True)
    worker.tell(good, "failed", loss=None, step=None, error="the loss is nan")
    assert [(trial.how, trial.error) for trial in worker.trials_now()][3:] == [
        ("stopped early", ""), ("failed", "the loss is nan"),
    ]  # fmt: skip
    assert study(tmp_path, space).claimed() is None
    (tmp_path / "all").mkdir()
    all_trained = study(tmp_path / "all", space, prune=False)
    for loss in (1.0, 2.0, 3.0):
        finish(all_trained, claimed(all_trained), loss)
    assert not all_trained.is_hopeless(claimed(all_trained), step=5, loss=9.0, may_stop=True)
