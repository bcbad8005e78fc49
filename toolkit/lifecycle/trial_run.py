"""One trial of a sweep: a run in a process of its own, watched by its files.

What a trial breaks, it breaks for itself: memory that runs out, a library's state. And it is the run that `recipe run`
makes, which the same command resumes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from toolkit.errors import UsageError
from toolkit.storage.run_directory import DATA_FILE, RUN_FILE, RunDirectory
from toolkit.system import endings
from toolkit.system.files import read_json

SECONDS_BETWEEN_LOOKS = 0.5
SHARE_OF_LOOKING = 0.02
"""Of the time: a look reads all of the run's metrics, which takes longer the longer the run is."""


@dataclass(frozen=True)
class Measured:
    """A held-out loss of a run."""

    step: int
    total_steps: int
    loss: float


@dataclass(frozen=True)
class TrialEnding:
    """How the process of a trial has ended."""

    exit_status: int
    """As the command line has it: 128 + n for signal n."""
    stopped: bool
    """Whether it was told to stop, and has saved."""
    text: str
    """What it has written to standard error."""


def train(
    words: Sequence[str], run: RunDirectory, *, lock: IO[str], is_hopeless: Callable[[Measured], bool]
) -> TrialEnding:
    """Run `toolkit WORDS`, which trains the run, and wait for its end.

    An exception in this process, which is how a signal comes, stops it: it saves first.

    Args:
        words: the command.
        run: the run that it trains.
        lock: an open file that the process is to inherit.
        is_hopeless: is called with each held-out loss, those of earlier attempts included; if it says so, the run is
            stopped.

    Raises:
        UsageError: the recipe holds nothing out, and there will be no such loss.
    """
    stopped = False
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            # -P: the user's folder may hold a folder with a library's name.
            [sys.executable, "-P", "-m", "toolkit", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=[lock.fileno()],
            process_group=0,  # Ctrl-C comes to it from here alone
            env={**os.environ, endings.STARTED_BY: str(os.getpid())},
        )
        try:
            told, is_held_out, has_ended, next_look = 0, False, False, 0.0
            while not has_ended:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                has_ended = process.poll() is not None
                if (began := time.monotonic()) < next_look and not has_ended:
                    continue
                is_held_out = is_held_out or _require_held_out(run)
                losses = list(evaluations(run))
                next_look = began + (time.monotonic() - began) / SHARE_OF_LOOKING
                for measured in losses[told:]:
                    if is_hopeless(measured) and not stopped and not has_ended:
                        process.send_signal(signal.SIGTERM)
                        stopped = True
                told = max(told, len(losses))
        except BaseException:
            _stop(process)
            raise
        said.seek(0)
        status = process.returncode if process.returncode >= 0 else 128 - process.returncode
        return TrialEnding(status, stopped and status == 128 + signal.SIGTERM, said.read().strip())


def evaluations(run: RunDirectory) -> Iterator[Measured]:
    """The held-out losses of a run so far."""
    if (run.folder / RUN_FILE).is_file() and (run.folder / DATA_FILE).is_file():
        total = int(read_json(run.folder / DATA_FILE)["total_steps"])
        for line in run.metrics():
            if line["kind"] == "eval":
                yield Measured(line["step"], total, float(line["eval_loss"]))


def _require_held_out(run: RunDirectory) -> bool:
    """Whether the run's data is prepared, of which something is held out.

    Raises:
        UsageError: it is prepared, and nothing is.
    """
    if not (file := run.folder / DATA_FILE).is_file():
        return False
    if not read_json(file).get("validation"):
        raise UsageError(
            "nothing is held out, so there is no loss to compare the trials by; --set dataset.eval_fraction=0.05 "
            "holds out 5%"
        )
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop it, and wait until it has saved; a second exception stops it at once."""
    try:
        process.send_signal(signal.SIGTERM)
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
