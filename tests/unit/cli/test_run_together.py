"""`toolkit recipe run --processes N` before there is a second process; tests/faults has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import toolkit
from toolkit.api import Device
from toolkit.commands import resolve
from toolkit.errors import UnavailableError, UsageError
from toolkit.lifecycle.processes import GroupEnding, count, count_again

CARDS = Device("cuda", "NVIDIA X100", 80 * 2**30, count=4)
PROCESSOR = Device("cpu", "a processor", 2**33)


def test_what_is_wrong_is_said_once_and_before_any_process_starts(here: Path) -> None:
    assert "--processes none: a number" in toolkit("recipe", "run", "mine.yaml", "--processes", "none", status=2).err
    wrong = toolkit("recipe", "run", "mine.yaml", "--processes", "2", "--set", "model.hiden_size=3", status=2)
    assert wrong.err.count("no such option") == 1
    torchruns = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    within = toolkit("recipe", "run", "mine.yaml", "--processes", "2", status=2, **torchruns)
    assert "has already started 2 processes" in within.err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("wanted", "device", "number"), [("3", PROCESSOR, 3), ("auto", PROCESSOR, 1), ("auto", CARDS, 4), ("2", CARDS, 2)]
)
def test_how_many_are_started(wanted: str, device: Device, number: int) -> None:
    assert count(wanted, device) == number


def test_a_number_that_cannot_be() -> None:
    for wanted in ("0", "-1", "all"):
        with pytest.raises(UsageError, match="a number of processes, or auto"):
            count(wanted, CARDS)
    with pytest.raises(UnavailableError, match="this machine has 4 GPUs"):
        count("5", CARDS)


def test_a_restart_goes_on_with_the_gpus_that_are_left_if_the_recipe_is_elastic(here: Path) -> None:
    three, plain = Device("cuda", "NVIDIA X100", 80 * 2**30, count=3), resolve("mine.yaml")
    assert count_again(4, plain, CARDS) == 4
    assert count_again(2, plain, PROCESSOR) == 2
    with pytest.raises(UnavailableError, match="of 4 GPUs 3 are left"):
        count_again(4, plain, three)
    # Two sequences at a time of four: three processes cannot share them.
    assert count_again(4, resolve("mine.yaml", overrides={"training.elastic": True}), three) == 2


@pytest.mark.parametrize(
    ("status", "is_failure", "again"),
    [(137, True, True), (1, True, True), (2, True, False), (3, True, False), (143, False, False)],
)
def test_what_is_refused_or_was_stopped_is_not_started_again(status: int, is_failure: bool, again: bool) -> None:
    ending = GroupEnding(status, "", 0, is_failure=is_failure, logs=Path("logs"))
    assert ending.is_worth_a_restart == again


def test_max_restarts_is_for_several_processes(here: Path) -> None:
    assert "add --processes N" in toolkit("recipe", "run", "mine.yaml", "--max-restarts", "2", status=2).err
