"""Writes a run's checkpoints: in the background where possible, and without failing on a full disk.

The caller writes the small files of a checkpoint into the staging folder and leaves the large ones `for_later`; a
thread writes those, commits the checkpoint, and removes older ones. One save is in flight at a time. If there is no
room in memory for a copy of the state, and for the last checkpoint of a run, saving is synchronous.

A failing disk (full, over quota, broken) does not end a run: training goes on, older checkpoints are removed to make
room, down to the newest one, and the next save tries again. Only a failure of the run's last checkpoint is an error.
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

from toolkit import formatting
from toolkit.errors import UnavailableError
from toolkit.storage import checkpoint
from toolkit.storage.records import TrainingState, write_record
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed
from toolkit.system.disk import disk_faults_named, free_bytes
from toolkit.system.files import sync

STATE_FILE = "toolkit_state.json"
"""File in a checkpoint with the state that the Trainer keeps in memory only, and the time trained."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is safe on disk."""

    step: int
    folder: Path
    bytes: int
    seconds: float
    """From the beginning of the save to its end."""
    stall_seconds: float
    """How long training waited for it."""


class AsyncSaver:
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
        """Steps whose checkpoints are known to be intact."""
        self.staging: Path | None = None
        """Where the caller writes while a checkpoint is being made."""
        self._later: list[Callable[[], Any]] | None = None
        self._in_flight: Future[Saved] | None = None
        self._step_in_flight = 0

    @property
    def takes_a_copy(self) -> bool:
        """Whether a thread writes what is being saved, so that it has to be a copy."""
        return self._later is not None

    def for_later(self, write: Callable[[], Any]) -> None:
        """Defer a write to the thread, or make it now if training waits for this save."""
        if self._later is None:
            write()
        else:
            self._later.append(write)

    def save(
        self, step: int, *, write: Callable[[], None], state: Mapping[str, Any], expected_bytes: int, last: bool
    ) -> None:
        """Save a checkpoint.

        Args:
            step: optimizer steps taken.
            write: writes the files of the checkpoint into `staging`, or leaves them `for_later`.
            state: the content of toolkit_state.json.
            expected_bytes: approximate size of the checkpoint.
            last: whether training ends after it; then it is written synchronously.

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
        """Wait for the save in flight, if there is one, and report its outcome."""
        if self._in_flight is None:
            return
        future, self._in_flight = self._in_flight, None
        try:
            self.on_saved(future.result())
        except UnavailableError as error:
            self._failed(self._step_in_flight, error)

    @contextlib.contextmanager
    def finished(self, *, unless: type[BaseException]) -> Iterator[None]:
        """Wait for the save in flight when training ends, even by an error; but not by an error of type `unless`."""
        try:
            yield
        except unless:
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # of two errors, the run's own is the one to report
                self.take_result()
            raise
        self.take_result()

    def take_result_if_done(self) -> None:
        """Report the outcome of the save in flight if it is done; never wait."""
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
        """Write a checkpoint, or start to in the background; if one process fails, all return an error."""
        begun, staging = time.monotonic(), self.run.checkpoints / checkpoint.STAGING
        later: list[Callable[[], Any]] = []
        self.staging, self._later = staging, later if in_background else None

        def make_staging() -> None:
            if distributed.is_main_process():
                self._check_free_space(expected_bytes)
                staging.mkdir(exist_ok=True)

        try:
            # In two rounds: `write` contains barriers, so every process has to get there, or none.
            error = self._agreed(step, self._refusal(step, make_staging))
            error = error or self._agreed(step, self._refusal(step, write))
        except BaseException:  # a non-finite state that must not be saved, say
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            self.staging = self._later = None
        if error is None and distributed.is_main_process():
            stall = time.monotonic() - begun if in_background else None
            finish = partial(self._finish, step, staging, state, later, begun, stall)
            if in_background:
                self._begin(step, finish)
            else:
                error = self._refusal(step, lambda: self.on_saved(finish()))
        error = self._agreed(step, error)
        if error is not None and distributed.is_main_process():
            shutil.rmtree(staging, ignore_errors=True)
        return error

    def _refusal(self, step: int, work: Callable[[], None]) -> UnavailableError | None:
        """Do the work; return the error if the disk fails."""
        try:
            with disk_faults_named(self.run.checkpoints, f"the checkpoint of step {step}"):
                work()
        except UnavailableError as error:
            return error
        return None

    def _agreed(self, step: int, error: UnavailableError | None) -> UnavailableError | None:
        """Return an error in every process if there is one in any."""
        (failed,) = distributed.any_process(error is not None)
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

        # A daemon: a second Ctrl-C ends the process at once; the next start removes what is half written.
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
        """Write the rest, commit, and prune older checkpoints."""
        name = f"checkpoint-{step}"
        staged, final = staging / name, self.run.checkpoints / name
        for write in later:
            write()
        write_record(staged / STATE_FILE, TrainingState, state)
        for lines in self.run.line_files():  # the metrics up to this step have to survive with it
            sync(lines)
        sync(self.run.folder)  # and their directory entries
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
        if distributed.is_main_process():
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
