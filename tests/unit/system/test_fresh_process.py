"""An interpreter that works for another process ends with it, at whatever moment that ends."""

from __future__ import annotations

import subprocess
import sys

WORK = """
import os, time
from toolkit.system.fresh_process import connection_to_parent
connection_to_parent(os.dup(0))
time.sleep(300)
"""


def test_it_also_ends_where_its_parent_has_ended_while_it_started() -> None:
    """Then it has another parent by the time it looks who that is."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-c", WORK, str(gone.pid)]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=120, check=False).returncode == 1
