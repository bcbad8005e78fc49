"""Signals to a run.

SIGTERM and Ctrl-C stop it: at once while nothing is at stake, and at the end of the step while it trains, with a
checkpoint. SIGUSR1 has it save at the end of the step and go on: what a batch system can send some time before the
end (Slurm: --signal=USR1@120).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from toolkit.errors import InterruptedRun

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class EvaluationLeftOut(Exception):  # noqa: N818 - it is no error: the next attempt evaluates
    """A signal to stop came while the held-out text was being evaluated."""


class EndedByEvaluation(Exception):  # noqa: N818 - it is no error
    """An evaluation that was made up for has ended the training, as early-stopping does."""


class StopRequest:
    """Whether somebody has asked the run to stop, and by which signal; or to save and go on."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.save_requested = False
        """Whether SIGUSR1 came; whoever has seen to it puts this back."""
        self.raised: InterruptedRun | None = None
        """What the handler has raised in the midst of whatever was going on."""
        self._deferred = False
        self._trained = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[StopRequest]:
        """Handle the signals for as long as the run lasts; the handlers from before come back after it.

        A process that is PID 1 of a container has no default handler: without this, SIGTERM would do nothing.
        """
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._receive_save)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def never_swallowed(self) -> Iterator[None]:
        """Raise what the handler has raised, also where a library took it for its own: "Couldn't swap bias", say."""
        try:
            yield
        except BaseException as error:
            if self.raised and not isinstance(error, InterruptedRun):
                raise self.raised from error
            raise
        if self.raised:
            raise self.raised

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While training: only note the signal, so that the step ends and a checkpoint is written."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred, self._trained = False, True

    def error(self, work: str) -> InterruptedRun:
        """The error that ends the command; `work` says what became of the run's work."""
        assert self.signal_number is not None
        name = signal.Signals(self.signal_number).name
        return InterruptedRun(f"stopped by {name}; {work}", signal_number=self.signal_number)

    def _receive_save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.signal_number is not None
        self.signal_number = number
        if again:
            self.raised = self.error("at once, because it came twice; the last checkpoint stands")
        elif not self._deferred:
            after = "after training, whose last step is saved; the same command goes on from there"
            self.raised = self.error(after if self._trained else "before training, so there was nothing to save")
        if self.raised:
            raise self.raised


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C wait for the end of this: an exception in the midst of torch's C++ aborts the process."""
    if threading.current_thread() is not threading.main_thread():  # others receive none
        yield
        return
    held: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: held.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for received in held:
            signal.raise_signal(received)
