"""One process prepares what several want, and the others wait and say so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from toolkit.api import Progress, RunContext
from toolkit.system.cache import refusals_explained
from toolkit.system.turn import Holder, Tell, turn

PATIENCE_SECONDS = 1800.0
"""How long to wait for a process that makes no progress, unless told otherwise."""

_held: list[Tell] = []
"""For each turn that this process has, what tells those who wait for it."""


@contextlib.contextmanager
def taking_turns(run: RunContext, what: str, *, patience: float = PATIENCE_SECONDS) -> Iterator[RunContext]:
    """Be the only process of this cache that works on `what`, a name; the context's progress is told to those who wait.

    Raises:
        UnavailableError: the process that works on it makes no progress, or the cache cannot be written.
    """
    told = False

    def wait(holder: Holder | None) -> None:
        nonlocal told
        if not told:
            run.log.info("Waiting for %s, which is preparing the same data.", holder or "another process")
            told = True
        if holder:
            phase = f"waiting for {holder}" + (f": {holder.phase}" if holder.phase else "")
            run.progress(phase, holder.done, holder.total, unit=holder.unit)

    locks = run.cache / "locks"
    with contextlib.ExitStack() as stack:
        with refusals_explained(locks):
            tell = stack.enter_context(turn(locks / what, wait=wait, patience=patience))
        _held.append(tell)
        stack.callback(_held.remove, tell)
        yield replace(run, progress=heard(run.progress))


def heard(progress: Progress) -> Progress:
    """Progress that those are told, too, who wait for this process, whatever part of its work they wait for."""

    def tell_all(phase: str, done: int = 0, total: int | None = None, *, unit: str = "", detail: str = "") -> None:
        for tell in _held:
            tell(phase, done, total, unit)
        progress(phase, done, total, unit=unit, detail=detail)

    return tell_all
