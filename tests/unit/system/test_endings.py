"""Which of several endings explains the others, and what a process leaves behind for that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from toolkit.errors import InterruptedRun, LostProcessError, ToolkitError, UnavailableError
from toolkit.system import endings
from toolkit.system.endings import Ending, Kind, cause

GONE = LostProcessError("another process of this run has ended")
STOPPED = InterruptedRun("stopped by SIGTERM", signal_number=15)


def ended(rank: int, kind: Kind, at: int, text: str = "") -> Ending:
    return Ending(rank, kind, 3, text or f"{kind} {rank}", at)


@pytest.mark.parametrize(
    ("all_endings", "rank"),
    [
        ([], None),
        ([ended(0, "lost", 1), ended(1, "failed", 2)], 1),
        ([ended(0, "failed", 2), ended(1, "failed", 1)], 1),
        ([ended(1, "failed", 1, "the same"), ended(0, "failed", 2, "the same")], 0),
        ([ended(0, "interrupted", 3), ended(1, "failed", 9), ended(2, "lost", 1)], 1),
        ([ended(1, "interrupted", 1), ended(0, "interrupted", 2)], 0),
        ([ended(1, "lost", 1), ended(0, "interrupted", 2)], 0),
    ],
)
def test_the_one_that_failed_by_itself_explains_the_others(all_endings: list[Ending], rank: int | None) -> None:
    found = cause(all_endings)
    assert (found and found.rank) == rank


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [(UnavailableError("full"), "failed", 3), (STOPPED, "interrupted", 143), (GONE, "lost", 1)],
)
def test_last_words_are_left_in_the_file_of_torch(
    error: ToolkitError, kind: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    assert not endings.record(error, "error: words")  # nobody has asked for them
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "0")
    assert not endings.record(error, "error: words")  # torchrun shows them at its end, and this process at once
    monkeypatch.setenv("TOOLKIT_STARTED_BY", str(os.getppid()))
    assert endings.record(error, "error: words")
    (found,) = endings.read([file, tmp_path / "of a killed one"])
    assert (found.rank, found.kind, found.exit_status, found.text) == (0, kind, status, "error: words")
    shown = ProcessFailure(local_rank=0, pid=1, exitcode=status, error_file=str(file))
    assert json.loads(json.dumps(shown.message))["extraInfo"]["py_callstack"] == "error: words"
    monkeypatch.setenv("RANK", "1")
    assert not endings.record(error, "error: words")  # it also goes to that process's own log
