"""Checks and their findings: each check in a thread with a deadline, because a file system or a network may hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import ToolkitError

Level = Literal["ok", "note", "problem"]

DEADLINE_SECONDS = 15.0
"""Seconds from the start of all checks that each has, unless it says otherwise."""


@dataclass(frozen=True)
class Finding:
    """What a check has found, and what to do about it."""

    level: Level
    """`problem`: a run would fail; `note`: it would be slow, or something could be lost."""
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Examined:
    """A check with what it has found."""

    check: str
    looked_at: str
    findings: Sequence[Finding]


@dataclass(frozen=True)
class Examination:
    """A check that has yet to be made."""

    check: str
    looked_at: str
    look: Callable[[], Iterable[Finding]]
    seconds: float = DEADLINE_SECONDS
    if_late: Level = "note"
    """Level of the finding that it did not come to an end."""

    def findings(self) -> list[Finding]:
        """Look; what goes wrong with the look is a finding, too."""
        try:
            return list(self.look())
        except ToolkitError as error:  # the sentence with which a run would end
            return [Finding("problem", *_sentence_and_cure(error))]
        except Exception as error:  # noqa: BLE001 - whatever a machine does to a look, the other checks go on
            return [Finding("note", f"could not be checked: {type(error).__name__}: {error}")]


def examine(examinations: Iterable[Examination]) -> Iterator[Examined]:
    """Begin all of these at once, and yield each as it is done or its time is over, in this order.

    A thread that hangs is left behind: it ends with the process.
    """
    begun = time.monotonic()
    started = [(one, *_started(one)) for one in examinations]
    for one, thread, findings in started:
        thread.join(max(0.0, begun + one.seconds - time.monotonic()))
        late = [Finding(one.if_late, f"no answer within {one.seconds:g} seconds")]
        yield Examined(one.check, one.looked_at, late if thread.is_alive() else findings)


def _started(examination: Examination) -> tuple[threading.Thread, list[Finding]]:
    findings: list[Finding] = []
    thread = threading.Thread(target=lambda: findings.extend(examination.findings()), name="examination", daemon=True)
    thread.start()
    return thread, findings


def _sentence_and_cure(error: ToolkitError) -> tuple[str, str]:
    """Our messages say what is wrong and, after a semicolon, what to do."""
    found, _, cure = str(error).partition("; ")
    return found, cure
