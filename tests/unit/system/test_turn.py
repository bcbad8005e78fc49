"""One works, the others wait and see how far it is; a dead process holds nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.errors import UnavailableError
from toolkit.system.turn import Holder, turn

HOLDER = """
import sys, pathlib
from toolkit.system import turn
turn.SECONDS_BETWEEN_WORDS = 0
with turn.turn(pathlib.Path(sys.argv[1]), wait=print, patience=9) as tell:
    tell("tokenizing", 3, 10, "characters")
    print("working", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "tokens"


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it reads a line."""
    command = [sys.executable, "-c", HOLDER, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "working\n"
        yield process
        process.kill()


@pytest.mark.parametrize("end", ["killed", "done"])
def test_it_is_free_as_soon_as_its_holder_ends(lock: Path, holder: subprocess.Popen[str], end: str) -> None:
    seen: list[Holder | None] = []

    def wait(now: Holder | None) -> None:
        seen.append(now)
        if holder.poll() is None:
            holder.kill() if end == "killed" else holder.communicate("\n")

    with turn(lock, wait=wait, patience=60):
        assert holder.wait() == (-9 if end == "killed" else 0)
        assert seen[0]
        assert (seen[0].process, seen[0].phase, seen[0].done, seen[0].total) == (holder.pid, "tokenizing", 3, 10)
        assert str(seen[0]) == f"process {holder.pid}"
    assert list(lock.parent.iterdir()) == []


def test_who_makes_no_progress_is_not_waited_for_forever(lock: Path, holder: subprocess.Popen[str]) -> None:
    told = f"process {holder.pid} is preparing the same data, and has made no progress for 100 ms; .*ddp_timeout"
    with pytest.raises(UnavailableError, match=told), turn(lock, wait=print, patience=0.1):
        pytest.fail("two have it")


def test_what_a_killed_holder_left_says_nothing_of_the_next(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.system.turn.SECONDS_BETWEEN_WORDS", 3600)
    lock.parent.mkdir()
    lock.write_text("not JSON")
    with turn(lock, wait=print, patience=1) as tell:
        tell("reading")
        assert "reading" not in lock.read_text()  # said a moment ago that it has begun
