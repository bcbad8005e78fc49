"""The processes that tokenize: each turns batches of texts into the files of shards, and ends with its parent."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING

from toolkit import registry
from toolkit.errors import UnavailableError
from toolkit.system.fresh_process import connection_to_parent, fresh_process

if TYPE_CHECKING:
    from toolkit.data.encoding import Batch, Encoder

START = "from toolkit.data.tokenizing_process import serve; serve({})"
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
"""Each process has one processor."""


class TokenizingProcesses:
    """Processes that wait for batches."""

    def __init__(self, idle: queue.SimpleQueue[tuple[Connection, Popen[bytes]]]) -> None:
        self._idle = idle

    def make(self, batch: Batch, file: Path) -> None:
        """Have one of them write the shard of this batch; may be called from as many threads as there are processes.

        Raises:
            OptionError: the tokenizer refuses a text.
            OSError: the disk is full, say.
            UnavailableError: the process was killed.
        """
        connection, process = self._idle.get()
        try:
            connection.send((batch, file))
            error = connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as lost:
            raise _killed(process.wait()) from lost
        finally:
            self._idle.put((connection, process))
        if error is not None:
            raise error


@contextlib.contextmanager
def tokenizing_processes(count: int, encode: Encoder, highest_id: int) -> Iterator[TokenizingProcesses]:
    """Start processes that encode, and end them with the block."""
    idle: queue.SimpleQueue[tuple[Connection, Popen[bytes]]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection, process = stack.enter_context(fresh_process(START, ENVIRONMENT))
            with contextlib.suppress(BrokenPipeError):  # it has ended, which shows when it is asked
                connection.send((sys.path, registry.local_files()))
                connection.send((encode, highest_id))
            idle.put((connection, process))
        yield TokenizingProcesses(idle)


def serve(descriptor: int) -> None:
    """Write the shards of the batches that arrive on this file descriptor: what such a process runs."""
    connection = connection_to_parent(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended
        sys.path[:], plugins = connection.recv()
        registry.import_files(plugins)
        encode, highest_id = connection.recv()
        while True:
            batch, file = connection.recv()
            try:
                batch.shard(encode, highest_id).save(file)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where it was asked for
                connection.send(error)
            else:
                connection.send(None)


def _killed(status: int) -> UnavailableError:
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    cause = "; the system does that where memory runs out: take fewer --workers" if status == -signal.SIGKILL else ""
    return UnavailableError(f"a process that tokenizes {how}{cause}")
