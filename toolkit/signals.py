"""Signals to a process and to the run in it.

SIGTERM, Ctrl-C and a hangup (unless nohup has it ignored) stop what goes on: at once while nothing is at stake, and at
the end of the step while a run trains, with a checkpoint. SIGUSR1 has a run save at the end of the step and go on: what
a batch system can send some time before the end (Slurm: --signal=USR1@120).

The interpreter runs a handler between two of its instructions, and so not while the main thread is inside native code
for minutes: a tokenizer that learns, a wait for other processes. A command therefore has a thread beside it that hears
of each signal from the interpreter's C handler, and ends the process where the main thread does not come to act
(`ending_the_process`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from toolkit.errors import InterruptedRun

PATIENCE = 2.0
"""Seconds that the main thread has to act on a signal."""
ECHO = 0.5
"""The same request within so many seconds counts once: torchrun, srun and a terminal each pass it on."""

Farewell = Callable[[str], object]


class EvaluationLeftOut(Exception):  # noqa: N818 - it is no error: the next attempt evaluates
    """A signal to stop came while the held-out text was being evaluated."""


class EndedByEvaluation(Exception):  # noqa: N818 - it is no error
    """An evaluation that was made up for has ended the training, as early-stopping does."""


class Interrupt(KeyboardInterrupt):
    """A signal to stop came while no run went on."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class _Process:
    """What the watching thread has to know of the main thread."""

    run: StopRequest | None = None
    """The run that goes on."""
    acted = 0
    """Requests to stop that the main thread has acted on."""
    farewells: list[Farewell] = []  # noqa: RUF012 - there is one process


def numbers() -> tuple[signal.Signals, ...]:
    """The signals that stop a process."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,))


class StopRequest:
    """Whether somebody has asked the run to stop, and by which signal; or to save and go on."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.save_requested = False
        """Whether SIGUSR1 came; whoever has seen to it puts this back."""
        self.raised: InterruptedRun | None = None
        """What the handler has raised in the midst of whatever was going on."""
        self.is_training = False
        self._trained = False
        self._received_at = -ECHO

    @contextlib.contextmanager
    def handled(self) -> Iterator[StopRequest]:
        """Handle the signals for as long as the run lasts; the handlers from before come back after it.

        A process that is PID 1 of a container has no default handler: without this, SIGTERM would do nothing.
        """
        before = {number: signal.signal(number, self._receive) for number in numbers()}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._receive_save)
        outer, _Process.run = _Process.run, self
        try:
            yield self
        finally:
            _Process.run = outer
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
        self.is_training = True
        try:
            yield
        finally:
            self.is_training, self._trained = False, True

    def error(self, work: str) -> InterruptedRun:
        """The error that ends the command; `work` says what became of the run's work."""
        assert self.signal_number is not None
        name = signal.Signals(self.signal_number).name
        return InterruptedRun(f"stopped by {name}; {work}", signal_number=self.signal_number)

    def error_at_once(self, number: int) -> InterruptedRun:
        """The error of a run that ends here and now."""
        self.signal_number = number
        if self.is_training:
            return self.error("at once, because it came twice; the last checkpoint stands")
        if self._trained:
            return self.error("after training, whose last step is saved; the same command goes on from there")
        return self.error("before training, so there was nothing to save")

    def _receive_save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), self.signal_number is None
        echo, self._received_at = now - self._received_at < ECHO, now
        if echo and not first:
            return
        _Process.acted += 1
        self.signal_number = number
        if self.is_training and first:
            return
        self.raised = self.error_at_once(number)
        raise self.raised


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let the signals wait for the end of this: an exception in the midst of torch's C++ aborts the process.

    Of a command they do not wait long: `ending_the_process`.
    """
    if threading.current_thread() is not threading.main_thread():  # others receive none
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    before = {number: signal.signal(number, lambda *received: held.append(received)) for number in numbers()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for received, frame in held[:1]:
            handler = before[signal.Signals(received)]
            if callable(handler):  # not by raising it again, which would count twice
                handler(received, frame)
            else:
                signal.raise_signal(received)


@contextlib.contextmanager
def at_forced_end(farewell: Farewell) -> Iterator[None]:
    """Have this called with the reason if the process is ended from outside the main thread, the last one first."""
    _Process.farewells.append(farewell)
    try:
        yield
    finally:
        _Process.farewells.remove(farewell)


@contextlib.contextmanager
def ending_the_process() -> Iterator[None]:
    """For as long as a command lasts: the signals end it, by an `Interrupt` or, in native code, by force.

    By force means without unwinding: after the farewells the process is gone. What it has left half written, the next
    start removes. A run that trains is only ended so by a second signal.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        _Process.acted += 1
        raise Interrupt(number)

    before = {number: signal.signal(number, interrupt) for number in numbers()}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a data loader's worker is told, too
    watched = frozenset(before)
    threading.Thread(target=_watch, args=(reading, watched), name="signal-watch", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(writing)
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(reading: int, watched: frozenset[int]) -> None:
    requests, last = 0, -float("inf")
    while received := os.read(reading, 1):
        number, now = received[0], time.monotonic()
        # Twice the time, so that this thread, which may be late, never takes for two what the handler takes for one.
        if number not in watched or now - last < 2 * ECHO:
            continue
        requests, last = requests + 1, now
        if requests == 1 and _Process.run is not None and _Process.run.is_training:
            continue
        time.sleep(PATIENCE)
        if _Process.acted < requests:
            _end(number)
    os.close(reading)


def _end(number: int) -> NoReturn:
    reason = str(_Process.run.error_at_once(number)) if _Process.run else ""

    def say_farewell() -> None:
        for farewell in reversed(_Process.farewells):
            with contextlib.suppress(Exception):
                farewell(reason)

    # In a thread of its own, for one of them may wait for what the main thread holds.
    thread = threading.Thread(target=say_farewell, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    os._exit(128 + number)
