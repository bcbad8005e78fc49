"""How each process of a run ended, told to the process that has started them: `recipe run --processes N`.

One of them fails, and the others fail because it is gone. Each writes its last words into the file that torch's elastic
launcher names in TORCHELASTIC_ERROR_FILE, in torch's format, so that torchrun shows them, too; `cause` finds the one
that failed by itself. https://docs.pytorch.org/docs/stable/elastic/errors.html
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.errors import InterruptedRun, LostProcessError, ToolkitError
from toolkit.system import distributed

Kind = Literal["failed", "interrupted", "lost"]
KINDS: tuple[Kind, ...] = ("failed", "interrupted", "lost")
"""From cause to consequence."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
STARTED_BY = "TOOLKIT_STARTED_BY"
"""The number of the process that has started this one, and tells its last words for it."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ending:
    """How one process ended."""

    rank: int
    kind: Kind
    exit_status: int
    text: str
    """What it would have written to standard error."""
    at: int
    """In nanoseconds of the epoch."""


def is_of_a_group() -> bool:
    """Whether `recipe run --processes N` has started this process."""
    return os.environ.get(STARTED_BY) == str(os.getppid())


def end_with_the_group() -> None:
    """Have this process stopped, by SIGTERM, if the one that has started it dies; Linux alone can do that."""
    if sys.platform == "linux" and is_of_a_group():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def record(error: BaseException, text: str) -> bool:
    """Leave the last words of this process.

    Returns:
        Whether somebody else shows them, so that this process need not.
    """
    if not (file := os.environ.get(ERROR_FILE)):
        return False
    extra = {
        "py_callstack": text,
        "timestamp": str(int(time.time())),
        "rank": distributed.rank(),
        "kind": _kind(error),
        "exit_status": error.exit_status if isinstance(error, ToolkitError) else 1,
        "at": time.time_ns(),
    }
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")
        return is_of_a_group() and distributed.is_main_process()  # the others' output goes to a file of their own
    return False


def read(files: Iterable[Path]) -> list[Ending]:
    """The last words that were left in these files; what a killed process has left is not among them."""
    found = []
    for file in files:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            message = json.loads(file.read_text(encoding="utf-8"))["message"]
            extra = message["extraInfo"]
            ending = Ending(
                extra["rank"], extra["kind"], extra["exit_status"], str(message["message"]), int(extra["at"])
            )
            found.append(ending)
    return found


def cause(endings: Iterable[Ending]) -> Ending | None:
    """The ending that explains the others: what failed by itself, and first; of equal ones, that of the lowest rank."""
    ordered = sorted(endings, key=lambda ending: (KINDS.index(ending.kind), ending.at))
    if not ordered:
        return None
    first = ordered[0]
    alike = [ending for ending in ordered if (ending.kind, ending.text) == (first.kind, first.text)]
    if first.kind == "interrupted":  # all were: the main process knows what is saved
        alike = [ending for ending in ordered if ending.kind == "interrupted"]
    return min(alike, key=lambda ending: ending.rank)


def _kind(error: BaseException) -> Kind:
    if isinstance(error, InterruptedRun):
        return "interrupted"
    if isinstance(error, LostProcessError) or (
        not isinstance(error, ToolkitError) and distributed.have_lost_one(error)
    ):
        return "lost"
    return "failed"
