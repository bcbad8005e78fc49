"""SIGTERM and Ctrl-C: stop at once while nothing is at stake, and at the end of the step while training."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from toolkit.errors import InterruptedRun

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody has asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._deferred = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[StopRequest]:
        """Handle the signals for as long as the run lasts; the handlers from before come back after it.

        A process that is PID 1 of a container has no default handler: without this, SIGTERM would do nothing.
        """
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While training: only note the signal, so that the step ends and a checkpoint is written."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def error(self, work: str) -> InterruptedRun:
        """The error that ends the command; `work` says what became of the run's work."""
        assert self.signal_number is not None
        name = signal.Signals(self.signal_number).name
        return InterruptedRun(f"stopped by {name}; {work}", signal_number=self.signal_number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.signal_number is not None
        self.signal_number = number
        if again:
            raise self.error("at once, because it came twice; the last checkpoint stands")
        if not self._deferred:
            raise self.error("before training, so there was nothing to save")
