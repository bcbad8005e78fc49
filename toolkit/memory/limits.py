"""Batch sizes that an attempt takes over from earlier ones that ran out of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from toolkit.errors import OutOfMemoryError
from toolkit.events import Listener, Message
from toolkit.formatting import counted
from toolkit.memory import watch
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.files import read_json, write_json

OUT_OF_MEMORY = "out-of-memory.json"
"""File in the run directory with the batch sizes for the next attempt, after running out of memory."""


WHY_INDIVISIBLE = (
    "release-gradients cannot accumulate gradients, so it cannot use smaller micro-batches; use a smaller "
    "global_batch_size, or remove release-gradients"
)


@dataclass(frozen=True)
class BatchLimits:
    """How many sequences go through the model at a time."""

    sequences: int
    evaluation_sequences: int

    def at_most(self, limits: Mapping[str, Any]) -> BatchLimits:
        """These, or fewer if a run's record, a checkpoint or a note says so under the same names."""
        return BatchLimits(**{name: min(size, limits.get(name) or size) for name, size in asdict(self).items()})


LIMIT_KEYS = tuple(field.name for field in fields(BatchLimits))


def remember_out_of_memory(run: RunDirectory, error: OutOfMemoryError) -> None:
    """Note for the next attempt that it has to run fewer sequences at a time.

    In a file of its own, because only the main process writes run.json.
    """
    noted = {"sequences": error.sequences, "evaluation_sequences": error.evaluation_sequences}
    with contextlib.suppress(OSError):  # a full disk must not hide what has happened
        write_json(run.folder / OUT_OF_MEMORY, noted)


def has_run_out_of_memory(run: RunDirectory) -> bool:
    """Whether an attempt ran out of memory, in which case even a run without a checkpoint has something to keep."""
    noted = (run.folder / OUT_OF_MEMORY).exists() or not run.record.keys().isdisjoint(LIMIT_KEYS)
    return noted or killed_for_want_of_memory(run) is not None


def noted_sizes(run: RunDirectory, listener: Listener) -> Mapping[str, Any]:
    """The batch sizes that the last attempt asked for."""
    noted = read_json(run.folder / OUT_OF_MEMORY)
    does, size = ("trains", noted["sequences"]) if noted["sequences"] else ("evaluates", noted["evaluation_sequences"])
    listener(
        Message(
            f"the last attempt ran out of memory, so this one {does} with micro-batches of "
            f"{counted(size, 'sequence')}; the global batch stays the same"
        )
    )
    return noted


def killed_for_want_of_memory(run: RunDirectory) -> str | None:
    """The memory that the last attempt held, in words, if the OOM killer seems to have killed it; else None.

    Also if it killed another process of the run, so that the main process saw only the loss of it.
    """
    last = next(reversed(run.record["attempts"]), None)
    reading = watch.last_reading(run.folder)
    if last is None or reading is None or not reading.is_near_the_limit:
        return None
    if last["how"] is not None and not last.get("lost_a_process"):
        return None
    return f"{reading.resident / 2**30:.2f} of {reading.limit / 2**30:.2f} GiB"


def after_a_kill(held: str, now: BatchLimits, resolved: ResolvedRecipe, listener: Listener) -> BatchLimits:
    """Halve the batch sizes, if that can help; that of evaluations too, because one may have been the cause."""
    ended = f"the last attempt was killed, apparently out of memory: it held {held}"
    if resolved.device.kind == "cuda":
        takes = "copies of the state for background saves, and the data loader's processes"
        cure = "training.save_in_background: false and dataloader_num_workers: 0 avoid both"
        listener(Message(f"{ended} of host memory, where a run on a GPU keeps {takes}; {cure}"))
        return now
    if resolved.training.release_gradients:
        listener(Message(f"{ended}; {WHY_INDIVISIBLE}"))
        return now
    half = BatchLimits(max(1, now.sequences // 2), max(1, now.evaluation_sequences // 2))
    if half == now:
        would = "toolkit recipe plan shows what needs less"
        listener(Message(f"{ended}, and its micro-batch was one sequence already; {would}"))
        return now
    goes_on = f"resumes with micro-batches of {counted(half.sequences, 'sequence')}; the global batch stays the same"
    listener(Message(f"{ended}, so this one {goes_on}"))
    return half
