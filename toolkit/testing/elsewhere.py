"""Asks a plugin in another process: with another hash seed, a later clock and another directory order.

A resumed run loads its documents and trains its tokenizer again, in another process on another day. Whatever depends on
the order of a set, on the clock or on the order of a directory listing would then differ.
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

from toolkit.api import Plugin
from toolkit.registry import Offer
from toolkit.testing.bench import Bench, Fault

CLOCK_OFFSET = datetime.timedelta(days=400, hours=7, minutes=13)
"""Another year, month, weekday and hour."""


def answer_elsewhere(plugin: Plugin, bench: Bench, answer: Callable[[Any, Bench], Any]) -> Any:
    """Return what `answer`, a module-level function, returns for the plugin in another process; it has to be JSON.

    Raises:
        Fault: it fails there.
    """
    assert bench.offer is not None
    target = bench.offer.target
    question = {
        "path": sys.path,
        "kind": bench.offer.kind,
        "name": bench.offer.name,
        "target": str(target.resolve()) if isinstance(target, Path) else [target.name, target.value, target.group],
        "options": plugin.model_dump(mode="json"),
        "rehearsed": bench.rehearsal,
        "answer": [answer.__module__, answer.__qualname__],
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONHASHSEED": "1"},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Fault(f"in another process it fails: {last}")
    return json.loads(done.stdout)


def _answer(question: dict[str, Any]) -> Any:
    target: Any = question["target"]
    found = Path(target) if isinstance(target, str) else metadata.EntryPoint(*target)
    offer = Offer(question["kind"], question["name"], "another process", found)
    module, name = question["answer"]
    answer = getattr(importlib.import_module(module), name)
    for library in ("datasets", "transformers"):  # imported before the patch, so they keep the real clock
        importlib.import_module(library)
    with _later(), _listed_backwards(), tempfile.TemporaryDirectory(prefix="toolkit-check-") as folder:
        loaded = offer.load()
        plugin = loaded.model_validate(question["options"])
        if question["rehearsed"]:
            plugin = plugin.rehearse()
        return answer(plugin, Bench(Path(folder), rehearsal=question["rehearsed"], offer=offer))


@contextlib.contextmanager
def _later() -> Iterator[None]:
    """Set Python's clocks ahead; libraries that read the clock in C still see the real time."""
    seconds, clock, localtime, gmtime = CLOCK_OFFSET.total_seconds(), time.time, time.localtime, time.gmtime
    with (
        patch.multiple(
            time,
            time=lambda: clock() + seconds,
            time_ns=lambda: int((clock() + seconds) * 1e9),
            localtime=lambda at=None: localtime(clock() + seconds if at is None else at),
            gmtime=lambda at=None: gmtime(clock() + seconds if at is None else at),
        ),
        patch.multiple(
            datetime,
            date=_ahead(datetime.date, "today"),
            datetime=_ahead(datetime.datetime, "today", "now", "utcnow"),
        ),
    ):
        yield


def _ahead(real: Any, *methods: str) -> Any:
    """A class that passes for the real one, but whose current time is later."""

    class Kind(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real)

    def ahead(method: str) -> Any:
        return staticmethod(lambda *arguments, **named: getattr(real, method)(*arguments, **named) + CLOCK_OFFSET)

    return Kind(real.__name__, (real,), {"__module__": "datetime", **{name: ahead(name) for name in methods}})


@contextlib.contextmanager
def _listed_backwards() -> Iterator[None]:
    """List directories in reverse order: an operating system guarantees none."""
    listdir, scandir = os.listdir, os.scandir

    class Backwards:
        def __init__(self, *where: Any) -> None:
            with scandir(*where) as entries:
                self.entries = iter(list(entries)[::-1])

        def __iter__(self) -> Iterator[Any]:
            return self.entries

        def __next__(self) -> Any:
            return next(self.entries)

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def close(self) -> None:
            pass

    with contextlib.ExitStack() as patches:
        patches.enter_context(
            patch.multiple(os, listdir=lambda *where: listdir(*where)[::-1], scandir=Backwards),
        )
        for globber in vars(glob).values():  # from Python 3.13 on, that of pathlib keeps a scandir of its own
            if isinstance(globber, type) and getattr(globber, "scandir", None) is scandir:
                patches.enter_context(patch.object(globber, "scandir", Backwards))
        yield


if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    sys.path[:] = asked["path"]
    with contextlib.redirect_stdout(sys.stderr):  # what the plugin prints
        answered = _answer(asked)
    sys.stdout.write(json.dumps(answered))
