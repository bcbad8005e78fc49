"""Standard output and standard error of the process, as a command can rely on them.

Whoever reads them may go away (`| head`, a terminal that is closed), the disk behind them may be full, or they were
never there (`>&-`). What goes to standard error is then lost without a word. A lost standard output ends a command
whose work is to print; a run has other work, and goes on: `run_goes_on_without_it`.
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
    """A descriptor to write to that leads nowhere once it has failed, so that it fails once."""

    def __init__(self, descriptor: int, *, needed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.needed = needed
        """Whether a failure ends the command."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write; wait where a pipe that does not block is full.

        Raises:
            BrokenPipeError: the reader is gone, which ends a command quietly.
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
    """Put these in the place of the interpreter's streams.

    A descriptor that is closed is opened to nowhere, or the next file that is opened would be the one to print into.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)  # takes the lowest free one
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout, sys.stderr = _stream(sys.stdout, 1, needed=True), _stream(sys.stderr, 2, needed=False)


def run_goes_on_without_it() -> None:
    """From here on, a standard output that cannot be written to ends nothing."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, Output):
        raw.needed = False


def _stream(present: TextIO | None, descriptor: int, *, needed: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(Output(descriptor, needed=needed)),
        encoding=(present.encoding if present else None) or "utf-8",
        # A generated text may hold any character, and the terminal may be an old one.
        errors="replace",
        line_buffering=True,
    )
