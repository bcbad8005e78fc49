"""What a container, or a job of a batch system, may have of the machine's memory: Linux's control groups.

A process lies in a group, that in another, and so on; each may have a limit, and the tightest counts. Both versions
of the interface are read. https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Files:
    """How a version of the interface calls things."""

    folder: str
    limit: str
    used: str
    reclaimable: str
    """In memory.stat: pages of files that the kernel drops before it kills anybody. A checkpoint leaves its size."""


VERSIONS = {
    "": Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": Files("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the controllers in a line of /proc/self/cgroup."""


def limit_bytes(root: Path = Path("/")) -> int | None:
    """The tightest limit that this process is under; None if there is none."""
    return min((limit for limit, _ in _groups(root)), default=None)


def left_bytes(root: Path = Path("/")) -> int | None:
    """What the tightest group has left; None if there is no limit."""
    return min((limit - used for limit, used in _groups(root)), default=None)


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each group with a limit, from the process's own outwards."""
    own = root / "proc/self/cgroup"
    if not own.exists():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        files = next((VERSIONS[name] for name in controllers.split(",") if name in VERSIONS), None)
        if files is None:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, and what is mounted there the container's own group.
        for place in (inner, *inner.parents):
            folder = root / files.folder / place
            limit = _number(folder / files.limit)
            if limit is not None:
                yield limit, (_number(folder / files.used) or 0) - _reclaimable(folder / "memory.stat", files)


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no file, or no limit."""
    text = file.read_text(encoding="ascii").strip() if file.exists() else ""
    return int(text) if text.isdigit() else None


def _reclaimable(stat: Path, files: Files) -> int:
    lines = stat.read_text(encoding="ascii").splitlines() if stat.exists() else []
    return next((int(line.split()[1]) for line in lines if line.split()[0] == files.reclaimable), 0)
