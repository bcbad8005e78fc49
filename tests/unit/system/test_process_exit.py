"""How the process of a command ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import atexit, sys
from toolkit.cli import main
def as_a_command():
{body}
main.toolkit.callback = as_a_command
main.main()
"""
IN_NATIVE_CODE = """
import threading, torch
numbers = torch.ones(1000, 1000)
computing = threading.Event()
def compute():
    while True:
        numbers @ numbers
        computing.set()
threading.Thread(target=compute, daemon=True).start()
computing.wait()
sys.exit(0)
"""


def end_of(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=lines), "run", "list"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_thread_that_still_needs_the_interpreter_does_not_abort_it(tmp_path: Path) -> None:
    """Without `without_finalization`, Python 3.11 aborts it here; under load, gloo's own threads do the same."""
    done = end_of(IN_NATIVE_CODE, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("ending", "status"), [("pass", 0), ("sys.exit(7)", 7), ("sys.exit('no')", 1), ("1 / 0", 1)])
def test_what_is_still_open_is_written_and_the_status_kept(tmp_path: Path, ending: str, status: int) -> None:
    body = f"""
file = sys.modules["kept"] = open("written", "w")
raw = sys.modules["also kept"] = open("bytes", "wb")
file.write("all of it")
raw.write(b"and this")
atexit.register(lambda: file.write("; at exit, too"))
{ending}
"""
    done = end_of(body, tmp_path)
    assert done.returncode == status, done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (ending == "1 / 0")
    assert (tmp_path / "written").read_text() == "all of it; at exit, too"
    assert (tmp_path / "bytes").read_bytes() == b"and this"
