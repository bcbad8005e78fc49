"""The memory that a container or a job may have, read from files as Linux has them."""

from pathlib import Path

import pytest

from toolkit.system import control_group

GIB = 2**30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n", encoding="ascii")
    return root


def test_the_tightest_of_the_groups_around_the_process_counts(tmp_path: Path) -> None:
    """Slurm's job and systemd's unit lie inside of others, and the outermost has no file of a limit at all."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/job_7/step_0",
            "sys/fs/cgroup/system.slice/memory.max": 64 * GIB,
            "sys/fs/cgroup/system.slice/memory.current": 10 * GIB,
            "sys/fs/cgroup/system.slice/job_7/memory.max": 8 * GIB,
            "sys/fs/cgroup/system.slice/job_7/memory.current": 3 * GIB,
            "sys/fs/cgroup/system.slice/job_7/step_0/memory.max": "max",
        },
    )
    assert control_group.limit_bytes(root) == 8 * GIB
    assert control_group.left_bytes(root) == 5 * GIB


def test_pages_of_files_are_not_held_against_it(tmp_path: Path) -> None:
    """A checkpoint that was written lies in the group's page cache until somebody needs the memory."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": 4 * GIB,
            "sys/fs/cgroup/memory.current": 3 * GIB,
            "sys/fs/cgroup/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file 0",
        },
    )
    assert control_group.left_bytes(root) == 3 * GIB


@pytest.mark.parametrize("mounted", ["docker/abc/", ""])
def test_the_first_version_of_the_interface_is_read_too(tmp_path: Path, mounted: str) -> None:
    """In a container it shows the host's path, and mounts the container's own group in the place of the root."""
    folder = f"sys/fs/cgroup/memory/{mounted}"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc",
            f"{folder}memory.limit_in_bytes": 2 * GIB,
            f"{folder}memory.usage_in_bytes": GIB,
            f"{folder}memory.stat": f"cache 5\ntotal_inactive_file {GIB // 2}",
        },
    )
    assert control_group.limit_bytes(root) == 2 * GIB
    assert control_group.left_bytes(root) == GIB + GIB // 2


@pytest.mark.parametrize("files", [{}, {"proc/self/cgroup": "0::/user.slice", "sys/fs/cgroup/memory.max": "max"}])
def test_without_a_limit_there_is_none(tmp_path: Path, files: dict[str, object]) -> None:
    assert control_group.limit_bytes(write(tmp_path, files)) is None
    assert control_group.left_bytes(tmp_path) is None
