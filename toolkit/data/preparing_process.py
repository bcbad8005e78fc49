"""The process that prepares a stream beside the training: it goes on while steps are made, and ends with its parent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

from toolkit import registry
from toolkit.api import RunContext
from toolkit.api.context import nobody_watches
from toolkit.data.stream_preparation import StreamToPrepare, prepare_stream
from toolkit.data.taking_turns import taking_turns
from toolkit.errors import ToolkitError, UnavailableError
from toolkit.events import Event, Message
from toolkit.logs import plugin_messages_told
from toolkit.system.fresh_process import connection_to_parent, fresh_process
from toolkit.system.worker_processes import sendable

START = "from toolkit.data.preparing_process import serve; serve({})"
NICENESS = 10
"""Training has the first call on the processors; while it waits for data, they are free anyway."""


class PreparingProcess:
    """A process that prepares a stream, until it is closed or this process ends."""

    def __init__(self, work: StreamToPrepare, run: RunContext, *, patience: float) -> None:
        self._log = run.log
        stack = contextlib.ExitStack()
        self._connection, self._process = stack.enter_context(fresh_process(START))
        self.close = weakref.finalize(self, stack.close)
        """End the process."""
        self._failure: ToolkitError | None = None
        self._is_done = False
        with contextlib.suppress(BrokenPipeError):  # it has ended, which shows when it is asked
            self._connection.send((sys.path, registry.local_files()))
            self._connection.send((work, replace(run, progress=nobody_watches), patience))

    def failure(self) -> ToolkitError | None:
        """Pass on what its plugins have said; returns what has ended its work too early, if anything has."""
        while not (self._failure or self._is_done) and self.close.alive and self._connection.poll():
            try:
                told = self._connection.recv()
            except (EOFError, ConnectionResetError):
                self._failure = _ended(self._process.wait())
                break
            if isinstance(told, Message):
                self._log.info("%s", told.text)
            elif isinstance(told, ToolkitError):
                self._failure = told
            elif isinstance(told, BaseException):
                raise told
            else:
                self._is_done = True
        return self._failure


def serve(descriptor: int) -> None:
    """Prepare the stream that arrives on this file descriptor: what such a process runs."""
    connection = connection_to_parent(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended
        sys.path[:], plugins = connection.recv()
        registry.import_files(plugins)
        work, run, patience = connection.recv()
        os.nice(NICENESS)  # only now: the libraries that this has imported are what the training waits for first
        try:
            with _told_to(connection), taking_turns(run, work.lock, patience=patience) as alone:
                prepare_stream(work, alone)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the data is needed
            connection.send(error if isinstance(error, ToolkitError) else sendable(error))
        else:
            connection.send(None)


@contextlib.contextmanager
def _told_to(connection: Connection) -> Iterator[None]:
    alone = threading.Lock()  # the thread that reads ahead tells as well

    def tell(event: Event) -> None:
        with alone:
            connection.send(event)

    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)  # of a lost connection, the plugin tells
    with plugin_messages_told(tell):
        yield


def _ended(status: int) -> UnavailableError:
    if status < 0:
        perhaps = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
        how = f"was killed by {signal.Signals(-status).name}{perhaps}"
    else:
        # subprocess says 0 as well where somebody else has taken the status, or SIGCHLD is ignored.
        how = f"has ended early with status {status}" if status else "has ended early"
    return UnavailableError(
        f"the process that prepares the data beside the training {how}; the same command goes on where it was"
    )
