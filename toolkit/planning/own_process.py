"""Runs the work of a plan in a process of its own, which can be ended at any moment and leaves nothing behind.

A trace runs the trainer on fake tensors: it replaces functions of the libraries, and an exception raised by a signal
inside torch's C++ code would abort the process. Here the process that will train only waits, so a signal ends it, and
the plan with it, at once. NOTES.md says why the process is forked on some machines and started anew on others.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from toolkit import registry
from toolkit.api import Progress
from toolkit.api.context import nobody_watches
from toolkit.errors import PlanTooLongError, PluginError, ToolkitError
from toolkit.formatting import duration
from toolkit.system.fresh_process import fresh_process
from toolkit.system.threads import processors

T = TypeVar("T")

MAX_SECONDS_BETWEEN_MESSAGES = 330.0
"""Limit on processor time without a word from the work; a trace that dispatches operations ends itself before that."""
START = "from toolkit.planning.own_process import serve_anew; serve_anew({})"

FAULTS_OF_A_FORK = (
    "Unable to handle autograd's threading in combination with fork-based multiprocessing",
    "Cannot re-initialize CUDA in forked subprocess",
    "CUDA error: initialization error",
)
"""What torch says in a fork of a process that has used a GPU, where it cannot work there."""

_is_own = False
"""Whether this process was made for a plan."""


def in_own_process(work: Callable[..., T], *args: Any, progress: Progress | None = None, **options: Any) -> T:
    """Call a function of a module in a process of its own and return what it returns.

    Log messages and calls of `progress` reach this process. Within such a process the function is simply called.

    Args:
        work: the function.
        args: its arguments, which are pickled, as its result is.
        options: its arguments by name.
        progress: passed to `work` under this name, if given.

    Raises:
        PlanTooLongError: it takes too long.
        PluginError: its process came to an end before its work did.
        Exception: what `work` raises.
    """
    reported: dict[str, Any] = {} if progress is None else {"progress": progress}
    if _is_own:
        return work(*args, **options, **reported)
    if sys.platform == "linux":  # elsewhere the system's libraries start threads, which a fork breaks
        with contextlib.suppress(_ForkFailedError):
            return _result(_forked(), work, args, options, progress)
    return _result(_started_anew(), work, args, options, progress)


def started_beside(work: Callable[..., T], *args: Any, **options: Any) -> Callable[[], T] | None:
    """Start a function in a fork of a process that was itself forked for a plan.

    Returns:
        What waits for its end and returns what it returns, or raises what it raises; once nobody holds it, the work is
        ended. None in any other process, and where there is no second processor: then the work is best done when its
        result is needed.
    """
    # Not in a process started anew: there the system's libraries start threads, or a GPU has been used.
    if not _is_own or multiprocessing.parent_process() is None or processors() < 2:
        return None
    ends_with_result = contextlib.ExitStack()
    connection, ended = ends_with_result.enter_context(_forked(daemon=True))
    _ask(connection, work, args, options, None)

    def result() -> T:
        with ends_with_result:
            answer: T = _answer(connection, ended, None)
            return answer

    return result


class _ForkFailedError(Exception):
    """torch cannot work in the fork of this process, because it has used a GPU."""


def _result(
    process: AbstractContextManager[tuple[Connection, Callable[[], int]]],
    work: Callable[..., T],
    args: tuple[Any, ...],
    options: dict[str, Any],
    progress: Progress | None,
) -> T:
    """Have the process do the work."""
    with process as (connection, ended):
        _ask(connection, work, args, options, progress)
        returned: T = _answer(connection, ended, progress)
        return returned


def _ask(
    connection: Connection,
    work: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
    progress: Progress | None,
) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and its answer says how
        connection.send((work, args, options, progress is not None))


def _answer(connection: Connection, ended: Callable[[], int], progress: Progress | None) -> Any:
    while True:
        try:
            kind, content = connection.recv()
        except (EOFError, ConnectionResetError):
            raise _early_end(ended()) from None
        if kind == "returned":
            return content
        if kind == "raised":
            is_of_the_fork = any(fault in str(content) for fault in FAULTS_OF_A_FORK)
            raise _ForkFailedError if is_of_the_fork else content
        if kind == "progress":
            (progress or nobody_watches)(*content[0], **content[1])
        else:
            name, level, message = content
            logging.getLogger(name).log(level, "%s", message)


@contextlib.contextmanager
def _started_anew() -> Iterator[tuple[Connection, Callable[[], int]]]:
    """Start a new interpreter; yields the connection to it, and a function that waits for its end and gives its status.

    The status is negative for a signal. The process does not outlive the context.
    """
    with fresh_process(START) as (here, fresh):
        with contextlib.suppress(BrokenPipeError):
            here.send((sys.path, registry.local_files(), logging.getLogger("toolkit").level))
        yield here, fresh.wait


@contextlib.contextmanager
def _forked(*, daemon: bool = False) -> Iterator[tuple[Connection, Callable[[], int]]]:
    """The same by a fork of this process, which has imported everything; a daemon is not waited for at its end."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve_forked, args=(here, there), daemon=daemon)
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork beside threads. Ours wait and print; torch's are not used in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    there.close()

    def ended() -> int:
        process.join()
        return process.exitcode or 0

    with here:
        try:
            yield here, ended
        finally:
            process.kill()
            process.join()


def serve_anew(descriptor: int) -> None:
    """Do the work that arrives on this file descriptor: what a process started anew runs."""
    warnings.simplefilter("ignore")  # the parent's are enough
    connection = Connection(descriptor)
    path, plugins, level = connection.recv()
    sys.path[:] = path
    registry.import_files(plugins)
    logging.getLogger("toolkit").setLevel(level)
    _serve(connection)


def _serve_forked(parents: Connection, connection: Connection) -> None:
    import torch

    parents.close()  # or the end of the parent would not show
    torch.set_num_threads(1)  # the threads of OpenMP are the parent's, and waiting for them would never end
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the same, for those of tokenizers
    torch.cuda.is_available = lambda: False  # CUDA cannot be used in a fork, and fake tensors do not need it
    _serve(connection)


def _serve(connection: Connection) -> None:
    """Do one piece of work, and end with the process that asked for it."""
    global _is_own
    _is_own = True
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to both processes, and the parent decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    try:
        work, args, options, is_watched = connection.recv()
    except EOFError:  # the parent was ended
        return
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    lock = threading.Lock()

    def send(kind: str, content: Any) -> None:
        message = pickle.dumps((kind, content))
        with lock:
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS_BETWEEN_MESSAGES)
            connection.send_bytes(message)

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send("log", (record.name, record.levelno, record.getMessage()))

    logger = logging.getLogger("toolkit")
    logger.handlers, logger.propagate = [Forward()], False
    try:
        if is_watched:
            options["progress"] = lambda *words, **more: send("progress", (words, more))
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS_BETWEEN_MESSAGES)
        send("returned", work(*args, **options))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where it was asked for
        send("raised", _portable(error))


def _end_with_parent(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        connection.poll(None)  # it sends nothing more, so this is the end of it
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error with where it was raised, or its text where a library's own error cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - written in the same line
    except Exception:  # noqa: BLE001 - anything may be wrong with it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _early_end(status: int) -> ToolkitError:
    if status == -signal.SIGPROF:
        return PlanTooLongError(
            f"no plan after {duration(MAX_SECONDS_BETWEEN_MESSAGES)} of computing: the model is too large to be traced"
        )
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    cause = "; the system does that where memory runs out" if status == -signal.SIGKILL else ""
    return PluginError(f"no plan can be made: the process that traced the step {how}{cause}")
