"""The trials of a sweep, as a study of Optuna in a journal to which any number of workers append.

A trial belongs to the worker that holds its lock. The lock is inherited by the process that trains, and freed by the
kernel when both are dead: then the next worker takes the trial up, with the same values and in the same run, which
resumes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from toolkit.errors import UnavailableError
from toolkit.recipe.search_space import ListedValues, SearchSpace, Values
from toolkit.report.sweep import How, SweepTrial
from toolkit.system.file_lock import exclusive, lock_if_free
from toolkit.system.files import cut_torn_line

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
LOCKS = ".locks"
"""The folder with a lock for each trial."""
PREFIX = "trial-"
"""Of the names of the trials' runs."""
KEPT = ("run", "values", "refused")
"""What is noted of a trial and kept when it is taken up again."""
NO_LOCKS = "two workers may train the same trial"
FINISHED_BEFORE_PRUNING = 3
"""Trials that have finished before any is stopped early: Optuna's five are more than most sweeps of a run can pay."""


@dataclass(frozen=True)
class Claim:
    """A trial that this worker trains."""

    trial: optuna.Trial
    run: str
    """Name of its run."""
    values: Values
    lock: IO[str]
    """Closing it gives the trial up."""
    was_refused: bool
    """Whether an earlier call of the sweep has noted that it was refused."""


class _JournalLock:
    """The lock of the journal, as Optuna asks for it, which the kernel frees when its holder dies.

    Optuna's own is a symbolic link. One that a killed worker has left stops the others: for 30 s or, where the folder
    of runs is a relative path, for ever (optuna 5.0, `JournalFileSymlinkLock.acquire`, whose `os.stat` follows it).
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._held = journal, contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for it; a line that a killed worker or a full disk has cut off would spoil the one appended to it."""
        self._held.enter_context(exclusive(self._journal.with_name(f"{JOURNAL}.flock"), otherwise=NO_LOCKS))
        cut_torn_line(self._journal)
        return True

    def release(self) -> None:
        self._held.close()


class SweepStudy:
    """The study in a sweep's folder, made if there is none."""

    def __init__(self, folder: Path, space: SearchSpace, *, trials: int, seed: int, prune: bool) -> None:
        """`trials`: how many there are to be of a space with ranges; a grid has its own number.

        Raises:
            UnavailableError: Optuna is not installed.
        """
        require_optuna()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.space, self.seed = folder, space, seed
        self.trials = space.combinations if space.is_grid else trials
        pruner = optuna.pruners.MedianPruner(n_startup_trials=FINISHED_BEFORE_PRUNING)
        lock: Any = _JournalLock(folder / JOURNAL)
        with self._alone():
            self._study = optuna.create_study(
                study_name=folder.name,
                storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL), lock)),
                direction="minimize",
                pruner=pruner if prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )

    def claimed(self) -> Claim | None:
        """The next trial for this worker, which has its lock; None if all are finished or with other workers."""
        import optuna

        with self._alone():
            self._enqueue_abandoned()
            latest = self._latest()
            if not any(trial.state.name == "WAITING" for trial in latest.values()):
                if len(latest) >= self.trials:
                    return None
                if self.space.is_grid:  # one by one: Optuna asks in order, and what was interrupted comes first
                    self._enqueue_of_grid(len(latest))
            # A sampler of its own for each trial, so that an interrupted sweep draws what it would have drawn.
            self._study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(latest), constant_liar=True)
            trial = self._study.ask()
            if (run := trial.user_attrs.get("run")) is None:
                trial.set_user_attr("run", run := _run_name(len(latest)))
            lock = lock_if_free(self._lock(run), otherwise=NO_LOCKS)
            assert lock is not None  # abandoned, or new
            trial.set_user_attr("values", values := dict(self._drawn(trial)))
            return Claim(trial, run, values, lock, was_refused="refused" in trial.user_attrs)

    def has_running(self) -> bool:
        """Whether some trial is with another worker."""
        return any(trial.state.name == "RUNNING" for trial in self._latest().values())

    def is_hopeless(self, claim: Claim, *, step: int, loss: float, may_stop: bool) -> bool:
        """Report a held-out loss, and say whether to stop the trial early: its best is above the others' median there.

        `may_stop` is false where it is too early to tell, or too late to gain.
        """
        claim.trial.report(loss, step)
        return may_stop and claim.trial.should_prune()

    def note_refusal(self, claim: Claim) -> None:
        """Note that the trial was refused as it started, for whoever takes it up next."""
        claim.trial.set_user_attr("refused", True)

    def tell(self, claim: Claim, how: How, *, loss: float | None, step: int | None, error: str = "") -> None:
        """Record how the trial has ended, and give it up."""
        from optuna.trial import TrialState

        for name, value in {"how": how, "loss": loss, "step": step, "error": error}.items():
            claim.trial.set_user_attr(name, value)
        # The sampler takes a failed trial for a bad one, as it does those that are stopped early: a learning rate with
        # which a run diverges is not to be tried again. Optuna itself would leave it out.
        is_measured = how == "finished"
        self._study.tell(claim.trial, loss if is_measured else None, None if is_measured else TrialState.PRUNED)
        claim.lock.close()

    def trials_now(self) -> list[SweepTrial]:
        """All trials as they are now, in order."""
        latest = self._latest()
        return [_told(run, latest[run]) for run in sorted(latest, key=lambda run: int(run.removeprefix(PREFIX)))]

    def _alone(self) -> Any:
        return exclusive(self.folder / "lock", otherwise=NO_LOCKS)

    def _lock(self, run: str) -> Path:
        return self.folder / LOCKS / run

    def _latest(self) -> dict[str, optuna.trial.FrozenTrial]:
        """For each run, the trial that stands for it: of one that was taken up again, the last."""
        trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs["run"]: trial for trial in trials if "run" in trial.user_attrs}

    def _enqueue_of_grid(self, number: int) -> None:
        values = next(itertools.islice(self.space.grid(), number, None))
        self._study.enqueue_trial(dict(values), user_attrs={"run": _run_name(number), "values": values})

    def _enqueue_abandoned(self) -> None:
        """Put the trials of workers that have died back, each with its values and its run."""
        from optuna.trial import TrialState

        latest = self._latest()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            run = trial.user_attrs.get("run")
            lock = lock_if_free(self._lock(run), otherwise=NO_LOCKS) if run else None
            if run and lock is None:
                continue  # somebody trains it
            if lock and run and latest[run].number != trial.number:
                lock.close()  # a worker was killed between the two steps below: the run has its new trial already
            elif lock:
                told: dict[str, Any] = {name: trial.user_attrs[name] for name in KEPT if name in trial.user_attrs}
                self._study.enqueue_trial(trial.params, user_attrs=told)
                lock.close()
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _drawn(self, trial: optuna.Trial) -> Iterator[tuple[str, str]]:
        for axis in self.space.axes:
            if isinstance(axis, ListedValues):
                yield axis.key, trial.suggest_categorical(axis.key, axis.values)
            elif axis.whole:
                drawn = trial.suggest_int(axis.key, round(axis.low), round(axis.high), log=axis.logarithmic)
                yield axis.key, axis.text(drawn)
            else:
                yield axis.key, axis.text(trial.suggest_float(axis.key, axis.low, axis.high, log=axis.logarithmic))


def require_optuna() -> None:
    """See that Optuna is installed.

    Raises:
        UnavailableError: it is not.
    """
    try:
        import optuna  # noqa: F401 - only whether it can be
    except ModuleNotFoundError:
        raise UnavailableError("sweeps need Optuna: pip install 'pretrain-toolkit[sweep]'") from None


def _run_name(number: int) -> str:
    return f"{PREFIX}{number:03}"


def _told(run: str, trial: optuna.trial.FrozenTrial) -> SweepTrial:
    facts: Mapping[str, Any] = trial.user_attrs
    how: How = facts.get("how") or ("waiting" if trial.state.name == "WAITING" else "running")
    return SweepTrial(
        run, facts.get("values") or {}, how, facts.get("loss"), facts.get("step"), facts.get("error") or ""
    )
