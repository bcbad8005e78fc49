"""Work beside that of the main thread."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

PROGRESS_SECONDS = 0.5
"""How often progress is reported, unless told otherwise."""


@contextlib.contextmanager
def meanwhile(work: Callable[[], object], *, seconds: float | None = None, name: str = "progress") -> Iterator[None]:
    """Call a function in a thread, at once and then every `seconds`, for as long as the block lasts.

    It reports the progress of a library that does not, while that library releases the GIL.
    """
    ended = threading.Event()

    def repeat() -> None:
        work()
        while not ended.wait(PROGRESS_SECONDS if seconds is None else seconds):
            work()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def processors() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def granted_processors(affinity: int, quota: float | None) -> int:
    """How many threads get a processor each, where a container may grant the time of fewer (`quota`) than are seen."""
    return affinity if quota is None else max(1, min(affinity, round(quota)))
