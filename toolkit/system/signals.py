"""Signal handling of a process and of the run in it.

SIGTERM, SIGINT (Ctrl-C) and SIGHUP (unless nohup ignores it) stop the command: at once while nothing is at stake, or,
while a run trains, at the end of the step, with a checkpoint. On SIGUSR1 a run saves at the end of the step and goes
on: a batch system can send it some time before the time limit (Slurm: --signal=USR1@120).

Python runs a signal handler between two bytecode instructions, and so not while the main thread spends minutes in
native code: training a tokenizer, waiting for other processes. A command therefore has a watcher thread that learns of
each signal through the wakeup fd of the interpreter's C handler, and ends the process if the main thread does not act
(`ending_the_process`).

What a handler raises comes out of whatever line the main thread was at. It is no `Exception`, because a library would
log that with its traceback, swallow it, or write its own state into the message (torch.compile does all three); where
the run ends, it becomes an `InterruptedRun`. In a finalizer, Python would print it and go on: such a signal counts as
one that the main thread did not act on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from toolkit.errors import InterruptedRun

GRACE_SECONDS = 2.0
"""Seconds that the main thread has to act on a signal."""
DUPLICATE_SECONDS = 0.5
"""Signals within this many seconds count as one: torchrun, srun and a terminal each pass it on."""

Farewell = Callable[[str], object]


class Interrupt(SystemExit):
    """A signal to stop came while nothing was at stake.

    Not a KeyboardInterrupt: before a command has started, click turns that into its own "Aborted!" with status 1.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


class _Process:
    """What the watcher thread has to know about the main thread."""

    run: StopRequest | None = None
    """The stop request of the run in progress."""
    acted = 0
    """Number of requests to stop that the main thread has acted on."""
    farewells: list[Farewell] = []  # noqa: RUF012 - there is one process


def numbers() -> tuple[signal.Signals, ...]:
    """The signals that stop a process."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,))


class StopRequest:
    """Whether the run was asked to stop, and by which signal; or to save and go on."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.save_requested = False
        """Whether SIGUSR1 came; whoever handles it resets this."""
        self.raised: InterruptedRun | None = None
        """What tells of the `Interrupt` that the handler has raised or held back."""
        self.is_training = False
        self._trained = self._failed = self._is_held_back = False
        self._received_at = -DUPLICATE_SECONDS

    @contextlib.contextmanager
    def handled(self) -> Iterator[StopRequest]:
        """Handle the signals for as long as the run lasts, and then restore the earlier handlers.

        PID 1 of a container has no default handler: without this, SIGTERM would do nothing. Threads other than the main
        one receive no signals, and a run in one of them cannot be stopped by any.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in numbers()}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._receive_save)
        outer, _Process.run = _Process.run, self
        try:
            with _lost_in_finalizers(), self.never_swallowed():
                yield self
        finally:
            _Process.run = outer
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def never_swallowed(self) -> Iterator[None]:
        """Tell of the `Interrupt` that the handler raised, even if a library swallowed or wrapped it.

        Raises:
            InterruptedRun: a signal came while the run did not train, or a second time.
        """
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
        """Only note the first signal while training, so that the step is completed and a checkpoint written."""
        self.is_training, self._failed = True, True
        try:
            yield
            self._failed = False
        finally:
            self.is_training, self._trained = False, True

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Raise nothing in code that would not survive it: torch.compile calls Python from C++ that then aborts.

        The watcher thread ends the command; without one, the signal is acted on where `never_swallowed` ends.
        """
        self._is_held_back = True
        try:
            yield
        finally:
            self._is_held_back = False

    def error(self, work: str) -> InterruptedRun:
        """The error that ends the command; `work` says what happened to the run's work."""
        assert self.signal_number is not None
        name = signal.Signals(self.signal_number).name
        return InterruptedRun(f"stopped by {name}; {work}", signal_number=self.signal_number)

    def error_at_once(self, number: int) -> InterruptedRun:
        """The error of a run that a signal ends at once."""
        self.signal_number = number
        if self.is_training:
            return self.error("at once, because it came twice; the last checkpoint is intact")
        if self._failed:
            return self.error("after training had failed; the last checkpoint is intact")
        if self._trained:
            return self.error("after training, whose last step is saved; the same command resumes from there")
        return self.error("before training, so there was nothing to save")

    def _receive_save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), self.signal_number is None
        echo, self._received_at = now - self._received_at < DUPLICATE_SECONDS, now
        if echo and not first:
            return
        self.signal_number = number
        if self._is_held_back:
            self.raised = self.error_at_once(number)
            return
        _Process.acted += 1
        if self.is_training and first:
            return
        self.raised = self.error_at_once(number)
        raise Interrupt(number)


@contextlib.contextmanager
def _lost_in_finalizers() -> Iterator[None]:
    """Leave a stop that was raised in a finalizer to the watcher thread, and print no traceback of it."""
    outer = sys.unraisablehook

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Interrupt):
            _Process.acted -= 1
        else:
            outer(unraisable)

    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = outer


@contextlib.contextmanager
def at_forced_end(farewell: Farewell) -> Iterator[None]:
    """Have `farewell` called with the reason if the watcher thread ends the process; the last registered goes first."""
    _Process.farewells.append(farewell)
    try:
        yield
    finally:
        _Process.farewells.remove(farewell)


@contextlib.contextmanager
def ending_the_process() -> Iterator[None]:
    """End the command on a signal for as long as it lasts: by an `Interrupt` or, in native code, by force.

    By force means without unwinding: after the farewells the process exits. The next start removes what is half
    written. A run that is training is ended by force only by a second signal.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        _Process.acted += 1
        raise Interrupt(number)

    before = {number: signal.signal(number, interrupt) for number in numbers()}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # data-loader workers would write to it, too
    watched = frozenset(before)
    threading.Thread(target=_watch, args=(reading, watched), name="signal-watch", daemon=True).start()
    try:
        with _lost_in_finalizers():
            yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(writing)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def left_to_a_library() -> Iterator[None]:
    """Let a library that installs handlers of its own have the signals; afterwards they are as they were."""
    outer = signal.set_wakeup_fd(-1)  # the watcher would end the process, which does not act as it expects
    before = {number: signal.getsignal(number) for number in (*numbers(), signal.SIGUSR1, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(outer)


def _watch(reading: int, watched: frozenset[int]) -> None:
    requests, last = 0, -float("inf")
    while received := os.read(reading, 1):
        number, now = received[0], time.monotonic()
        # Twice the time, so that this thread, which may be late, never counts two where the handler counts one.
        if number not in watched or now - last < 2 * DUPLICATE_SECONDS:
            continue
        requests, last = requests + 1, now
        if requests == 1 and _Process.run is not None and _Process.run.is_training:
            continue
        time.sleep(GRACE_SECONDS)
        if _Process.acted < requests:
            _end(number)
    os.close(reading)


def _end(number: int) -> NoReturn:
    reason = str(_Process.run.error_at_once(number)) if _Process.run else ""

    def say_farewell() -> None:
        for farewell in reversed(_Process.farewells):
            with contextlib.suppress(Exception):
                farewell(reason)

    # In a thread of its own, because a farewell may wait for a lock that the main thread holds.
    thread = threading.Thread(target=say_farewell, daemon=True)
    thread.start()
    thread.join(GRACE_SECONDS)
    os._exit(128 + number)
