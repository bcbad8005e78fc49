"""The host: processors, memory, limits of the process, shared memory, clock, variables of launchers."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from toolkit import formatting
from toolkit.doctor.examination import Finding
from toolkit.errors import UnavailableError
from toolkit.system import control_group, distributed, environment_variables
from toolkit.system.disk import free_bytes
from toolkit.system.environment_variables import THREADS
from toolkit.system.threads import granted_processors

LIBRARIES_BYTES = 10**9
"""Memory that a process takes before its first tensor: 0.7 GB with torch for CPUs, more with CUDA's."""
SMALL_SHARED_MEMORY_BYTES = 2**30
NO_LIMIT_BYTES = 2**60
"""Version 1 of control groups writes a number for no limit: the largest."""
FEW_FILES = 1024
"""Open files from which on data-loader workers and sockets of many processes have come to an end elsewhere."""
CLOCK_SECONDS = 300
"""Seconds by which clocks may differ; authentication and certificates stand five minutes."""


def processors(affinity: int, environ: Mapping[str, str], root: Path = Path("/")) -> Iterator[Finding]:
    """Threads against the processors that the process may use.

    torch starts a thread for each processor that it sees. A container's limit on processor time hides none, so that
    threads in excess of it wait for each other at each barrier.
    """
    quota = control_group.processor_quota(root)
    usable = granted_processors(affinity, quota)
    limited = f", of which the container grants the time of {quota:g}" if quota is not None and quota < affinity else ""
    seen = f"{formatting.counted(affinity, 'processor')}{limited}"
    text = environ.get(THREADS, "")
    if not text:
        if usable < affinity:
            yield Finding(
                "note", f"{seen}: torch would start {affinity} threads, which wait for each other",
                f"{THREADS}={usable}",
            )  # fmt: skip
        else:
            yield Finding("ok", seen)
    elif not (text.isdecimal() and int(text)):
        yield Finding("note", f"{THREADS}={text} is no number of threads, so a run ignores it", f"unset {THREADS}")
    elif int(text) > usable:
        yield Finding("note", f"{THREADS}={text}, but {seen}", f"{THREADS}={usable}")
    elif int(text) == 1 and usable > 2:
        yield Finding("note", f"{THREADS}=1, which leaves {usable - 1} of {seen} idle", f"unset {THREADS}")
    else:
        yield Finding("ok", f"{seen}; {THREADS}={text}")


def memory(available: int, limit: int | None) -> Iterator[Finding]:
    """Memory that a process could still take (`available`, bytes), and the container's limit."""
    limited = limit is not None and limit < NO_LIMIT_BYTES
    seen = f"{formatting.size(available)} available" + f", within a limit of {formatting.size(limit or 0)}" * limited
    cure = "end other programs, or raise the limit (docker run --memory, Slurm --mem, a pod's resources)"
    if available < LIBRARIES_BYTES:
        yield Finding("problem", f"{seen}; torch and the other libraries alone take about 0.7 GB", cure)
    elif available < 2 * LIBRARIES_BYTES:
        yield Finding("note", f"{seen}, which is enough for a small model only", cure)
    else:
        yield Finding("ok", seen)


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Shared memory, through which data-loader workers and NCCL pass data."""
    if not folder.is_dir():
        yield Finding("ok", "this system has none")
        return
    free = free_bytes(folder)
    if free < SMALL_SHARED_MEMORY_BYTES:
        yield Finding(
            "note",
            f"{formatting.size(free)} free; with dataloader_num_workers, or several GPUs, a run may end with a bus "
            f"error or with NCCL's `No space left on device`",
            "docker run --shm-size 8g, or --ipc=host; in Kubernetes a volume emptyDir {medium: Memory} at /dev/shm",
        )
    else:
        yield Finding("ok", f"{formatting.size(free)} free")


def limits(
    limit_of: Callable[[int], tuple[int, int]] = resource.getrlimit, *, remote_memory: Path = Path("/dev/infiniband")
) -> Iterator[Finding]:
    """Limits of the process (ulimit) that end runs; `limit_of` gives the soft and the hard one."""
    hurt = []

    def soft(which: int) -> float:
        value = limit_of(which)[0]
        return float("inf") if value == resource.RLIM_INFINITY else value

    if (files := soft(resource.RLIMIT_NOFILE)) < FEW_FILES:
        hurt.append(Finding("note", f"{files:g} open files at most: data-loader workers need more", "ulimit -n 65536"))
    if (size := soft(resource.RLIMIT_FSIZE)) < float("inf"):
        shown = formatting.size(size)
        hurt.append(Finding("note", f"files of {shown} at most: a larger checkpoint fails", "ulimit -f unlimited"))
    if (space := soft(resource.RLIMIT_AS)) < float("inf"):
        hurt.append(
            Finding(
                "note",
                f"an address space of {formatting.size(space)}: torch reserves far more than it uses, above all for a "
                f"GPU",
                "ulimit -v unlimited; limit memory by a control group instead",
            )
        )
    if (seconds := soft(resource.RLIMIT_CPU)) < float("inf"):
        shown = formatting.duration(seconds)
        hurt.append(
            Finding("note", f"the system ends a process after {shown} of processor time", "ulimit -t unlimited")
        )
    if remote_memory.exists() and (locked := soft(resource.RLIMIT_MEMLOCK)) < float("inf"):
        hurt.append(
            Finding(
                "note",
                f"{formatting.size(locked)} of locked memory: NCCL cannot use InfiniBand with it",
                "ulimit -l unlimited; docker run --ulimit memlock=-1",
            )
        )
    yield from hurt or [Finding("ok", "none that is in a run's way")]


def clock(now: float, oldest: float) -> Iterator[Finding]:
    """The clock against a moment (`oldest`, seconds of the epoch) that has certainly passed."""
    shown = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if now < oldest - CLOCK_SECONDS:
        yield Finding(
            "problem",
            f"{shown}, which is before this toolkit was installed: no certificate of the Hub is valid then",
            "set the clock: timedatectl set-ntp true",
        )
    else:
        yield Finding("ok", shown)


def launcher(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that say that this process is one of several, and who has set them."""
    variables = dict(environ)
    cure = f"unset {' '.join((*distributed.RANK_VARIABLES, 'LOCAL_WORLD_SIZE', *distributed.RENDEZVOUS_VARIABLES))}"
    try:
        distributed.check(variables)
    except UnavailableError as error:
        yield Finding("problem", str(error).partition("; ")[0], cure)
        return
    processes = int(variables.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield Finding("ok", "none: a run here is a single process")
    elif environ.get("WORLD_SIZE") is None or "TORCHELASTIC_RUN_ID" in environ:
        yield Finding("ok", f"process {variables['RANK']} of the {processes} of a launcher")
    else:
        yield Finding(
            "problem",
            f"RANK={environ['RANK']} and WORLD_SIZE={processes}: a run would wait for {processes - 1} other "
            f"process{'es' * (processes > 2)} at {environ['MASTER_ADDR']}:{environ['MASTER_PORT']}, and fail after "
            f"five minutes if these variables are left over from another job",
            f"unless a launcher is to start the others: {cure}",
        )


def variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that would change a run's numbers if it did not ignore them."""
    if found := environment_variables.disturbing(environ):
        names = ", ".join(sorted(found))
        yield Finding("note", f"a run ignores these, because the recipe decides: {names}", f"unset {' '.join(found)}")
    else:
        yield Finding("ok", "none that changes numbers")
