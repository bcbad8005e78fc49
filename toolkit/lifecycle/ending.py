"""Unfinished attempts: what run.json records of their end, and what the person is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from toolkit.errors import LostProcessError, OutOfMemoryError, ToolkitError
from toolkit.memory.limits import remember_out_of_memory
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed
from toolkit.system.signals import StopRequest, at_forced_end


@contextlib.contextmanager
def noted(run: RunDirectory, stop: StopRequest) -> Iterator[None]:
    """Record in run.json how the work ended if it fails or is interrupted.

    Raises:
        LostProcessError: another process of the run is gone, and all that this one has is a transport error.
        BaseException: whatever ended it.
    """
    try:
        with at_forced_end(lambda reason: _note_end(run, "interrupted", reason)), stop.never_swallowed():
            yield
    except BaseException as error:
        has_lost_one = distributed.have_lost_one(error)
        if isinstance(error, OutOfMemoryError):  # in any process, not just the main one
            remember_out_of_memory(run, error)
        how = "interrupted" if stop.signal_number is not None else "failed"
        _note_end(run, how, _first_line(error), lost_a_process=has_lost_one)
        if has_lost_one:
            raise LostProcessError(
                f"another process of this run has ended or cannot be reached; if its output does not say why, "
                f"this may: {_first_line(error)}. The same command resumes from the last checkpoint"
            ) from error
        raise


def _note_end(run: RunDirectory, how: str, error: str, *, lost_a_process: bool = False) -> None:
    if distributed.is_main_process():
        with contextlib.suppress(OSError):  # a full disk is reported by the error itself
            run.end_attempt(how=how, step=_last_step(run), error=error, lost_a_process=lost_a_process)


def _last_step(run: RunDirectory) -> int:
    return max((line["step"] for line in run.metrics()), default=0)


def _first_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, ToolkitError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0] if text else type(error).__name__
