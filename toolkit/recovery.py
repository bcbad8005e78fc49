"""What an attempt finds of those before it: where to go on, what they have lost, and what to do differently."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import checkpoint, memory_watch
from toolkit.checkpoint import Checkpoint
from toolkit.errors import OutOfMemoryError
from toolkit.files import read_json, write_json
from toolkit.host import environment
from toolkit.messages import counted
from toolkit.progress import Listener, Message
from toolkit.resolve import ResolvedRecipe
from toolkit.run_directory import RunDirectory
from toolkit.saving import STATE_FILE

OUT_OF_MEMORY = "out-of-memory.json"
"""In the run directory: what the next attempt has to do because memory ran out."""


@dataclass(frozen=True)
class Start:
    """Where an attempt begins."""

    folder: Path | None
    """The checkpoint that it goes on from; None at the beginning of a run."""
    step: int
    seconds_trained: float
    """Over all attempts, up to that step."""
    sequences: int | None
    """The most to run at a time, where memory ran out before."""
    evaluation_sequences: int | None
    """The most in a batch of an evaluation, likewise."""
    evaluation_left_out: bool
    """Whether that step was to be evaluated, and a signal left no time for it."""
    ended: bool
    """Whether a callback ended the training there, before its last step."""
    of_parent: bool
    """Whether the checkpoint is that of another run, at which this one has begun."""


def begin_attempt(run: RunDirectory, resolved: ResolvedRecipe, listener: Listener, *, micro_batch_size: int) -> Start:
    """Clear up after a crash, find where to go on, note what was lost, and begin."""
    checkpoint.clean(run.checkpoints)
    found = _newest_checkpoint(run, listener)
    state: dict[str, Any] = read_json(found.folder / STATE_FILE) if found else {"seconds_trained": 0.0}
    step = found.step if found else 0
    of_parent = found is not None and (run.record.get("parent") or {}).get("step") == step
    run.note_loss(from_step=step, seconds=state["seconds_trained"])
    limits = _Limits.of(run, {} if of_parent else state)  # other settings may need less
    if (run.folder / OUT_OF_MEMORY).exists():
        limits = _as_noted(run, limits, listener)
    elif held := killed_for_want_of_memory(run):
        limits = _after_a_kill(held, limits, resolved, micro_batch_size=micro_batch_size, listener=listener)
    if limits != _Limits():
        run.update(sequences=limits.sequences, evaluation_sequences=limits.evaluation_sequences)
    (run.folder / OUT_OF_MEMORY).unlink(missing_ok=True)
    memory_watch.forget_readings(run.folder)
    _tell_other_environment(run, resolved, listener)
    run.begin_attempt(from_step=step)
    run.cut_metrics(step)
    return Start(
        folder=found.folder if found else None,
        step=step,
        seconds_trained=float(state["seconds_trained"]),
        sequences=limits.sequences,
        evaluation_sequences=limits.evaluation_sequences,
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
class _Limits:
    """The most sequences at a time; None for whole batches."""

    sequences: int | None = None
    evaluation_sequences: int | None = None

    @classmethod
    def of(cls, run: RunDirectory, state: dict[str, Any]) -> _Limits:
        """As the run has them, and the checkpoint that it goes on from."""
        return cls(_least(run.record.get("sequences"), state.get("sequences")), run.record.get("evaluation_sequences"))


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


def remember_out_of_memory(run: RunDirectory, error: OutOfMemoryError) -> None:
    """Note for the next attempt that it has to take less at a time.

    Beside run.json, which the first process alone writes.
    """
    noted = {"sequences": error.sequences, "evaluation_sequences": error.evaluation_sequences}
    with contextlib.suppress(OSError):  # a full disk must not hide what has happened
        write_json(run.folder / OUT_OF_MEMORY, noted)


def has_run_out_of_memory(run: RunDirectory) -> bool:
    """Whether what the run has of its attempts, if nothing else, is that they found too little memory."""
    noted = (run.folder / OUT_OF_MEMORY).exists() or _Limits.of(run, {}) != _Limits()
    return noted or killed_for_want_of_memory(run) is not None


def _as_noted(run: RunDirectory, limits: _Limits, listener: Listener) -> _Limits:
    """Take less at a time, as the last attempt has asked for."""
    noted = read_json(run.folder / OUT_OF_MEMORY)
    training = noted["sequences"] is not None
    at_a_time = counted(noted["sequences"] if training else noted["evaluation_sequences"])
    listener(
        Message(
            f"memory ran out in the last attempt, so this one {'trains on' if training else 'evaluates'} {at_a_time} "
            f"at a time; a step still has as many as before"
        )
    )
    return _Limits(
        _least(limits.sequences, noted["sequences"]),
        _least(limits.evaluation_sequences, noted["evaluation_sequences"]),
    )


def killed_for_want_of_memory(run: RunDirectory) -> str | None:
    """What the last attempt held, if it seems that the kernel has ended it; that comes without a word.

    Or has ended another of its processes, of which the first one heard no more than that.
    """
    *_, last = run.record["attempts"] or [None]
    reading = memory_watch.last_reading(run.folder)
    if last is None or reading is None or not reading.is_near_the_limit:
        return None
    if last["how"] is not None and not last.get("lost_a_process"):
        return None
    return f"{reading.resident / 2**30:.2f} of {reading.limit / 2**30:.2f} GiB"


def _after_a_kill(
    held: str, limits: _Limits, resolved: ResolvedRecipe, *, micro_batch_size: int, listener: Listener
) -> _Limits:
    """Take half as much at a time from now on, in evaluations too: it may have been one; if that can help."""
    ended = (
        f"the last attempt ended without a word when it held {held}: the kernel seems to have ended it for want of "
        f"memory"
    )
    if resolved.device.kind == "cuda":
        takes = "copies of the state for saves in the background, and the processes that load data"
        cure = "training.save_in_background: false and dataloader_num_workers: 0 do without them"
        listener(Message(f"{ended} of the host, where a run on a GPU has {takes}; {cure}"))
        return limits
    if resolved.training.release_gradients:
        would = "release-gradients takes a step's gradients once, so it cannot go on with less at a time"
        listener(Message(f"{ended}; {would}: take a smaller global_batch_size, or leave release-gradients out"))
        return limits
    now = _least(micro_batch_size, limits.sequences) or 1
    evaluated = _least(micro_batch_size, limits.evaluation_sequences) or 1
    if now == evaluated == 1:
        would = "toolkit recipe plan shows what would need less"
        listener(Message(f"{ended}, and it had one sequence at a time already; {would}"))
        return limits
    half = _Limits(max(1, now // 2), max(1, evaluated // 2))
    listener(
        Message(f"{ended}, so this one goes on with {counted(half.sequences or 1)} at a time; a step still has as many")
    )
    return half


def _tell_other_environment(run: RunDirectory, resolved: ResolvedRecipe, listener: Listener) -> None:
    """Going on is exact on the same hardware and software; say so where it is another."""
    before, now = read_json(run.folder / "environment.json"), environment(resolved)
    pairs = [(name, before["packages"].get(name), version) for name, version in now["packages"].items()]
    pairs += [("device", before["device"]["name"], now["device"]["name"])]
    pairs += [(name, before.get(name), now[name]) for name in ("processes", "threads")]
    changed = [f"{name} {new} (the run began with {old})" for name, old, new in pairs if old != new]
    if changed:
        listener(Message(f"going on, but not bit for bit: this is {', '.join(changed)}"))
