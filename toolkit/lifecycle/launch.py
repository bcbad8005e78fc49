"""ResolvedRecipe -> training -> RunResult: the same call starts a run, resumes it, or finds it finished."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from toolkit import formatting
from toolkit.data.documents import check_holds_block
from toolkit.errors import PlanTooLongError, PluginError, UnavailableError
from toolkit.events import AttemptBegun, Event, Listener, Message, ProgressReporter, RunResult
from toolkit.lifecycle import branch, preparation
from toolkit.lifecycle.attempt import Attempt
from toolkit.lifecycle.branch import Parent
from toolkit.lifecycle.comparison import as_decided, differences, not_exported, require_same
from toolkit.lifecycle.environment import check_device, environment
from toolkit.lifecycle.export import load_line
from toolkit.logs import plugin_messages_told
from toolkit.memory.budget import bytes_to_be_had, own_share
from toolkit.memory.limits import has_run_out_of_memory
from toolkit.planning.choose import NOTHING_CHOSEN, chooser_of, resolve_auto, with_choice
from toolkit.planning.plan import peak_bytes
from toolkit.recipe.batch import check_shards
from toolkit.recipe.length import total_steps
from toolkit.recipe.resolve import ResolvedRecipe, check_trackers
from toolkit.storage import run_directory, runs_folder
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed, environment_variables, garbage_collection
from toolkit.system.deterministic import deterministic_algorithms
from toolkit.system.disk import DISK_FAULTS
from toolkit.system.signals import StopRequest
from toolkit.training.components import context_of
from toolkit.training.libraries import import_libraries
from toolkit.training.loading import documents_by_source
from toolkit.training.refusals import refusals_placed

NOTICE_BELOW_SHARE = 0.9
"""If other programs leave less than this share of what `auto` could take, the user is told."""
LONG_BLOCK = 2**17
"""Blocks of this many tokens are rare enough to load the documents for, before the plan and again after it."""
WAITING_NOTICE_SECONDS = 10.0
"""Seconds after which a process other than the main one says that it is waiting for the others."""


def run(
    resolved: ResolvedRecipe,
    *,
    runs: Path,
    name: str | None = None,
    fresh: bool = False,
    parent: Parent | None = None,
    rehearsal: bool = False,
    stop_after: int | None = None,
    profile_steps: int | None = None,
    listener: Listener,
) -> RunResult:
    """Train the recipe to its end, from the beginning or from the newest intact checkpoint.

    Args:
        resolved: what to train.
        runs: the folder of the runs.
        name: the run's name, if not the recipe's.
        fresh: begin a new run beside those of this name.
        parent: begin a new run at this checkpoint of another, unless the newest run of this name already did.
        rehearsal: this is a rehearsal: plugins may not upload anything, and nothing is planned.
        stop_after: end this attempt after this step of the run, as a signal would.
        profile_steps: profile this many steps, and say where their time goes.
        listener: is told what happens.

    Raises:
        RunMismatchError: the run of this name was made with other settings.
        InterruptedRun: a signal stopped it; the message says what is saved.
        ToolkitError: anything else that the user can fix.
    """
    distributed.check()
    series = name or resolved.name
    runs_folder.check_name(runs, series)
    if resolved.training.report_to:
        check_trackers(resolved.recipe)
    everybodys, listener = listener, listener if distributed.is_main_process() else _told_by_the_first
    with (
        StopRequest().handled() as stop,
        plugin_messages_told(listener),
        environment_variables.set_aside(),
        garbage_collection.given_back(),
        _refusals_of_the_disk_told(runs),
        deterministic_algorithms(resolved.training.deterministic),
    ):
        check_device(resolved)
        check_shards(resolved, processes=distributed.world_size(), per_host=distributed.local_world_size())
        prepared = None
        if distributed.world_size() > 1:
            with stop.never_swallowed():
                import_libraries()
                prepared = preparation.before_meeting(
                    resolved, runs, series, fresh=fresh, rehearsal=rehearsal, listener=listener
                )
            _meet(resolved, everybodys)
        with stop.never_swallowed():
            directory = distributed.by_main_process(
                lambda: _directory(
                    resolved, runs, series, fresh=fresh, parent=parent, rehearsal=rehearsal, listener=listener
                )
            )
        resolved = with_choice_of(resolved, directory)
        with directory.locked() if distributed.is_main_process() else contextlib.nullcontext():
            if directory.status == "finished":
                exporters = tuple(not_exported(directory, resolved))
                return replace(_result(directory, already_finished=True), not_exported=exporters)
            listener(AttemptBegun(directory.log))
            import_libraries()  # a plan has; a resume makes none
            Attempt(
                resolved,
                directory,
                stop,
                listener,
                prepared=prepared,
                rehearsal=rehearsal,
                stop_after=stop_after,
                profile_steps=profile_steps,
            ).run()
            return _result(directory, already_finished=False)


def _meet(resolved: ResolvedRecipe, listener: Listener) -> None:
    """Wait for the run's other processes, and say so: the main process at once, the others after a while."""
    others = distributed.world_size() - 1
    waiting = Message(f"waiting for {others} other process{'es' * (others > 1)} at {distributed.meeting_point()}")
    telling = threading.Timer(0 if distributed.is_main_process() else WAITING_NOTICE_SECONDS, lambda: listener(waiting))
    telling.daemon = True
    telling.start()
    try:
        timeout = timedelta(seconds=resolved.training.ddp_timeout)
        offloads = resolved.training.shard and resolved.training.shard_cpu_offload
        distributed.join(on_cpu=resolved.device.kind == "cpu", timeout=timeout, offloads=offloads)
    finally:
        telling.cancel()


def with_choice_of(resolved: ResolvedRecipe, run: RunDirectory) -> ResolvedRecipe:
    """The recipe with what `auto` chose when this run began: memory strategies, and whether steps are compiled."""
    resolved = as_decided(resolved, run)
    if chooser_of(resolved) is None:
        return resolved
    return with_choice(resolved, run.record.get("choice") or NOTHING_CHOSEN)


@contextlib.contextmanager
def _refusals_of_the_disk_told(runs: Path) -> Iterator[None]:
    """Report a full or broken disk as a user's error, wherever in a run it shows."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        raise UnavailableError(
            f"cannot write to {runs}: {error.strerror}; the checkpoints are intact: free some space and run "
            f"the same command again"
        ) from error


def _told_by_the_first(event: Event) -> None:
    """Discard an event: the listener of all processes but the main one."""


def _directory(
    resolved: ResolvedRecipe,
    runs: Path,
    series: str,
    *,
    fresh: bool,
    parent: Parent | None,
    rehearsal: bool,
    listener: Listener,
) -> RunDirectory:
    """The directory of the run to resume, or a new one."""
    newest = None if fresh else runs_folder.newest_in_series(runs, series)
    folder = None
    if newest and (parent is None or parent.is_of(RunDirectory(newest))):
        directory = RunDirectory(newest)
        blank = directory.is_blank(except_step=parent.step if parent else None)
        # A run that ran out of memory in its first step is resumed, or it would run out again.
        if not blank or has_run_out_of_memory(directory):
            same = with_choice_of(resolved, directory)
            if not blank:
                require_same(directory, same)
            if not differences(directory, same):
                return directory
        with directory.locked():  # a failed start, whose recipe may have been fixed since
            shutil.rmtree(newest)
        folder = newest
    if parent:
        block_size = resolved.recipe.objective.plugin.block_size
        branch.require_steps_left(parent.step, total_steps(resolved.training, block_size=block_size, blocks=None))
    planned: dict[str, Any] = {}
    if not rehearsal:
        _check_long_block(resolved, listener)
        resolved, planned = _with_planned_memory(resolved, listener)
    folder = folder or runs_folder.next_in_series(runs, series)
    if parent:
        resolved = as_decided(resolved, parent.run)
    directory = run_directory.create(folder, resolved, environment(resolved), series=series)
    directory.update(rehearsal=rehearsal, **planned)
    if parent:
        changes = branch.begin(directory, parent, resolved)
        listener(Message(f"starting from step {parent.step:,} of {parent.run.name}"))
        for change in changes:
            listener(Message(f"  {change}"))
    return directory


def _check_long_block(resolved: ResolvedRecipe, listener: Listener) -> None:
    """Refuse a block that is longer than the text: its plan would only say that nothing fits.

    Raises:
        RecipeError: it is.
    """
    block_size = resolved.recipe.objective.plugin.block_size
    if block_size < LONG_BLOCK:
        return
    context = context_of(resolved, Path(resolved.name), progress=ProgressReporter(listener))
    for data in documents_by_source(resolved, context).values():
        with refusals_placed(resolved.recipe, ("objective",)):
            check_holds_block(data, block_size)


def _with_planned_memory(resolved: ResolvedRecipe, listener: Listener) -> tuple[ResolvedRecipe, dict[str, Any]]:
    """The recipe with what `auto` chooses, and the fields of its plan for run.json."""
    device, count = resolved.device, distributed.world_size()
    progress = ProgressReporter(listener)
    progress("planning memory")
    to_be_had = bytes_to_be_had(device, count)
    try:
        if chooser := chooser_of(resolved):
            allowed = own_share(chooser.limit(device), device, count)
            if to_be_had < NOTICE_BELOW_SHARE * allowed:
                listener(
                    Message(f"auto: other programs leave {formatting.size(to_be_had)} of {formatting.size(allowed)}")
                )
            resolved, chosen = resolve_auto(resolved, min(allowed, to_be_had), processes=count, progress=progress)
            for sentence in chosen.why:
                listener(Message(f"auto: {sentence}"))
            planned = {"planned_memory_bytes": chosen.plan.peak_bytes, "memory_budget_bytes": chosen.plan.limit_bytes}
            return resolved, {"choice": chosen.record, **planned}
        peak = peak_bytes(resolved, processes=count)
    except (PluginError, PlanTooLongError) as error:  # a run needs no plan
        listener(Message(f"{error}. The run continues without a plan"))
        return (with_choice(resolved, NOTHING_CHOSEN) if chooser_of(resolved) else resolved), {}
    if peak > to_be_had:
        listener(
            Message(
                f"the planned peak of {formatting.size(peak)} exceeds the {formatting.size(to_be_had)} available "
                f"here: the run may run out of memory; memory: [auto] chooses what fits"
            )
        )
    return resolved, {"planned_memory_bytes": peak}


def _result(directory: RunDirectory, *, already_finished: bool) -> RunResult:
    record = directory.record
    results = record["results"]
    assert results is not None  # of a finished run
    model = directory.model if directory.model.is_dir() else None
    return RunResult(
        folder=directory.folder,
        name=directory.name,
        already_finished=already_finished,
        steps=results["steps"],
        tokens_seen=results["tokens_seen"],
        seconds=results["seconds"],
        eval_loss=results["eval_loss"],
        perplexity=results["perplexity"],
        eval_loss_by_source=results.get("eval_loss_by_source", {}),
        sample=results["sample"],
        peak_memory_bytes=results["peak_memory_bytes"],
        planned_memory_bytes=record.get("planned_memory_bytes"),
        memory_was_short=results["memory_was_short"],
        model_folder=model,
        load_line=load_line(model, record["task"]) if model else None,
    )
