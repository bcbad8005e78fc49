"""Processors, memory, limits, shared memory, clock and left-over variables of machines that are broken in one place."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from toolkit.doctor import host
from toolkit.doctor.examination import Finding
from toolkit.system import control_group

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}


def only(findings: Iterable[Finding]) -> Finding:
    (one,) = findings
    return one


def granting(root: Path, text: str) -> Path:
    """A root with a control group that grants so much processor time."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/job\n")
    (root / "sys/fs/cgroup/job").mkdir(parents=True)
    (root / "sys/fs/cgroup/job/cpu.max").write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "affinity", "environ", "level", "words", "cure"),
    [
        ("max 100000", 8, {}, "ok", "8 processors", ""),
        ("200000 100000", 64, {}, "note", "torch would start 64 threads", "OMP_NUM_THREADS=2"),
        ("50000 100000", 64, {}, "note", "the time of 0.5", "OMP_NUM_THREADS=1"),
        ("200000 100000", 64, {"OMP_NUM_THREADS": "2"}, "ok", "OMP_NUM_THREADS=2", ""),
        ("200000 100000", 64, {"OMP_NUM_THREADS": "16"}, "note", "OMP_NUM_THREADS=16, but 64", "OMP_NUM_THREADS=2"),
        ("max 100000", 8, {"OMP_NUM_THREADS": "1"}, "note", "leaves 7 of 8 processors idle", "unset OMP_NUM_THREADS"),
        ("max 100000", 2, {"OMP_NUM_THREADS": "1"}, "ok", "2 processors", ""),
        ("max 100000", 2, {"OMP_NUM_THREADS": "all"}, "note", "no number of threads", "unset OMP_NUM_THREADS"),
    ],
)
def test_threads_are_held_against_what_the_container_grants(
    quota: str, affinity: int, environ: Mapping[str, str], level: str, words: str, cure: str, tmp_path: Path
) -> None:
    finding = only(host.processors(affinity, environ, granting(tmp_path, quota)))
    assert finding.level == level
    assert words in finding.found
    assert finding.cure == cure


def test_processor_time_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/\n3:cpu,cpuacct:/outer/inner\n")
    for name, quota in (("outer", "150000"), ("outer/inner", "-1")):
        folder = tmp_path / "sys/fs/cgroup/cpu" / name
        folder.mkdir(parents=True)
        (folder / "cpu.cfs_quota_us").write_text(quota)
        (folder / "cpu.cfs_period_us").write_text("100000")
    assert control_group.processor_quota(tmp_path) == 1.5
    assert control_group.processor_quota(tmp_path / "nowhere") is None


def test_memory_that_the_libraries_alone_would_take() -> None:
    assert [only(host.memory(size, None)).level for size in (3 * 10**8, 15 * 10**8, 10**10)] == [
        "problem",
        "note",
        "ok",
    ]
    assert "within a limit of 4.00 GB" in only(host.memory(2 * 10**9, 4 * 10**9)).found
    assert "limit" not in only(host.memory(10**10, 2**63 - 4096)).found  # version 1's way to say that there is none


def test_shared_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(host.shared_memory(tmp_path / "none")).level == "ok"
    monkeypatch.setattr("toolkit.doctor.host.free_bytes", lambda folder: 64 * 2**20)
    small = only(host.shared_memory(tmp_path))
    assert small.level == "note"
    assert "--shm-size" in small.cure


@pytest.mark.parametrize(
    ("which", "soft", "cure"),
    [
        (resource.RLIMIT_NOFILE, 256, "ulimit -n"),
        (resource.RLIMIT_FSIZE, 10**9, "ulimit -f"),
        (resource.RLIMIT_AS, 10**9, "ulimit -v"),
        (resource.RLIMIT_CPU, 3600, "ulimit -t"),
        (resource.RLIMIT_MEMLOCK, 65536, "ulimit -l"),
    ],
)
def test_limits_of_the_process(which: int, soft: int, cure: str, tmp_path: Path) -> None:
    def limit_of(asked: int) -> tuple[int, int]:
        return (soft if asked == which else resource.RLIM_INFINITY), resource.RLIM_INFINITY

    finding = only(host.limits(limit_of, remote_memory=tmp_path))
    assert finding.level == "note"
    assert finding.cure.startswith(cure)
    if which == resource.RLIMIT_MEMLOCK:  # which hurts with InfiniBand alone
        assert only(host.limits(limit_of, remote_memory=tmp_path / "none")).level == "ok"


def test_a_clock_before_the_installation() -> None:
    assert only(host.clock(0.0, 1.7e9)).level == "problem"
    assert only(host.clock(1.8e9, 1.7e9)).level == "ok"


@pytest.mark.parametrize(
    ("environ", "level", "words"),
    [
        ({}, "ok", "a single process"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "ok", "a single process"),
        ({"WORLD_SIZE": "4"}, "problem", "WORLD_SIZE is set to 4, but RANK"),
        (TORCHRUN, "problem", "a run would wait for 3 other processes at 127.0.0.1:29517"),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "a"}, "ok", "process 1 of the 4"),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"},
            "ok",
            "process 1 of the 2",
        ),
        ({"PMIX_RANK": "3"}, "problem", "PMIX_RANK is set to 3"),
    ],
)
def test_variables_of_a_launcher(environ: Mapping[str, str], level: str, words: str) -> None:
    finding = only(host.launcher(environ))
    assert finding.level == level
    assert words in finding.found
    assert finding.level == "ok" or "unset WORLD_SIZE RANK LOCAL_RANK" in finding.cure


def test_variables_that_a_run_ignores() -> None:
    assert only(host.variables({"PATH": "/bin"})).level == "ok"
    finding = only(host.variables({"ACCELERATE_MIXED_PRECISION": "bf16"}))
    assert finding.level == "note"
    assert finding.cure == "unset ACCELERATE_MIXED_PRECISION"
