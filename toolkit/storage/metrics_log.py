"""What happens in a run: a line in metrics.jsonl, and an event for whoever shows the run.

No line is lost to a disk that is full for a while.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from toolkit.events import Event, Listener, Message
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed
from toolkit.system.disk import DISK_FAULTS


class MetricsLog:
    """Appends lines to a run's metrics.jsonl, in its main process, and tells the run's listener of them.

    What the disk refuses is kept in memory until it can be written.
    """

    def __init__(self, run: RunDirectory, listener: Listener) -> None:
        self.run = run
        self.listener = listener
        self._unwritten: list[dict[str, Any]] = []
        self._end = run.metrics_file.stat().st_size if run.metrics_file.exists() else 0
        """Size of the file up to the last complete write."""

    def write(self, line: dict[str, Any], event: Event | None = None) -> None:
        """Append a line, now or when the disk takes it, and then tell the listener."""
        if distributed.is_main_process():
            self._append(line)
        if event is not None:
            self.listener(event)

    def _append(self, line: dict[str, Any]) -> None:
        refused_before = bool(self._unwritten)
        self._unwritten.append(line)
        try:
            self.flush()
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            if not refused_before:
                told = f"metrics.jsonl cannot be written ({error.strerror}); its lines stay in memory until it can be"
                self.listener(Message(told))

    def flush(self) -> None:
        """Write the pending lines: all of them, or none.

        Raises:
            OSError: the disk refuses them.
        """
        if not self._unwritten:
            return
        text = "".join(json.dumps(line) + "\n" for line in self._unwritten).encode()
        with self.run.metrics_file.open("ab", buffering=0) as file:
            if file.tell() > self._end:  # left by a failed write, which may have failed only on close
                file.truncate(self._end)
            if file.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += len(text)
        self._unwritten = []
