"""metrics.jsonl while a run writes it: no line is lost to a disk that is full for a while."""

from __future__ import annotations

from typing import Any

from toolkit.host import DISK_FAULTS
from toolkit.progress import Listener, Message
from toolkit.run_directory import RunDirectory


class MetricsLog:
    """Adds lines to a run's metrics.jsonl; what the disk refuses is kept until it takes it."""

    def __init__(self, run: RunDirectory, listener: Listener) -> None:
        self.run = run
        self.listener = listener
        self._unwritten: list[dict[str, Any]] = []

    def write(self, line: dict[str, Any]) -> None:
        """Add a line, now or when the disk takes it."""
        refused_before = bool(self._unwritten)
        self._unwritten.append(line)
        try:
            self.flush()
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            if not refused_before:
                told = f"metrics.jsonl cannot be written ({error.strerror}); its lines are kept in memory until it can"
                self.listener(Message(told))

    def flush(self) -> None:
        """Write the lines that were refused.

        Raises:
            OSError: the disk refuses them still.
        """
        if self._unwritten:
            self.run.append_metrics(self._unwritten)
            self._unwritten = []
