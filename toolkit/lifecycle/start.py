"""State that an attempt recovers from earlier ones: where to resume, what was lost, and what to do differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.events import Listener, Message
from toolkit.lifecycle.environment import environment
from toolkit.memory import watch
from toolkit.memory.limits import OUT_OF_MEMORY, BatchLimits, after_a_kill, killed_for_want_of_memory, noted_sizes
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage import checkpoint
from toolkit.storage.async_saver import STATE_FILE
from toolkit.storage.checkpoint import Checkpoint
from toolkit.storage.records import TrainingState, read_record
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.files import read_json


@dataclass(frozen=True)
class Start:
    """Where an attempt starts."""

    folder: Path | None
    """The checkpoint to resume from; None at the beginning of a run."""
    step: int
    seconds_trained: float
    """Over all attempts, up to that step."""
    sequences: int
    """Sequences per forward pass: the micro-batch size, or fewer since memory ran out."""
    evaluation_sequences: int
    """Evaluation batch size, likewise."""
    evaluation_left_out: bool
    """Whether the evaluation of that step is missing, because a signal left no time for it."""
    ended: bool
    """Whether a callback ended training there, before its last step."""
    of_parent: bool
    """Whether the checkpoint is the copy of another run's, from which this run started."""


def begin_attempt(run: RunDirectory, resolved: ResolvedRecipe, listener: Listener, *, micro_batch_size: int) -> Start:
    """Clean up after a crash, find where to resume, record what was lost, and begin the attempt."""
    checkpoint.clean(run.checkpoints)
    found = _newest_checkpoint(run, listener)
    state: Mapping[str, Any] = read_record(found.folder / STATE_FILE, TrainingState) if found else NOTHING_TRAINED
    step = found.step if found else 0
    of_parent = found is not None and "parent" in (record := run.record) and record["parent"]["step"] == step
    run.note_loss(from_step=step, seconds=state["seconds_trained"])
    whole = BatchLimits(micro_batch_size, micro_batch_size)
    at_a_time = whole.at_most(run.record).at_most({} if of_parent else state)  # other settings may need less memory
    if (run.folder / OUT_OF_MEMORY).exists():
        at_a_time = at_a_time.at_most(noted_sizes(run, listener))
    elif held := killed_for_want_of_memory(run):
        at_a_time = after_a_kill(held, at_a_time, resolved, listener)
    if at_a_time != whole:
        run.update(**{name: size for name, size in asdict(at_a_time).items() if size < micro_batch_size})
    (run.folder / OUT_OF_MEMORY).unlink(missing_ok=True)
    watch.forget_readings(run.folder)
    _tell_other_environment(run, resolved, listener)
    given = resolved.recipe.registry.folders[len(resolved.recipe.plugin_paths) :]  # those of the recipe are the first
    run.begin_attempt(from_step=step, plugin_folders=given)
    run.cut_metrics(step)
    return Start(
        folder=found.folder if found else None,
        step=step,
        seconds_trained=float(state["seconds_trained"]),
        **asdict(at_a_time),
        evaluation_left_out=bool(state.get("evaluation_left_out")),
        ended=bool(state.get("ended")) and not of_parent,
        of_parent=of_parent,
    )


def _newest_checkpoint(run: RunDirectory, listener: Listener) -> Checkpoint | None:
    found, skipped = checkpoint.newest_intact(run.checkpoints, run_id=run.id)
    for bad in skipped:
        listener(Message(f"skipped {bad.folder.name}: {bad.reason}"))
    if found:
        listener(Message(f"resuming from {found.folder}"))
    elif skipped:
        listener(Message("no checkpoint is intact, so the run starts again at step 0"))
    return found


NOTHING_TRAINED: Mapping[str, Any] = {"seconds_trained": 0.0}


def _tell_other_environment(run: RunDirectory, resolved: ResolvedRecipe, listener: Listener) -> None:
    """Report any difference of hardware or software: the resume is exact only on the same."""
    file, now = run.folder / "environment.json", environment(resolved)
    try:
        before = read_json(file)
        pairs = [(name, before["packages"].get(name), version) for name, version in now["packages"].items()]
        pairs += [("device", before["device"]["name"], now["device"]["name"])]
        pairs += [(name, before.get(name), now[name]) for name in ("processes", "threads")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged
        listener(Message(f"{file} cannot be read, so whether the software has changed since is unknown"))
        return
    changed = [f"{name} {new} (the run began with {old})" for name, old, new in pairs if old != new]
    if changed:
        listener(Message(f"resuming, but not bit for bit: this is {', '.join(changed)}"))
