"""The record of the software and the device of a run, and the look at the device before it begins."""

from __future__ import annotations

import logging
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import resolved, write_recipe
from toolkit import __version__
from toolkit.api import Device
from toolkit.errors import UnavailableError
from toolkit.lifecycle.environment import check_device, environment
from toolkit.recipe.resolve import ResolvedRecipe

CARD = Device("cuda", "NVIDIA X100", 80 * 2**30, count=2)


@pytest.fixture
def recipe(tmp_path: Path) -> ResolvedRecipe:
    return resolved(write_recipe(tmp_path))


def test_the_record_has_what_can_change_the_numbers_and_no_variable(
    recipe: ResolvedRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    written = environment(replace(recipe, device=CARD))
    assert written["toolkit"] == __version__
    assert written["python"] == platform.python_version()
    assert torch.__version__.startswith(written["packages"]["torch"])  # +cu130 is not in the name of the index's wheel
    assert written["packages"].keys() >= {"transformers", "tokenizers", "accelerate", "peft", "numpy"}
    assert written["plugins"] == [f"pretrain-toolkit {__version__}"]
    assert (written["processes"], written["threads"]) == (1, torch.get_num_threads())
    assert written["device"] == {"kind": "cuda", "name": "NVIDIA X100", "memory_bytes": 80 * 2**30, "count": 2}
    assert "hf_secret" not in str(written)


@pytest.mark.parametrize(
    ("device", "cards", "variables", "message"),
    [
        (Device("cpu", "a processor", 2**33), 0, {}, None),
        (Device("mps", "Apple GPU", 2**33), 0, {}, None),
        (CARD, 2, {}, None),
        (CARD, 2, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, None),
        (CARD, 0, {}, f"torch {torch.__version__} cannot use the NVIDIA X100 of this machine"),
        (
            CARD,
            2,
            {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"},
            "LOCAL_RANK is set to 2, but this machine has 2 GPUs",
        ),
    ],
    ids=["processor", "Apple's", "cards", "a process for each", "not for torch", "a process too many"],
)
def test_torch_must_be_able_to_use_what_was_detected(
    recipe: ResolvedRecipe,
    device: Device,
    cards: int,
    variables: dict[str, str],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = replace(recipe, device=device)
    if message is None:
        check_device(asked)
        return
    with pytest.raises(UnavailableError) as error:
        check_device(asked)
    assert message in error.value.message


@pytest.mark.parametrize(
    ("count", "variables", "told"),
    [
        (1, {}, False),
        (2, {}, True),
        (2, {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, False),
        (2, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, False),
    ],
)
def test_cards_that_one_process_leaves_idle_are_told_of(
    recipe: ResolvedRecipe,
    count: int,
    variables: dict[str, str],
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, logger="toolkit"):
        check_device(replace(recipe, device=replace(CARD, count=count)))
    assert [f"using one of {count} GPUs" in line for line in caplog.messages] == [True] * told
