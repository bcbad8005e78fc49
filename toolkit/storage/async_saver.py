"""Writes a run's checkpoints: in the background where possible, and without failing on a full disk.

The caller says what a checkpoint consists of. Its small files are written at once; a thread writes the large ones,
commits the checkpoint, and removes older ones. One save is in flight at a time. If there is no room in memory for a
copy of the state, and for the last checkpoint of a run, saving is synchronous.

A failing disk (full, over quota, broken) does not end a run: training goes on, older checkpoints are removed to make
room, down to the newest one, and the next save tries again. Only a failure of the run's last checkpoint is an error.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolkit import formatting
from toolkit.errors import UnavailableError
from toolkit.events import CheckpointSaved, Message
from toolkit.storage import checkpoint
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.records import TrainingState, write_record
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed
from toolkit.system.disk import disk_faults_named, free_bytes
from toolkit.system.files import sync

STATE_FILE = "toolkit_state.json"
"""File in a checkpoint with the state that the Trainer keeps in memory only, and the time trained."""


SAVE_RETRY_SECONDS = 60.0
"""Delay before the next save, after one that failed."""

Write = Callable[[Path], object]
"""Writes files into the folder of a checkpoint."""


@dataclass(frozen=True)
class Content:
    """What a checkpoint consists of, and how one process writes its part."""

    now: list[Write]
    """Written while training waits."""
    later: list[Write]
    """Written in the thread, where there is one: of the main process, and without waiting for the others."""
    state: Mapping[str, Any]
    """The content of toolkit_state.json."""
    expected_bytes: int
    """Approximate size of the checkpoint."""
    together: Sequence[Write] = ()
    """Written by all processes at once, because they talk to each other meanwhile, and while training waits. Each
    either succeeds in all of them or fails in all."""


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
        log: MetricsLog,
        resumed_from: int | None = None,
    ) -> None:
        """Begin with the checkpoint that the attempt resumes from, which is intact: that of step `resumed_from`."""
        self.run = run
        self.keep = keep
        self.keep_every = keep_every
        self.in_background = in_background
        self.log = log
        self.last_step = resumed_from
        """The step of the newest checkpoint that is safe on disk."""
        self.last_saved: Saved | None = None
        """The newest one of this attempt."""
        self.failure: UnavailableError | None = None
        """Why the last save failed, if it did ..."""
        self.retry_at = math.inf
        """... and when to try again, by time.monotonic."""
        self._verified = set() if resumed_from is None else {resumed_from}
        """Steps whose checkpoints are known to be intact."""
        self._in_flight: Future[Saved] | None = None

    def save(self, step: int, content: Callable[[bool], Content], *, last: bool) -> None:
        """Save a checkpoint.

        Args:
            step: optimizer steps taken.
            content: says what to write; it is told whether that must be a copy, because a thread writes it.
            last: whether training ends after it; then it is written synchronously.

        Raises:
            UnavailableError: the last checkpoint cannot be written.
        """
        self.take_result()
        self.failure, self.retry_at = None, math.inf
        error = self._try(step, content, in_background=self.in_background and not last)
        for keep in (2, 1) if last else ():
            if error is None:
                return
            self._make_room(keep)
            error = self._try(step, content, in_background=False)
        if error is not None and last:
            raise error
        if error is not None:
            self._failed(error)

    def take_result(self) -> None:
        """Wait for the save in flight, if there is one, and report its outcome."""
        if self._in_flight is None:
            return
        future, self._in_flight = self._in_flight, None
        try:
            self._saved(future.result())
        except UnavailableError as error:
            self._failed(error)

    @contextlib.contextmanager
    def finished(self, *, unless: tuple[type[BaseException], ...]) -> Iterator[None]:
        """Wait for the save in flight when training ends, even by an error; but not by one of the types `unless`."""
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

    def _try(self, step: int, content: Callable[[bool], Content], *, in_background: bool) -> UnavailableError | None:
        """Write a checkpoint, or start to in the background; if one process fails, all return an error."""
        begun, staging = time.monotonic(), self.run.checkpoints / checkpoint.STAGING
        staged = staging / f"checkpoint-{step}"
        to_write = content(in_background)
        now, later = to_write.now, to_write.later
        if not in_background:
            now, later = [*now, *later], []

        def make_staging() -> None:
            if distributed.is_main_process():
                self._check_free_space(to_write.expected_bytes)
                staged.mkdir(parents=True, exist_ok=True)

        def write_now() -> None:
            for write in now:
                write(staged)

        def write_together() -> None:
            for write in to_write.together:
                write(staged)

        try:
            # In rounds: no process writes before there is a folder, and all of them know of a failure.
            error = self._agreed(step, self._refusal(step, make_staging))
            error = error or self._agreed(step, self._refusal(step, write_now))
            if to_write.together:
                error = error or self._agreed(step, self._refusal(step, write_together))
        except BaseException:  # a non-finite state that must not be saved, say
            shutil.rmtree(staging, ignore_errors=True)
            raise
        if error is None and distributed.is_main_process():
            stall = time.monotonic() - begun if in_background else None
            finish = partial(self._finish, step, staged, to_write.state, later, begun, stall)
            if in_background:
                self._begin(step, finish)
            else:
                error = self._refusal(step, lambda: self._saved(finish()))
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
        self._in_flight = future = Future[Saved]()

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
        staged: Path,
        state: Mapping[str, Any],
        later: list[Write],
        begun: float,
        stall: float | None,
    ) -> Saved:
        """Write the rest, commit, and prune older checkpoints."""
        final = self.run.checkpoints / staged.name
        for write in later:
            write(staged)
        write_record(staged / STATE_FILE, TrainingState, state)
        for lines in self.run.line_files():  # the metrics up to this step have to survive with it
            sync(lines)
        sync(self.run.folder)  # and their directory entries
        size = checkpoint.commit(staged, final, run_id=self.run.id, step=step)
        staged.parent.rmdir()
        self._verified.add(step)
        with contextlib.suppress(OSError):  # the checkpoint is safe; what cannot be removed stays until the next save
            self._prune(self.keep)
        seconds = time.monotonic() - begun
        return Saved(step, final, size, seconds, seconds if stall is None else stall)

    def _saved(self, saved: Saved) -> None:
        """Record a checkpoint that is safe on disk."""
        self.last_saved, self.last_step = saved, saved.step
        line = {"step": saved.step, "kind": "save", "seconds": saved.seconds, "stall_seconds": saved.stall_seconds}
        told = CheckpointSaved(saved.step, saved.folder, saved.seconds, saved.stall_seconds)
        self.log.write(line | {"bytes": saved.bytes}, told)

    def _failed(self, error: UnavailableError) -> None:
        """Report the failure; training goes on."""
        self._make_room(2)
        self.failure, self.retry_at = error, time.monotonic() + SAVE_RETRY_SECONDS
        stands = f"step {self.last_step} is saved" if self.last_step is not None else "nothing is saved yet"
        self.log.listener(Message(f"{error}\ntraining continues ({stands}); the next save is tried in a minute"))

    def _make_room(self, keep: int) -> None:
        """Remove checkpoints down to the newest few; what cannot be removed stays."""
        if distributed.is_main_process():
            with contextlib.suppress(OSError):
                checkpoint.clean(self.run.checkpoints)
                self._prune(min(keep, self.keep))

    def _prune(self, keep: int) -> None:
        checkpoint.prune(self.run.checkpoints, keep=keep, keep_every=self.keep_every, verified=self._verified)

    def _check_free_space(self, needed: int) -> None:
        free = free_bytes(self.run.folder)
        if free < needed:
            raise UnavailableError(
                f"the disk of {self.run.folder} has {formatting.size(free)} free and a checkpoint needs "
                f"{formatting.size(needed)}; free some space and give the same command: "
                f"the run resumes from its last checkpoint"
            )
