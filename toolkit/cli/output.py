"""Standard output and standard error of the process, made safe for commands to write to.

Their reader may go away (`| head`, a closed terminal), the disk behind them may be full, or they may never have been
open (`>&-`). What goes to standard error is then silently lost. Losing standard output ends a command whose purpose is
to print; a run has other work to do, and continues: `run_goes_on_without_it`.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from toolkit.errors import UnavailableError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Output(io.FileIO):
    """A file descriptor for writing that is redirected to /dev/null once it fails, so that it fails only once."""

    def __init__(self, descriptor: int, *, needed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.needed = needed
        """Whether a failure ends the command."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write; wait if a non-blocking pipe is full.

        Raises:
            BrokenPipeError: the reader is gone, which ends the command quietly.
            UnavailableError: the disk is full, say.
        """
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not self.needed:
                return memoryview(data).nbytes
            if isinstance(error, BrokenPipeError):
                raise
            raise UnavailableError(f"cannot write to standard output: {error.strerror}") from error
        return written


def install() -> None:
    """Replace the interpreter's streams with these.

    A closed descriptor is opened on /dev/null; otherwise the next file opened would get its number, and the output.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)  # gets the lowest free number
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout, sys.stderr = _stream(sys.stdout, 1, needed=True), _stream(sys.stderr, 2, needed=False)


def run_goes_on_without_it() -> None:
    """From now on, failing to write to standard output does not end the command."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, Output):
        raw.needed = False


def _stream(present: TextIO | None, descriptor: int, *, needed: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(Output(descriptor, needed=needed)),
        encoding=(present.encoding if present else None) or "utf-8",
        # Generated text may hold any character, and an old terminal may not be able to encode it.
        errors="replace",
        line_buffering=True,
    )
