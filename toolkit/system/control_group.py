"""Limits of containers and batch jobs on memory and processor time: Linux control groups (cgroups).

Groups nest; each may have a limit, and the tightest one counts. Both versions of the interface are read.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Files:
    """File names in one version of the interface."""

    folder: str
    limit: str
    used: str
    reclaimable: str
    """Key in memory.stat: page cache that the kernel drops before it kills. A checkpoint leaves its own size there."""


VERSIONS = {
    "": Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": Files("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the controller in a line of /proc/self/cgroup; version 2 names none."""
CPU_FOLDERS = {"": "sys/fs/cgroup", "cpu": "sys/fs/cgroup/cpu"}
"""Where the groups of processor time are, likewise."""


def processor_quota(root: Path = Path("/")) -> float | None:
    """The tightest limit on this process's processor time, in processors (1.5, say); None if there is none."""
    return min((quota for _, folder in _folders(root, CPU_FOLDERS) if (quota := _quota(folder))), default=None)


def limit_bytes(root: Path = Path("/")) -> int | None:
    """The tightest memory limit on this process; None if there is none."""
    return min((limit for limit, _ in _groups(root)), default=None)


def left_bytes(root: Path = Path("/")) -> int | None:
    """The least memory left in any of the process's groups; None if there is no limit."""
    return min((limit - used for limit, used in _groups(root)), default=None)


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage of each group that has a limit, from the process's own outwards."""
    for controller, folder in _folders(root, {name: files.folder for name, files in VERSIONS.items()}):
        files = VERSIONS[controller]
        limit = _number(folder / files.limit)
        if limit is not None:
            yield limit, (_number(folder / files.used) or 0) - _reclaimable(folder / "memory.stat", files)


def _folders(root: Path, mounts: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """The controller and the folder of each of the process's groups, from its own outwards."""
    own = root / "proc/self/cgroup"
    if not own.exists():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        controller = next((name for name in controllers.split(",") if name in mounts), None)
        if controller is None:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, while the container's own group is what is mounted.
        for place in (inner, *inner.parents):
            yield controller, root / mounts[controller] / place


def _quota(folder: Path) -> float | None:
    """The processors' time that one group may take: in cpu.max, or in two files of version 1, where -1 is no limit."""
    both = folder / "cpu.max"
    if both.exists():
        quota, period = both.read_text(encoding="ascii").split()
        return int(quota) / int(period) if quota.isdigit() else None
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us else None


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no such file, or it says `max`."""
    text = file.read_text(encoding="ascii").strip() if file.exists() else ""
    return int(text) if text.isdigit() else None


def _reclaimable(stat: Path, files: Files) -> int:
    lines = stat.read_text(encoding="ascii").splitlines() if stat.exists() else []
    return next((int(line.split()[1]) for line in lines if line.split()[0] == files.reclaimable), 0)
