"""State that an attempt recovers from earlier ones: where to resume, what was lost, and what to do differently."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from toolkit import checkpoint, memory_watch
from toolkit.checkpoint import Checkpoint
from toolkit.errors import OutOfMemoryError
from toolkit.files import read_json, write_json
from toolkit.formatting import counted
from toolkit.host import environment
from toolkit.progress import Listener, Message
from toolkit.records import TrainingState, read_record
from toolkit.resolve import ResolvedRecipe
from toolkit.run_directory import RunDirectory
from toolkit.saving import STATE_FILE

OUT_OF_MEMORY = "out-of-memory.json"
"""File in the run directory with the batch sizes for the next attempt, after running out of memory."""
INDIVISIBLE = (
    "release-gradients takes a step's gradients once, so it cannot go on with less at a time: take a smaller "
    "global_batch_size, or leave release-gradients out"
)


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
    whole = _AtATime(micro_batch_size, micro_batch_size)
    at_a_time = whole.at_most(run.record).at_most({} if of_parent else state)  # other settings may need less memory
    if (run.folder / OUT_OF_MEMORY).exists():
        at_a_time = at_a_time.at_most(_noted(run, listener))
    elif held := killed_for_want_of_memory(run):
        at_a_time = _after_a_kill(held, at_a_time, resolved, listener)
    if at_a_time != whole:
        run.update(**{name: size for name, size in asdict(at_a_time).items() if size < micro_batch_size})
    (run.folder / OUT_OF_MEMORY).unlink(missing_ok=True)
    memory_watch.forget_readings(run.folder)
    _tell_other_environment(run, resolved, listener)
    run.begin_attempt(from_step=step)
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
        listener(Message(f"going on from {found.folder}"))
    elif skipped:
        listener(Message("no checkpoint is intact, so the run begins again at step 0"))
    return found


@dataclass(frozen=True)
class _AtATime:
    """How many sequences go through the model at a time."""

    sequences: int
    evaluation_sequences: int

    def at_most(self, limits: Mapping[str, Any]) -> _AtATime:
        """These, or fewer if a run's record, a checkpoint or a note says so under the same names."""
        return _AtATime(**{name: min(size, limits.get(name) or size) for name, size in asdict(self).items()})


NOTHING_TRAINED: Mapping[str, Any] = {"seconds_trained": 0.0}
LIMITS = tuple(field.name for field in fields(_AtATime))


def remember_out_of_memory(run: RunDirectory, error: OutOfMemoryError) -> None:
    """Note for the next attempt that it has to run fewer sequences at a time.

    In a file of its own, because only the main process writes run.json.
    """
    noted = {"sequences": error.sequences, "evaluation_sequences": error.evaluation_sequences}
    with contextlib.suppress(OSError):  # a full disk must not hide what has happened
        write_json(run.folder / OUT_OF_MEMORY, noted)


def has_run_out_of_memory(run: RunDirectory) -> bool:
    """Whether an attempt ran out of memory, in which case even a run without a checkpoint has something to keep."""
    noted = (run.folder / OUT_OF_MEMORY).exists() or not run.record.keys().isdisjoint(LIMITS)
    return noted or killed_for_want_of_memory(run) is not None


def _noted(run: RunDirectory, listener: Listener) -> Mapping[str, Any]:
    """The batch sizes that the last attempt asked for."""
    noted = read_json(run.folder / OUT_OF_MEMORY)
    does, size = (
        ("trains on", noted["sequences"]) if noted["sequences"] else ("evaluates", noted["evaluation_sequences"])
    )
    listener(
        Message(
            f"memory ran out in the last attempt, so this one {does} {counted(size, 'sequence')} at a time; a step "
            f"still has as many as before"
        )
    )
    return noted


def killed_for_want_of_memory(run: RunDirectory) -> str | None:
    """The memory that the last attempt held, in words, if the OOM killer seems to have killed it; else None.

    Also if it killed another process of the run, so that the main process saw only the loss of it.
    """
    last = next(reversed(run.record["attempts"]), None)
    reading = memory_watch.last_reading(run.folder)
    if last is None or reading is None or not reading.is_near_the_limit:
        return None
    if last["how"] is not None and not last.get("lost_a_process"):
        return None
    return f"{reading.resident / 2**30:.2f} of {reading.limit / 2**30:.2f} GiB"


def _after_a_kill(held: str, now: _AtATime, resolved: ResolvedRecipe, listener: Listener) -> _AtATime:
    """Halve the batch sizes, if that can help; that of evaluations too, because one may have been the cause."""
    ended = (
        f"the last attempt ended without a word when it held {held}: the kernel seems to have ended it for want of "
        f"memory"
    )
    if resolved.device.kind == "cuda":
        takes = "copies of the state for saves in the background, and the processes that load data"
        cure = "training.save_in_background: false and dataloader_num_workers: 0 do without them"
        listener(Message(f"{ended} of the host, where a run on a GPU has {takes}; {cure}"))
        return now
    if resolved.training.release_gradients:
        listener(Message(f"{ended}; {INDIVISIBLE}"))
        return now
    half = _AtATime(max(1, now.sequences // 2), max(1, now.evaluation_sequences // 2))
    if half == now:
        would = "toolkit recipe plan shows what would need less"
        listener(Message(f"{ended}, and it had one sequence at a time already; {would}"))
        return now
    goes_on = f"goes on with {counted(half.sequences, 'sequence')} at a time; a step still has as many as before"
    listener(Message(f"{ended}, so this one {goes_on}"))
    return half


def _tell_other_environment(run: RunDirectory, resolved: ResolvedRecipe, listener: Listener) -> None:
    """Report any difference of hardware or software: the resume is exact only on the same."""
    file, now = run.folder / "environment.json", environment(resolved)
    try:
        before = read_json(file)
        pairs = [(name, before["packages"].get(name), version) for name, version in now["packages"].items()]
        pairs += [("device", before["device"]["name"], now["device"]["name"])]
        pairs += [(name, before.get(name), now[name]) for name in ("processes", "threads")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged
        listener(Message(f"{file} cannot be read, so nobody knows whether the run goes on with the same software"))
        return
    changed = [f"{name} {new} (the run began with {old})" for name, old, new in pairs if old != new]
    if changed:
        listener(Message(f"going on, but not bit for bit: this is {', '.join(changed)}"))
