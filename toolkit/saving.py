"""Brings a run's checkpoints to disk: while training goes on where it can, and in spite of a disk that is full.

The caller writes the small files of a checkpoint into the staging folder and leaves the large ones `for_later`; a
thread writes those, has the whole committed, and removes what is older. One write is in flight at a time. Where no
room is for a copy of the state, and for the last checkpoint of a run, everything is written in line.

A disk that refuses (full, over quota, broken) does not end a run: training goes on, older checkpoints make room down
to the last one, and the next save tries again. Only when the last checkpoint cannot be written is that a failure.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolkit import checkpoint, formatting, processes
from toolkit.errors import UnavailableError
from toolkit.files import sync
from toolkit.host import disk_faults_named, free_bytes
from toolkit.records import TrainingState, write_record
from toolkit.run_directory import RunDirectory

STATE_FILE = "toolkit_state.json"
"""In a checkpoint: what the Trainer keeps in memory alone, and the time trained."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is safe on disk."""

    step: int
    folder: Path
    bytes: int
    seconds: float
    """From the beginning of the save to its end."""
    stall_seconds: float
    """What training waited for."""


class Saver:
    """The checkpoints of one attempt."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        keep: int,
        keep_every: int | None,
        in_background: bool,
        on_saved: Callable[[Saved], None],
        on_failed: Callable[[int, UnavailableError], None],
    ) -> None:
        self.run = run
        self.keep = keep
        self.keep_every = keep_every
        self.in_background = in_background
        self.on_saved = on_saved
        self.on_failed = on_failed
        self.verified: set[int] = set()
        """Steps whose checkpoints are known to be whole."""
        self.staging: Path | None = None
        """Where the caller writes, while a checkpoint is being made."""
        self._later: list[Callable[[], Any]] | None = None
        self._in_flight: Future[Saved] | None = None
        self._step_in_flight = 0

    @property
    def takes_a_copy(self) -> bool:
        """Whether what is being saved is written by a thread, so that it has to be a copy."""
        return self._later is not None

    def for_later(self, write: Callable[[], Any]) -> None:
        """Leave this to the thread."""
        assert self._later is not None
        self._later.append(write)

    def save(
        self, step: int, *, write: Callable[[], None], state: Mapping[str, Any], expected_bytes: int, last: bool
    ) -> None:
        """Save a step.

        Args:
            step: optimizer steps taken.
            write: writes the files of the checkpoint into `staging`, or leaves them `for_later`.
            state: the content of toolkit_state.json.
            expected_bytes: about what the checkpoint will take.
            last: whether the run ends after it, so that its state does not change any more.

        Raises:
            UnavailableError: the last checkpoint cannot be written.
        """
        self.take_result()
        error = self._try(step, write, state, expected_bytes, in_background=self.in_background and not last)
        for keep in (2, 1) if last else ():
            if error is None:
                return
            self._make_room(keep)
            error = self._try(step, write, state, expected_bytes, in_background=False)
        if error is not None and last:
            raise error
        if error is not None:
            self._failed(step, error)

    def take_result(self) -> None:
        """Wait for the write in flight, if there is one, and tell what became of it."""
        if self._in_flight is None:
            return
        future, self._in_flight = self._in_flight, None
        try:
            self.on_saved(future.result())
        except UnavailableError as error:
            self._failed(self._step_in_flight, error)

    @contextlib.contextmanager
    def finished(self, *, unless: type[BaseException]) -> Iterator[None]:
        """Wait for the write in flight at the end of training, however that ends; but not for this error."""
        try:
            yield
        except unless:
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # of the two errors, the run's own is the one to tell
                self.take_result()
            raise
        self.take_result()

    def take_result_if_done(self) -> None:
        """Tell what became of the write in flight, unless there is something to wait for."""
        if self._in_flight is not None and self._in_flight.done():
            self.take_result()

    def _try(
        self,
        step: int,
        write: Callable[[], None],
        state: Mapping[str, Any],
        expected_bytes: int,
        *,
        in_background: bool,
    ) -> UnavailableError | None:
        """Make a checkpoint, or begin to; where one process fails, all return an error."""
        begun, staging = time.monotonic(), self.run.checkpoints / checkpoint.STAGING
        later: list[Callable[[], Any]] = []
        self.staging, self._later = staging, later if in_background else None

        def make_staging() -> None:
            if processes.is_first():
                self._check_free_space(expected_bytes)
                staging.mkdir(exist_ok=True)

        try:
            # In two: while they write, processes wait for each other, and none may be missing.
            error = self._agreed(step, self._refusal(step, make_staging))
            error = error or self._agreed(step, self._refusal(step, write))
        except BaseException:  # the state is not fit to be saved, say
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            self.staging = self._later = None
        if error is None and processes.is_first():
            stall = time.monotonic() - begun if in_background else None
            finish = partial(self._finish, step, staging, state, later, begun, stall)
            if in_background:
                self._begin(step, finish)
            else:
                error = self._refusal(step, lambda: self.on_saved(finish()))
        error = self._agreed(step, error)
        if error is not None and processes.is_first():
            shutil.rmtree(staging, ignore_errors=True)
        return error

    def _refusal(self, step: int, work: Callable[[], None]) -> UnavailableError | None:
        """Do the work; return the error if the disk refuses."""
        try:
            with disk_faults_named(self.run.checkpoints, f"the checkpoint of step {step}"):
                work()
        except UnavailableError as error:
            return error
        return None

    def _agreed(self, step: int, error: UnavailableError | None) -> UnavailableError | None:
        """An error in every process, if there is one in any."""
        (failed,) = processes.any_of(error is not None)
        if failed and error is None:
            return UnavailableError(f"another process could not write its part of the checkpoint of step {step}")
        return error

    def _begin(self, step: int, finish: Callable[[], Saved]) -> None:
        self._step_in_flight, future = step, Future[Saved]()
        self._in_flight = future

        def work() -> None:
            try:
                with disk_faults_named(self.run.checkpoints, f"the checkpoint of step {step}"):
                    future.set_result(finish())
            except BaseException as error:  # noqa: BLE001 - take_result raises it in the thread of the run
                shutil.rmtree(self.run.checkpoints / checkpoint.STAGING, ignore_errors=True)
                future.set_exception(error)

        # A daemon: a second Ctrl-C ends the process at once; what is then half written, the next start sweeps up.
        threading.Thread(target=work, name="checkpoint-writer", daemon=True).start()

    def _finish(
        self,
        step: int,
        staging: Path,
        state: Mapping[str, Any],
        later: list[Callable[[], Any]],
        begun: float,
        stall: float | None,
    ) -> Saved:
        """Write the rest, commit, and remove what is older."""
        name = f"checkpoint-{step}"
        staged, final = staging / name, self.run.checkpoints / name
        for write in later:
            write()
        write_record(staged / STATE_FILE, TrainingState, state)
        for lines in self.run.line_files():  # what was measured up to this step has to survive with it
            sync(lines)
        sync(self.run.folder)  # that they are there at all, too
        size = checkpoint.commit(staged, final, run_id=self.run.id, step=step)
        staging.rmdir()
        self.verified.add(step)
        with contextlib.suppress(OSError):  # the checkpoint is safe; what cannot be removed stays until the next save
            self._prune(self.keep)
        seconds = time.monotonic() - begun
        return Saved(step, final, size, seconds, seconds if stall is None else stall)

    def _failed(self, step: int, error: UnavailableError) -> None:
        self._make_room(2)
        self.on_failed(step, error)

    def _make_room(self, keep: int) -> None:
        """Remove checkpoints down to the newest few; what cannot be removed stays."""
        if processes.is_first():
            with contextlib.suppress(OSError):
                checkpoint.clean(self.run.checkpoints)
                self._prune(min(keep, self.keep))

    def _prune(self, keep: int) -> None:
        checkpoint.prune(self.run.checkpoints, keep=keep, keep_every=self.keep_every, verified=self.verified)

    def _check_free_space(self, needed: int) -> None:
        free = free_bytes(self.run.folder)
        if free < needed:
            raise UnavailableError(
                f"the disk of {self.run.folder} has {formatting.size(free)} free and a checkpoint needs "
                f"{formatting.size(needed)}; free some space and give the same command: "
                f"the run goes on from its last checkpoint"
            )
