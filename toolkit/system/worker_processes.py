"""Processes that apply a function to one piece of work after another, each with a function of its own."""

from __future__ import annotations

import contextlib
import pickle
import queue
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from subprocess import Popen
from typing import Any, TypeVar

from toolkit.errors import UnavailableError
from toolkit.system.fresh_process import fresh_process

T = TypeVar("T")
START = "from toolkit.system.worker_processes import serve; serve({})"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""Each process has one processor."""
PIECES_AHEAD = 2
"""Pieces of work given out or waiting for their turn, for each process: memory is bounded, and none of them idles."""


@contextlib.contextmanager
def workers(
    count: int, make: Callable[..., Callable[[Any], T]], *args: Any
) -> Iterator[Callable[[Iterable[Any]], Iterator[T]]]:
    """Yield a `map` over this many processes that returns the results in order; they end with the block.

    Args:
        count: processes.
        make: a function of a module; each process calls it once, and applies what it returns.
        args: its arguments, which are pickled, as pieces and results are.

    Raises:
        Exception: what the function raises, when its result is due.
        UnavailableError: a process came to an end before its work did.
    """
    idle: queue.SimpleQueue[tuple[Connection, Popen[bytes]]] = queue.SimpleQueue()

    def done(piece: Any) -> Any:
        connection, process = idle.get()
        try:
            connection.send(piece)
            error, result = connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as lost:
            raise _ended(process.wait()) from lost
        finally:
            idle.put((connection, process))
        if error is not None:
            raise error
        return result

    with contextlib.ExitStack() as stack:
        # Left last: its threads wait for answers until the processes have ended.
        threads = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="worker-process"))
        for _ in range(count):
            connection, process = stack.enter_context(fresh_process(START, ENVIRONMENT))
            with contextlib.suppress(BrokenPipeError):  # it has ended, which shows when it is asked
                connection.send(sys.path)
                connection.send((make, args))
            idle.put((connection, process))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)

        def mapped(pieces: Iterable[Any]) -> Iterator[T]:
            ahead: deque[Future[T]] = deque()
            for piece in pieces:
                ahead.append(threads.submit(done, piece))
                if len(ahead) > PIECES_AHEAD * count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

        yield mapped


def serve(descriptor: int) -> None:
    """Apply the function to the pieces that arrive on this file descriptor: what such a process runs."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all, and the parent decides
    warnings.simplefilter("ignore")  # the parent's are enough
    connection = Connection(descriptor)
    function: Callable[[Any], Any] | None = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended
        sys.path[:] = connection.recv()
        make, args = connection.recv()
        while True:
            piece = connection.recv()
            try:
                function = function or make(*args)
                result = function(piece)
            except Exception as error:  # noqa: BLE001 - raised again in the parent
                connection.send((sendable(error), None))
            else:
                connection.send((None, result))


def sendable(error: Exception) -> Exception:
    """The error for another process: with its traceback, or that alone if it cannot be pickled."""
    where = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what has just been made
    except Exception:  # noqa: BLE001 - whatever stands in the way
        return RuntimeError(where)
    error.add_note(f"in a worker process:\n{where}")
    return error


def _ended(status: int) -> UnavailableError:
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    cause = "; the system does that where memory runs out" if status == -signal.SIGKILL else ""
    return UnavailableError(f"a worker process {how}{cause}")
