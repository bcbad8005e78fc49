"""One process alone, or several of torchrun: what each decides from its environment, and without a process group."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from toolkit.errors import UnavailableError
from toolkit.system import distributed
from toolkit.system.launchers import LAUNCHERS_VARIABLES

VARIABLES = (
    *distributed.RANK_VARIABLES,
    *distributed.RENDEZVOUS_VARIABLES,
    *LAUNCHERS_VARIABLES,
    "LOCAL_WORLD_SIZE",
)
FOUR = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
"""What torchrun sets in the first of four processes."""
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"


@pytest.fixture(autouse=True)
def nothing_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "world_size", "rank", "local_rank"),
    [
        ({}, 1, 0, 0),
        (FOUR, 4, 0, 0),
        ({**FOUR, "RANK": "3", "LOCAL_RANK": "1"}, 4, 3, 1),
    ],
    ids=["alone", "the first", "the last, on the second host"],
)
def test_which_process_this_is(
    variables: dict[str, str], world_size: int, rank: int, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, variables)
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (world_size, rank, local_rank)
    assert distributed.is_main_process() == (rank == 0)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is set to 4, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK is set to 0, but WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ({"RANK": "2"}, "RANK is set to 2, but WORLD_SIZE, "),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "WORLD_SIZE is set to 4 and RANK is set to 0, but LOCAL_RANK, "),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is set to 0, but RANK"),
        ({"WORLD_SIZE": "", "RANK": ""}, "WORLD_SIZE is set to '', which is not a number"),
        ({**FOUR, "RANK": "-1"}, "RANK is set to '-1', which is not a number"),
        ({**FOUR, "LOCAL_RANK": "one"}, "LOCAL_RANK is set to 'one', which is not a number"),
        ({**FOUR, "LOCAL_WORLD_SIZE": "all"}, "LOCAL_WORLD_SIZE is set to 'all', which is not a number"),
        ({**FOUR, "RANK": "4"}, "RANK is set to 4, but the ranks of 4 processes end at 3"),
        ({**FOUR, "MASTER_ADDR": ""}, ", but MASTER_ADDR is not set"),
        ({**FOUR, "MASTER_PORT": ""}, ", but MASTER_PORT is not set"),
        ({**FOUR, "MASTER_PORT": "a"}, "MASTER_PORT is set to 'a', which is not a port"),
        ({**FOUR, "MASTER_PORT": "0"}, "MASTER_PORT is set to '0', which is not a port"),
        ({**FOUR, "MASTER_PORT": "65536"}, "MASTER_PORT is set to '65536', which is not a port"),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
            "is set to 4, so mpirun has started several tasks, but OMPI_COMM_WORLD_LOCAL_RANK is not set",
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "env -u PMI_SIZE -u PMI_RANK toolkit"),
        ({"PMIX_RANK": "3"}, "PMIX_RANK is set to 3, so there are several tasks"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "SLURM_PROCID is set to 1, so there are several tasks"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "but SLURM_LOCALID is not set"),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_RANK": "5",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
            },
            "set MASTER_ADDR to the host of rank 0",
        ),
    ],
)
def test_an_environment_in_which_processes_cannot_meet_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, variables)
    before = dict(os.environ)
    with pytest.raises(UnavailableError) as error:
        distributed.check()
    assert message in error.value.message
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        ({}, {}),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"SLURM_PROCID": "0"}),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_RANK": "0"}, {"OMPI_COMM_WORLD_SIZE": "1", "PMI_RANK": "0"}),
        ({"WORLD_SIZE": "1"}, {}),  # by RANK or WORLD_SIZE, accelerate would open a port for a rendezvous
        ({**FOUR, "WORLD_SIZE": "1"}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}),
        (FOUR, FOUR),
        ({**FOUR, "RANK": "3", "LOCAL_RANK": "1"}, {**FOUR, "RANK": "3", "LOCAL_RANK": "1"}),
        ({**FOUR, "SLURM_PROCID": "1"}, {**FOUR, "SLURM_PROCID": "1"}),
    ],
    ids=[
        "nothing",
        "a batch script",
        "mpirun -n 1",
        "only one",
        "torchrun with one",
        "torchrun",
        "torchrun, its last",
        "torchrun in each task of srun",
    ],
)
def test_what_is_one_process_or_torchruns_is_accepted(
    variables: dict[str, str], left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, variables)
    distributed.check()
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == left


def test_the_meeting_point_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, FOUR)
    assert distributed.meeting_point() == "127.0.0.1:29517"


def test_a_launch_is_known_by_an_id_that_was_drawn_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, FOUR)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert distributed.launch_id() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "0c7e")
    first = distributed.launch_id()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert first is not None
    assert distributed.launch_id() != first
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.launch_id() is None


def test_one_process_alone_needs_no_process_group() -> None:
    import torch

    distributed.join(on_cpu=True, timeout=timedelta(minutes=1))
    distributed.barrier()
    assert not torch.distributed.is_initialized()
    assert distributed.gathered("its own") == ["its own"]
    assert distributed.any_process(True, False) == (True, False)
    assert distributed.any_process() == ()
    assert distributed.by_main_process(lambda: 7) == 7
    assert distributed.main_process_first(lambda: 8) == 8


def refusing() -> int:
    raise UnavailableError("the disk is full")


def test_its_errors_are_its_own() -> None:
    with pytest.raises(UnavailableError, match="the disk is full"):
        distributed.by_main_process(refusing)
    with pytest.raises(UnavailableError, match="the disk is full"):
        distributed.main_process_first(refusing)


def test_an_error_of_the_transport_says_that_another_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import DistError

    errors = [DistError("timed out"), RuntimeError(GLOO), RuntimeError("shapes differ")]
    assert [distributed.have_lost_one(error) for error in errors] == [False, False, False]  # there is no other
    given(monkeypatch, FOUR)
    assert [distributed.have_lost_one(error) for error in errors] == [True, True, False]
