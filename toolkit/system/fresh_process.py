"""A new interpreter that works for this process and ends with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection

SECONDS_BETWEEN_LOOKS = 0.2
"""How often a process looks whether its parent lives."""


@contextlib.contextmanager
def fresh_process(
    start: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """Start a new interpreter; yields the connection to it, and the process, which does not outlive the context.

    Args:
        start: the Python code that it runs, in which {} is the file descriptor of its end of the connection.
        environment: variables that it has besides this process's.
    """
    here, there = multiprocessing.Pipe()
    # Not multiprocessing's "spawn", which would run a user's script again that has no `if __name__ == ...`.
    # -P: no modules of the current folder.
    command = [sys.executable, "-P", "-c", start.format(there.fileno()), str(os.getpid())]
    variables = {**os.environ, **(environment or {})}
    with here, subprocess.Popen(command, pass_fds=[there.fileno()], env=variables) as process:
        there.close()
        try:
            yield here, process
        finally:
            process.kill()


def connection_to_parent(descriptor: int) -> Connection:
    """The other end, for the new interpreter: it leaves signals to its parent, and ends with it, even in its work."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all, and the parent decides
    warnings.simplefilter("ignore")  # the parent's are enough
    # Not os.getppid(): the parent may have ended while this interpreter started.
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    return Connection(descriptor)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
