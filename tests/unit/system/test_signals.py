"""Signals reach a process inside native code, where the interpreter runs no handler."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from toolkit.errors import InterruptedRun
from toolkit.system import signals
from toolkit.system.signals import GRACE_SECONDS, StopRequest, numbers

NATIVE = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
"""Minutes of C that lets other threads run and looks for no signal."""
PROGRAM = """
import contextlib, hashlib, sys, time
from toolkit.system.signals import StopRequest, at_forced_end, ending_the_process
with ending_the_process(), at_forced_end(lambda reason: print("ended:", reason, flush=True)):
    {setting}
"""
BUSY = f"print('here', flush=True); {NATIVE}"
TRAINING = "a run that trains"
SETTINGS = {
    "a command": BUSY,
    "a run before training": f"with StopRequest().handled(): {BUSY}",
    "a run that compiles": "with StopRequest().handled() as stop, stop.held_back(): "
    "print('here', flush=True); sum(0 for _ in iter(int, 1))",
    TRAINING: f"with StopRequest().handled() as stop, stop.deferred(): {BUSY}",
}


def started(setting: str, *, cwd: Path) -> subprocess.Popen[str]:
    program = PROGRAM.format(setting=setting)
    return subprocess.Popen([sys.executable, "-c", program], cwd=cwd, stdout=subprocess.PIPE, text=True)


def test_native_code_is_ended_within_seconds_and_training_by_the_second_signal(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(started(setting, cwd=tmp_path)) for name, setting in SETTINGS.items()}
        stack.callback(lambda: [process.kill() for process in running.values()])
        _ended_by_signals(running)


def _ended_by_signals(running: Mapping[str, subprocess.Popen[str]]) -> None:
    for process in running.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
    for process in running.values():
        _in_native_code(process)  # between the line and that, Python's own handler would end a command
    for process in running.values():
        process.send_signal(signal.SIGTERM)
    running, training = {name: p for name, p in running.items() if name != TRAINING}, running[TRAINING]
    said = {name: process.communicate(timeout=180)[0] for name, process in running.items()}
    assert said == {
        "a command": "ended: \n",
        "a run before training": "ended: stopped by SIGTERM; before training, so there was nothing to save\n",
        "a run that compiles": "ended: stopped by SIGTERM; before training, so there was nothing to save\n",
    }
    assert {process.returncode for process in running.values()} == {128 + signal.SIGTERM}
    time.sleep(GRACE_SECONDS)
    assert training.poll() is None  # it is given the time to end its step
    training.send_signal(signal.SIGINT)
    assert training.communicate(timeout=180)[0] == (
        "ended: stopped by SIGINT; at once, because it came twice; the last checkpoint is intact\n"
    )
    assert training.returncode == 128 + signal.SIGINT


FINALIZER = """
class Slow:
    def __del__(self):
        print("here", flush=True)
        time.sleep(60)
with contextlib.suppress(Exception):
    Slow()
    print("went on", flush=True)
    time.sleep(60)
    print("was not ended", flush=True)
"""


@pytest.mark.parametrize(
    ("setting", "said"),
    [("contextlib.nullcontext()", ""), ("StopRequest().handled()", "before training, so there was nothing to save")],
)
def test_a_signal_in_a_finalizer_ends_the_command_without_a_traceback(tmp_path: Path, setting: str, said: str) -> None:
    program = PROGRAM.format(setting=f"with {setting}:{FINALIZER}".replace("\n", "\n        "))
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=180)
    assert out.startswith("went on\nended: ")
    assert out.endswith(f"{said}\n")
    assert (err, process.returncode) == ("", 128 + signal.SIGTERM)


def test_a_library_that_handles_every_exception_does_not_handle_a_stop() -> None:
    said: list[str] = []

    def compile_something() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            said.append("logged with its traceback")
            error.args = (f"{error}; from user code:",)
            raise

    with pytest.raises(InterruptedRun, match="nothing to save") as error, StopRequest().handled():
        compile_something()
    assert str(error.value).endswith("nothing to save")
    assert said == []


def test_without_the_watcher_a_stop_that_was_held_back_is_told_at_the_end() -> None:
    passed: list[str] = []

    def work(stop: StopRequest) -> None:
        with stop.never_swallowed():
            with stop.held_back():
                signal.raise_signal(signal.SIGTERM)
                passed.append("the signal")
            passed.append("the library")
        passed.append("the end")

    stop = StopRequest()
    with pytest.raises(InterruptedRun, match="stopped by SIGTERM"), stop.handled():
        work(stop)
    assert passed == ["the signal", "the library"]


def _in_native_code(process: subprocess.Popen[str]) -> None:
    """Wait until it has computed for a while, as it does nowhere else."""
    begun, end = _computed(process), time.monotonic() + 120
    while _computed(process) < begun + 0.5:
        assert time.monotonic() < end, "it does not compute"
        time.sleep(0.02)


def _computed(process: subprocess.Popen[str]) -> float:
    seconds: float = psutil.Process(process.pid).cpu_times().user
    return seconds


def test_a_command_that_acts_on_the_signal_is_left_in_peace(tmp_path: Path) -> None:
    cleaning = "time.sleep(4); print('cleaned', flush=True); sys.exit(7)"
    process = started(
        f"""
    try:
        print('here', flush=True); time.sleep(300)
    except SystemExit:
        {cleaning}
""",
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=180)[0] == "cleaned\n"
    assert process.returncode == 7


def test_a_hangup_stops_a_run_and_nohup_keeps_it_from_that() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().handled():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.SIGHUP not in numbers()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(InterruptedRun, match="stopped by SIGHUP") as error, StopRequest().handled():
            os.kill(os.getpid(), signal.SIGHUP)
        assert error.value.exit_status == 129
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_a_launcher_passes_on_counts_once_and_a_second_one_ends_the_run_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "DUPLICATE_SECONDS", 3600.0)  # however long this process has to wait between them
    stop = StopRequest()
    with pytest.raises(InterruptedRun, match="because it came twice"), stop.handled(), stop.deferred():
        _stopped_twice(stop, monkeypatch)


def _stopped_twice(stop: StopRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # a terminal's, and torchrun's after it
        os.kill(os.getpid(), number)
    assert stop.signal_number == signal.SIGINT
    monkeypatch.setattr(signals, "DUPLICATE_SECONDS", 0.0)  # they are over
    os.kill(os.getpid(), signal.SIGTERM)


def not_begun(stop: StopRequest) -> None:
    pass


def trained(stop: StopRequest) -> None:
    with stop.deferred():
        pass


def failed(stop: StopRequest) -> None:
    with contextlib.suppress(ArithmeticError), stop.deferred():
        raise ArithmeticError


@pytest.mark.parametrize(
    ("reach", "message"),
    [
        (lambda stop: None, "stopped by SIGTERM; before training, so there was nothing to save"),
        (trained, "stopped by SIGTERM; after training, whose last step is saved; the same command resumes from there"),
        (failed, "stopped by SIGTERM; after training had failed; the last checkpoint is intact"),
    ],
    ids=["before training", "after it", "after it has failed"],
)
def test_while_a_run_does_not_train_a_signal_ends_it_at_once(
    reach: Callable[[StopRequest], None], message: str
) -> None:
    stop = StopRequest()
    with pytest.raises(InterruptedRun) as error, stop.handled():
        _stopped_after(reach, stop)
    assert str(error.value) == message
    assert error.value.exit_status == 128 + signal.SIGTERM
    assert stop.raised is error.value


def test_while_it_trains_a_signal_is_noted_and_the_step_goes_on() -> None:
    with StopRequest().handled() as stop, stop.deferred():
        assert stop.is_training
        assert stop.signal_number is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        assert stop.raised is None
    assert not stop.is_training
    assert str(stop.error("step 7 is saved")) == "stopped by SIGTERM; step 7 is saved"


def test_a_request_to_save_is_noted_and_stops_nothing() -> None:
    with StopRequest().handled() as stop:
        assert not stop.save_requested
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.save_requested
        assert stop.signal_number is None


def test_the_handlers_of_before_are_put_back() -> None:
    every = (*numbers(), signal.SIGUSR1)
    before = [signal.getsignal(number) for number in every]
    with StopRequest().handled():
        assert not {*map(signal.getsignal, every)} & {*before}
    assert [signal.getsignal(number) for number in every] == before


def _swallowing() -> None:
    with contextlib.suppress(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


def _wrapping() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as error:
        raise RuntimeError("Couldn't swap the bias") from error


def _stopped_after(reach: Callable[[StopRequest], None], stop: StopRequest) -> None:
    reach(stop)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("library", [_swallowing, _wrapping])
def test_what_a_library_made_of_it_does_not_hide_that_it_was_a_signal(library: Callable[[], None]) -> None:
    with pytest.raises(InterruptedRun, match="stopped by SIGTERM"), StopRequest().handled():
        library()


def test_without_a_signal_an_error_stays_what_it_is() -> None:
    stop = StopRequest()
    with stop.never_swallowed():
        pass
    with pytest.raises(ArithmeticError), stop.never_swallowed():
        raise ArithmeticError
    assert stop.raised is None
