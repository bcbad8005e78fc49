"""The place of this process among those of a launcher other than torchrun: srun, or an MPI's mpirun.

Each sets variables of its own in its tasks. They are translated into torchrun's, which torch and accelerate read.
accelerate launch, Kubeflow and Ray set torchrun's themselves.

https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
https://docs.open-mpi.org/en/main/tuning-apps/environment-var.html
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import UnavailableError

FIRST_PORT, PORTS = 20_000, 10_000
"""Rendezvous ports, below those that Linux gives to clients. All processes of a job reckon the same one."""
HERE = "127.0.0.1"


@dataclass(frozen=True)
class LauncherVariables:
    """Names of a launcher's variables."""

    command: str
    size: str
    rank: str
    local_rank: str
    local_size: str
    job: tuple[str, ...] = ()
    """What differs from job to job and is the same in all of a job's tasks."""


LAUNCHERS = (
    LauncherVariables(
        "mpirun",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    LauncherVariables(
        "mpirun",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    LauncherVariables("mpirun", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    LauncherVariables(
        "srun",
        "SLURM_STEP_NUM_TASKS",  # and not SLURM_NTASKS, which a batch script has that is one process itself
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_STEP_TASKS_PER_NODE",
        ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ),
)
"""An MPI's come first: its mpirun may have started one daemon per host by srun, whose variables its tasks inherit."""
RANKS_ALONE = (*(launcher.rank for launcher in LAUNCHERS), "PMIX_RANK")
"""What says that there are several tasks, where nothing says how many."""
LAUNCHERS_VARIABLES = frozenset(
    name for one in LAUNCHERS for name in (one.size, one.rank, one.local_rank, one.local_size)
) | {"PMIX_RANK"}


def torchruns_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set for this task of another launcher; nothing if it is one process by itself.

    Raises:
        UnavailableError: what the launcher has set does not say where the processes can meet, or is incomplete.
    """
    several = [launcher for launcher in LAUNCHERS if environ.get(launcher.size, "1") != "1"]
    # srun --mpi=pmi2 sets PMI_SIZE too, but no rank on the host; then its own variables are the complete ones.
    for launcher in sorted(several, key=lambda one: one.local_rank not in environ):
        return _translated(launcher, environ)
    sizes = [launcher.size for launcher in LAUNCHERS if launcher.size in environ]
    stray = [name for name in RANKS_ALONE if environ.get(name, "0") != "0"]
    if stray and not sizes:
        raise UnavailableError(
            f"{stray[0]} is set to {environ[stray[0]]}, so there are several tasks, but not how many; start them by "
            f"torchrun; or, to run this task alone: env {' '.join(f'-u {name}' for name in stray)} toolkit ..."
        )
    return {}


def _translated(launcher: LauncherVariables, environ: Mapping[str, str]) -> dict[str, str]:
    unset = " ".join(f"-u {one}" for one in (launcher.size, *RANKS_ALONE) if one in environ)

    def number(name: str) -> int:
        if not environ.get(name, "").isdecimal():
            raise UnavailableError(
                f"{launcher.size} is set to {environ[launcher.size]}, so {launcher.command} has started several tasks, "
                f"but {name} is {'not set' if name not in environ else 'no number'}; start them by torchrun; or, to "
                f"run this task alone: env {unset} toolkit ..."
            )
        return int(environ[name])

    size, rank, local_rank = number(launcher.size), number(launcher.rank), number(launcher.local_rank)
    # Slurm gives counts per node, in short: 4(x2). All are alike, or torchrun's LOCAL_WORLD_SIZE would mean nothing.
    local_size = environ.get(launcher.local_size, str(size)).partition("(")[0].partition(",")[0]
    address = environ.get("MASTER_ADDR") or _address(launcher, environ, alone=local_size == str(size))
    job = "".join(environ.get(name, "") for name in launcher.job)
    return {
        "WORLD_SIZE": str(size),
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": local_size,
        "MASTER_ADDR": address,
        "MASTER_PORT": environ.get("MASTER_PORT") or str(FIRST_PORT + zlib.crc32(job.encode()) % PORTS),
    }


def _address(launcher: LauncherVariables, environ: Mapping[str, str], *, alone: bool) -> str:
    """The host of rank 0: this one if there is no other, else the first that Slurm lists."""
    if alone:
        return HERE
    if hosts := environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST"):
        return first_host(hosts)
    raise UnavailableError(
        f"{launcher.command} has started {environ[launcher.size]} tasks on several hosts, and does not say where they "
        f"meet; set MASTER_ADDR to the host of rank 0: mpirun -x MASTER_ADDR=HOST (Open MPI), -genv (MPICH, Intel)"
    )


def first_host(hosts: str) -> str:
    """The first host of Slurm's list: node07 of node[07-09,12],other1."""
    before, bracket, after = hosts.partition("[")
    if not bracket or "," in before:
        return before.partition(",")[0]
    numbers, _, rest = after.partition("]")
    return before + numbers.partition(",")[0].partition("-")[0] + rest.partition(",")[0]
