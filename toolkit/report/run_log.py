"""A run's own log, run.log in its folder: messages and steps as plain lines with a timestamp.

It is written however the command was started, and whatever happens to the command's output.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from toolkit.errors import ToolkitError
from toolkit.report.lines import LogLines
from toolkit.system import signals

if TYPE_CHECKING:
    from toolkit.events import Event, Listener


@contextlib.contextmanager
def logged(listener: Listener) -> Iterator[Listener]:
    """Yield a listener that logs events, and passes them on to this one."""
    log = RunLog()
    with log.kept(), signals.at_forced_end(lambda reason: log.end(f"error: {reason}")):

        def tell(event: Event) -> None:
            log(event)
            listener(event)

        yield tell


class RunLog:
    """Writes events to the log once the run has a folder; until then it buffers the lines."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._plain = LogLines(self._lines.append)
        self._file: BinaryIO | None = None

    def __call__(self, event: Event) -> None:
        """Log an event, if it is due: as often as lines are shown where output is not a terminal."""
        from toolkit.events import AttemptBegun

        if isinstance(event, AttemptBegun):
            if self._file is not None:  # a rehearsal has two attempts
                self._file.close()
            # Unbuffered: what cannot be written is dropped, and does not block. A full disk is reported elsewhere.
            with contextlib.suppress(OSError):
                self._file = event.log.open("ab", buffering=0)
        self._plain(event)
        self._write()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Also log how the command ends."""
        try:
            yield
        except ToolkitError as error:
            self.end(f"error: {error}")
            raise
        except (KeyboardInterrupt, signals.Interrupt):
            self.end("interrupted")
            raise
        except BaseException:
            self.end(traceback.format_exc())
            raise
        self.end("finished")

    def end(self, words: str) -> None:
        """Write the last lines, and close the log."""
        self._lines += words.splitlines()
        self._write()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        from toolkit.storage.run_directory import now

        if self._file is None or not self._lines:
            return
        time = now()
        text = "".join(f"{time}  {line}\n" for line in self._lines)
        self._lines.clear()
        with contextlib.suppress(OSError):
            self._file.write(text.encode("utf-8", errors="backslashreplace"))
