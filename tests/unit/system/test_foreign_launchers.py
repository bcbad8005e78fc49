"""The place of a task among those of srun and mpirun, from the variables that each of them sets."""

from __future__ import annotations

import pytest

from toolkit.system.launchers import first_host, torchruns_variables

SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[07-08]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-812@1",
    "PMIX_RANK": "1",
}
MPICH = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_tasks_of_srun_meet_at_the_first_host() -> None:
    place = torchruns_variables(SRUN)
    port = place.pop("MASTER_PORT")
    assert place == {
        "WORLD_SIZE": "8",
        "RANK": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node07",
    }
    assert 1024 < int(port) < 32768
    assert torchruns_variables({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})["MASTER_PORT"] == port
    assert torchruns_variables({**SRUN, "SLURM_JOB_ID": "4712"})["MASTER_PORT"] != port
    chosen = torchruns_variables({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"})
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("10.0.0.7", "4000")


@pytest.mark.parametrize("environ", [OPEN_MPI, MPICH], ids=["Open MPI", "MPICH"])
def test_tasks_of_mpirun_on_one_host_meet_there(environ: dict[str, str]) -> None:
    place = torchruns_variables(environ)
    assert {name: place[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")} == {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
    }


def test_of_two_launchers_the_inner_one_or_the_complete_one_counts() -> None:
    """Open MPI's mpirun has Slurm start a daemon on each host; srun --mpi=pmi2 sets PMI_SIZE besides its own."""
    daemon = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", **OPEN_MPI}
    assert torchruns_variables(daemon)["RANK"] == "1"
    assert torchruns_variables({**SRUN, "PMI_SIZE": "8", "PMI_RANK": "5"})["WORLD_SIZE"] == "8"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"PMI_SIZE": "1"},
    ],
    ids=["nothing", "a batch script", "srun of one task", "mpirun -n 1"],
)
def test_a_single_task_is_a_single_process(environ: dict[str, str]) -> None:
    assert torchruns_variables(environ) == {}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[07-09,12],other1", "node07"),
        ("a1,node[07-09]", "a1"),
        ("rack2-n[3,5].cluster,b", "rack2-n3.cluster"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
