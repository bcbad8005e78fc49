"""The exit status of a run comes through torchrun."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = [sys.executable, "-m", "toolkit.system.torchrun", "--standalone", "--nproc-per-node", "2", "--no-python"]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit $((2 * RANK))", 2), ("kill -9 $$$$", 137)])
def test_the_status_is_that_of_the_process_that_failed(script: str, status: int) -> None:
    # torchrun reads $$ as a $.
    done = subprocess.run([*TORCHRUN, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_sigterm_is_passed_on_and_told(tmp_path: Path) -> None:
    """And a process has the time that TORCH_ELASTIC_SHUTDOWN_TIMEOUT gives it."""
    # A signal within the milliseconds in which torch still starts its processes finds none to pass it on to.
    started = "sleep 3; echo ready"
    script = f"trap 'kill $!; touch {tmp_path}/saved-$RANK; exit 143' TERM; {started}; sleep 100 & wait"
    with subprocess.Popen([*TORCHRUN, "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert sorted(file.name for file in tmp_path.iterdir()) == ["saved-0", "saved-1"]
