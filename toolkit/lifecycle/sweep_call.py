"""A sweep from its settings to its report, in one call."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import TrainingError, require_at_least_one
from toolkit.events import Event, Listener
from toolkit.lifecycle import sweep as sweeps
from toolkit.lifecycle.sweep import SweepPlan
from toolkit.recipe.search_space import RANGE, search_space
from toolkit.report.sweep import UNFINISHED, SweepTrial, best, write_sweep

Settings = Mapping[str, object] | Iterable[str]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found so far."""

    folder: Path
    """With the runs of the trials."""
    trials: Sequence[SweepTrial]
    """Those with other workers included."""
    best: SweepTrial | None
    """The finished trial of the lowest held-out loss."""
    command: str | None
    """Trains with the best settings."""
    report: Path

    @classmethod
    def of(cls, plan: SweepPlan, trials: Sequence[SweepTrial]) -> SweepResult:
        """Write the report, and return what is in it.

        Raises:
            UnavailableError: it cannot be written.
        """
        leader = best(trials)
        command = None
        if leader:  # under a name of its own: the recipe's may be that of a run with other settings
            command = shlex.join(["toolkit", *plan.command(leader.values), "--name", f"{plan.folder.name}-best"])
        report = write_sweep(plan.folder, trials, command=command)
        return cls(plan.folder, trials, leader, command, report)

    def require_one(self) -> None:
        """Check that there is something to compare, or will be.

        Raises:
            TrainingError: all trials have failed.
        """
        if self.best is None and not any(trial.how in UNFINISHED for trial in self.trials):
            raise TrainingError(f"no trial has finished; each says in {self.report} why")


def sweep(
    recipe: str | os.PathLike[str],
    settings: Settings,
    *,
    trials: int | None = None,
    runs: str | os.PathLike[str] | None = None,
    name: str | None = None,
    prune: bool = True,
    processes: int | None = None,
    plugin_folders: Iterable[str | os.PathLike[str]] = (),
    listener: Listener | None = None,
) -> SweepResult:
    """Train a recipe with several settings, each a run of its own, and compare their held-out losses.

    The same call goes on with a sweep that was interrupted; several at once share the trials out.

    Args:
        recipe: the name of a recipe that comes with the toolkit, or the path of a YAML file.
        settings: what to vary, by dotted key: a list of values, or a range as text, "1e-4..1e-2"; any other value is
            for all trials. Text as `--set` takes it is read, too: ["training.learning_rate=1e-3,2e-3"].
        trials: how many, if there is a range; 20, if not given. Lists alone have a trial for each combination.
        runs: the folder of runs, as for `run`.
        name: the name of the sweep and its folder; the recipe's with -sweep, if not given.
        prune: whether to stop trials early that are worse than half of the others.
        processes: how many train each trial.
        plugin_folders: find plugins in these folders too.
        listener: is called with a message for each trial.

    Returns:
        All trials, the best, and the command that trains with its settings.

    Raises:
        RecipeError: the recipe is invalid with some of the values.
        UsageError: what is asked for makes no sense.
        RunMismatchError: the sweep of this name has other settings.
        UnavailableError: Optuna is not installed, or this machine lacks something else.
        TrainingError: no trial has finished.
        InterruptedRun: Ctrl-C or a notebook's stop button; the trial has saved.
    """
    require_at_least_one(trials=trials, processes=processes)
    if isinstance(settings, Mapping):
        settings = [f"{key}={_as_text(value)}" for key, value in settings.items()]
    plan = sweeps.checked(
        os.fspath(recipe),
        search_space(settings),
        runs=Path(runs or os.environ.get("TOOLKIT_RUNS") or "runs"),
        name=name,
        trials=trials,
        processes=None if processes is None else str(processes),
        prune=prune,
        plugin_folders=[Path(folder) for folder in plugin_folders],
    )
    result = SweepResult.of(plan, sweeps.sweep(plan, listener or _unheard))
    result.require_one()
    return result


def _as_text(value: object) -> str:
    """A value as `--set` takes it; the items of a list are what is varied."""
    if isinstance(value, str) and RANGE.fullmatch(value):
        return value
    return ",".join(map(json.dumps, value)) if isinstance(value, list | tuple) else json.dumps(value)


def _unheard(event: Event) -> None:
    """The listener where none is given."""
