"""A sweep: runs of one recipe that differ in a few settings, compared by their held-out loss.

    RUNS/NAME/
      sweep.json         the recipe and what is varied: another sweep of this name is refused
      study.journal      Optuna's journal: what was drawn, measured and decided
      trial-000/ ...     a run each, which `toolkit run` reads as any other
      report.html

Several workers may call this at once, in one folder of runs: they share the trials out. Killed at any instant, the same
call goes on.
"""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import formatting
from toolkit.api import Device
from toolkit.errors import InterruptedRun, RecipeError, UnavailableError, UsageError
from toolkit.events import Listener, Message
from toolkit.lifecycle import processes as groups
from toolkit.lifecycle import sweep_folder, trial_run
from toolkit.lifecycle.sweep_study import Claim, SweepStudy, require_optuna
from toolkit.lifecycle.trial_run import Measured, TrialEnding
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.document import dotted
from toolkit.recipe.resolve import ResolvedRecipe, leaves, load, resolve
from toolkit.recipe.schema import Recipe
from toolkit.recipe.search_space import SearchSpace, Values
from toolkit.report.sweep import SweepTrial, best
from toolkit.storage.run_directory import RunDirectory
from toolkit.storage.runs_folder import check_name
from toolkit.system import distributed, signals
from toolkit.system.device import detect

TRIALS = 20
"""Trials of a space with ranges, unless told otherwise."""
SHARE_BEFORE_PRUNING = 1 / 3
"""No trial is stopped before this share of its steps: a high learning rate looks worse than it is until it decays."""
PATIENCE_SECONDS = 30.0
"""How long a worker without work waits for a trial of another: it may be that of a killed worker, about to save."""
STOPPED = frozenset(128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Exit statuses of a run that a signal has stopped, and that has saved."""
INCOMPARABLE = "tokenizer"
"""The section that decides what a token is, and with it the loss per token."""
ERROR = re.compile(r"^(?:rank \d+: )?error: ", re.MULTILINE)
"""Begins what our commands write of an error."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that was checked: what it varies in which recipe, and where it lies."""

    recipe: str
    space: SearchSpace
    first: ResolvedRecipe
    """With the first value of everything."""
    folder: Path
    trials: int
    processes: str | None
    prune: bool
    plugin_folders: tuple[Path, ...]

    def command(self, values: Values, *, name: str | None = None) -> list[str]:
        """The words of the command that trains with these values, as a run of this name in the sweep's folder."""
        place = ["--runs", str(self.folder), "--name", name] if name else []
        sets = [f"--set={override}" for override in self.space.overrides(values)]
        plugins = [f"--plugins={folder}" for folder in self.plugin_folders]
        together = [f"--processes={self.processes}"] if self.processes else []
        return ["recipe", "run", self.recipe, *sets, *plugins, *together, *place]

    def read(self, values: Values) -> Recipe:
        """The recipe with these values, as it is now.

        Raises:
            RecipeError: it is invalid.
        """
        return load(self.recipe, overrides=self.space.overrides(values), plugin_folders=self.plugin_folders)

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep and no other: what it varies, and the recipe as it is now without that."""
        varied = {axis.key for axis in self.space.axes}
        recipe = self.read(next(self.space.grid())).document.data
        as_written = {
            dotted(path): value
            for path, value in leaves(recipe)
            if ".".join(map(str, path)) not in varied and path != ("description",)
        }
        return {"varied": [str(axis) for axis in self.space.axes], "recipe": as_written}


def checked(
    recipe: str,
    space: SearchSpace,
    *,
    runs: Path,
    name: str | None = None,
    trials: int | None = None,
    processes: str | None = None,
    gpus_per_node: int | None = None,
    prune: bool = True,
    plugin_folders: Sequence[Path] = (),
) -> SweepPlan:
    """Check a sweep before its first trial: the recipe with every value, and every combination of them.

    Args:
        recipe: its name or path.
        space: what to vary.
        runs: the folder of runs.
        name: the name of the sweep and its folder; the recipe's with -sweep, if not given.
        trials: how many, of a space with ranges.
        processes: how many train each trial, as for `recipe run`.
        gpus_per_node: those of the machines on which it is to run; None if that is this one.
        prune: whether to stop trials early that are worse than half of the others.
        plugin_folders: where else to look for plugins.

    Raises:
        RecipeError: the recipe is invalid with some of the values; with all that is wrong.
        UsageError: what is asked for makes no sense.
        UnavailableError: there are fewer GPUs here than processes.
    """
    if distributed.world_size() > 1:
        raise UsageError("a sweep starts the processes of its trials itself: call it once, outside of torchrun")
    if space.is_grid and trials is not None:
        raise UsageError(
            f"--trials is for ranges; these lists have {space.combinations} combinations, and each is a trial"
        )
    for axis in space.axes:
        if axis.key.split(".")[0] == INCOMPARABLE:
            raise UsageError(
                f"--set {axis.key}: with another tokenizer a token is something else, so that losses per token cannot "
                f"be compared; make one run of each, and compare their bits per byte by `toolkit evaluate`"
            )
    device, problems, first = detect(), dict[Any, None](), None
    together = _together(processes, device, gpus_per_node)
    for values in space.to_check():
        try:
            read = load(recipe, overrides=space.overrides(values), plugin_folders=plugin_folders)
            resolved = resolve(read, device)
            BatchSplit.of(resolved, processes=together)
            first = first or resolved
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise RecipeError(problems)
    assert first is not None  # there is at least one combination
    name = name or f"{first.name}-sweep"
    check_name(runs, name)
    number = space.combinations if space.is_grid else trials or TRIALS
    return SweepPlan(recipe, space, first, runs / name, number, processes, prune, tuple(plugin_folders))


def _together(processes: str | None, device: Device, gpus_per_node: int | None) -> int:
    """The number of processes that share the steps of a trial."""
    if gpus_per_node is None:
        return groups.count(processes or "1", device)
    if processes in (None, "auto"):
        return max(1, gpus_per_node)
    return groups.count(processes, replace(device, kind="cpu"))  # it says nothing of the GPUs elsewhere


def sweep(plan: SweepPlan, listener: Listener) -> list[SweepTrial]:
    """Train the trials that are left, one after another, beside other workers if there are any.

    Returns:
        All trials; one that another worker has begun may still be running.

    Raises:
        RunMismatchError: the sweep of this name has other settings, or the recipe has been changed meanwhile.
        InterruptedRun: a signal stopped it; the same call goes on.
        ToolkitError: what stops the first trial would stop all: the machine lacks something, nothing is held out.
    """
    require_optuna()
    sweep_folder.begin(plan.folder, plan.identity(), listener)
    study = SweepStudy(plan.folder, plan.space, trials=plan.trials, seed=plan.first.training.seed, prune=plan.prune)
    idle_since = time.monotonic()
    while True:
        if claim := study.claimed():
            with claim.lock:
                sweep_folder.require_same(plan.folder, plan.identity())
                _train(plan, study, claim, listener)
            idle_since = time.monotonic()
        elif not study.has_running() or time.monotonic() - idle_since > PATIENCE_SECONDS:
            return study.trials_now()
        else:
            time.sleep(1)


def _train(plan: SweepPlan, study: SweepStudy, claim: Claim, listener: Listener) -> None:
    run = RunDirectory(plan.folder / claim.run)
    settings = ", ".join(f"{key}={value}" for key, value in claim.values.items())
    listener(Message(f"{claim.run}: {settings}"))
    try:
        resolve(plan.read(claim.values), detect())  # of a range the ends were checked, and not what lies between
    except RecipeError as error:
        _fail(study, claim, "; ".join(problem.message for problem in error.problems), listener)
        return

    def is_hopeless(measured: Measured) -> bool:
        share = measured.step / measured.total_steps
        return study.is_hopeless(
            claim, step=measured.step, loss=measured.loss, may_stop=SHARE_BEFORE_PRUNING <= share < 1
        )

    try:
        words = [*plan.command(claim.values, name=claim.run), "--quiet"]
        ending = trial_run.train(words, run, lock=claim.lock, is_hopeless=is_hopeless)
    except (signals.Interrupt, KeyboardInterrupt) as interrupt:  # of a command, and of a script
        number = int(str(interrupt.code)) - 128 if isinstance(interrupt, signals.Interrupt) else signal.SIGINT
        raise InterruptedRun(
            f"stopped by {signal.Signals(number).name}; the same command goes on with {claim.run}", signal_number=number
        ) from None
    _record(plan, study, claim, run, ending, listener)


def _record(
    plan: SweepPlan, study: SweepStudy, claim: Claim, run: RunDirectory, ending: TrialEnding, listener: Listener
) -> None:
    """Record how a trial has ended, and tell of it."""
    told = ERROR.split(ending.text)[-1]
    if ending.exit_status == UsageError.exit_status and not claim.was_refused:
        # Values that only a start refuses must not end every call; nor may a plugin broken meanwhile cost every trial.
        study.note_refusal(claim)
        raise UsageError(f"{claim.run}: {told}\nif that is so again at the next call, it goes on without {claim.run}")
    if ending.exit_status == UnavailableError.exit_status:
        raise UnavailableError(f"{claim.run}: {told}")
    if ending.exit_status in STOPPED and not ending.stopped:
        raise InterruptedRun(
            f"{claim.run} was stopped from outside; the same command goes on with it",
            signal_number=ending.exit_status - 128,
        )
    measured = next(reversed(list(trial_run.evaluations(run))), None)
    step, last = (measured.step, formatting.loss(measured.loss)) if measured else (None, "none")
    loss = measured.loss if measured and math.isfinite(measured.loss) else None
    if ending.exit_status == 0 and loss is not None:
        study.tell(claim, "finished", loss=loss, step=step)
        leader = best(study.trials_now())
        so_far = f"; the best so far is {leader.run}" if leader and leader.run != claim.run else "; the best so far"
        listener(Message(f"{claim.run}: held-out loss {last}{so_far}"))
    elif ending.stopped:
        study.tell(claim, "stopped early", loss=loss, step=step)
        listener(Message(f"{claim.run}: stopped early at step {step}: held-out loss {last}, above the median there"))
    else:
        # Of an error of ours the first line says what is wrong, of a traceback the last.
        lines = told.splitlines() if ERROR.search(ending.text) else told.splitlines()[-1:]
        unsaid = f"it ended with status {ending.exit_status}; held-out loss: {last}"
        if ending.exit_status == 128 + signal.SIGKILL:
            unsaid = "killed by SIGKILL, perhaps for want of memory"
        _fail(study, claim, lines[0] if lines else unsaid, listener, loss=loss, step=step)


def _fail(
    study: SweepStudy,
    claim: Claim,
    why: str,
    listener: Listener,
    *,
    loss: float | None = None,
    step: int | None = None,
) -> None:
    study.tell(claim, "failed", loss=loss, step=step, error=why)
    listener(Message(f"{claim.run}: failed: {why}"))
