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
    pieces: int
    """Pieces that each micro-batch is run in, since memory ran out before."""
    evaluation_pieces: int
    """The same for an evaluation's batch."""
    evaluation_left_out: bool
    """Whether that step was to be evaluated, and a signal left no time for it."""
    ended: bool
    """Whether a callback ended the training there, before its last step."""
    of_parent: bool
    """Whether the checkpoint is that of another run, at which this one has begun."""


def begin_attempt(run: RunDirectory, resolved: ResolvedRecipe, listener: Listener) -> Start:
    """Clear up after a crash, find where to go on, note what was lost, and begin."""
    checkpoint.clean(run.checkpoints)
    found = _newest_checkpoint(run, listener)
    state: dict[str, Any] = read_json(found.folder / STATE_FILE) if found else {"seconds_trained": 0.0, "pieces": 1}
    step = found.step if found else 0
    run.note_loss(from_step=step, seconds=state["seconds_trained"])
    pieces = max(state["pieces"], int(run.record.get("pieces", 1)))
    if resolved.training.release_gradients:  # a parent without it may have cut its micro-batches
        pieces = 1
    if (run.folder / OUT_OF_MEMORY).exists():
        pieces = max(pieces, _smaller_as_noted(run, listener))
    elif held := killed_for_want_of_memory(run):
        pieces = _smaller(run, held, resolved, pieces=pieces, listener=listener)
    memory_watch.forget_readings(run.folder)
    _tell_other_environment(run, resolved, listener)
    run.begin_attempt(from_step=step)
    run.cut_metrics(step)
    of_parent = found is not None and (run.record.get("parent") or {}).get("step") == step
    return Start(
        folder=found.folder if found else None,
        step=step,
        seconds_trained=float(state["seconds_trained"]),
        pieces=pieces,
        evaluation_pieces=int(run.record.get("evaluation_pieces", 1)),
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


def remember_out_of_memory(run: RunDirectory, error: OutOfMemoryError) -> None:
    """Note for the next attempt that it has to take less at a time.

    Beside run.json, which the first process alone writes.
    """
    noted = {"pieces": error.pieces, "evaluation_pieces": error.evaluation_pieces}
    with contextlib.suppress(OSError):  # a full disk must not hide what has happened
        write_json(run.folder / OUT_OF_MEMORY, noted)


def _smaller_as_noted(run: RunDirectory, listener: Listener) -> int:
    """Cut batches as the last attempt has asked for."""
    noted = read_json(run.folder / OUT_OF_MEMORY)
    cut = {name: max(int(run.record.get(name, 1)), int(noted[name])) for name in ("pieces", "evaluation_pieces")}
    run.update(**cut)
    (run.folder / OUT_OF_MEMORY).unlink()
    what = "micro-batches" if noted["pieces"] > 1 else "evaluation batches"
    listener(
        Message(
            f"memory ran out in the last attempt, so this one runs its {what} in {max(noted.values())} pieces; "
            f"a step still has as many sequences"
        )
    )
    return cut["pieces"]


def killed_for_want_of_memory(run: RunDirectory) -> str | None:
    """What the last attempt held, if it seems that the kernel has ended it; that comes without a word."""
    *_, last = run.record["attempts"] or [None]
    reading = memory_watch.last_reading(run.folder)
    if last is None or last["how"] is not None or reading is None or not reading.is_near_the_limit:
        return None
    return f"{reading.resident / 2**30:.2f} of {reading.limit / 2**30:.2f} GiB"


def _smaller(run: RunDirectory, held: str, resolved: ResolvedRecipe, *, pieces: int, listener: Listener) -> int:
    """Run micro-batches in more pieces from now on, if they can be cut."""
    micro_batch_size = resolved.micro_batch_size
    ended = (
        f"the last attempt ended without a word when it held {held}: the kernel seems to have ended it for want of "
        f"memory"
    )
    if resolved.training.release_gradients:
        would = "release-gradients takes a step's gradients once, so it cannot go on with less at a time"
        listener(Message(f"{ended}; {would}: take a smaller global_batch_size, or leave release-gradients out"))
        return pieces
    if 2 * pieces > micro_batch_size:
        would = "toolkit recipe plan shows what would need less"
        listener(Message(f"{ended}, and it had one sequence at a time already; {would}"))
        return pieces
    run.update(pieces=2 * pieces, evaluation_pieces=2 * pieces)  # it may have been an evaluation
    sequences = micro_batch_size // (2 * pieces)
    listener(Message(f"{ended}, so this one goes on with micro-batches of {sequences}; a step still has as many"))
    return 2 * pieces


def _tell_other_environment(run: RunDirectory, resolved: ResolvedRecipe, listener: Listener) -> None:
    """Going on is exact on the same hardware and software; say so where it is another."""
    before, now = read_json(run.folder / "environment.json"), environment(resolved)
    pairs = [(name, before["packages"].get(name), version) for name, version in now["packages"].items()]
    pairs += [("device", before["device"]["name"], now["device"]["name"])]
    pairs += [(name, before.get(name), now[name]) for name in ("processes", "threads")]
    changed = [f"{name} {new} (the run began with {old})" for name, old, new in pairs if old != new]
    if changed:
        listener(Message(f"going on, but not bit for bit: this is {', '.join(changed)}"))
