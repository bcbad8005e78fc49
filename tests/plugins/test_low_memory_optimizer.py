"""Optimizers by transformers' names: what they need, what they take from the recipe, and that they resume."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import assert_same_run, resolved, train, train_in_two, write_recipe
from toolkit.errors import RecipeError
from toolkit.recipe.identity import identity

LLAMA = {"plugin": "llama", "num_hidden_layers": 2, "hidden_size": 32}
PACKAGE = {"adamw-8bit": "bitsandbytes", "galore": "galore_torch", "apollo": "apollo_torch"}


def entry(optimizer: str) -> dict[str, Any]:
    return {"plugin": "low-memory-optimizer", "optimizer": optimizer, "rank": 4}


@pytest.mark.parametrize("optimizer", PACKAGE)
def test_the_package_that_is_missing_and_what_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr("toolkit.recipe.strategies.find_spec", lambda name: None)
    recipe = write_recipe(tmp_path, memory=[entry(optimizer)])
    with pytest.raises(
        RecipeError, match=rf"pip install {PACKAGE[optimizer]}, or use optimizer: adafactor, which needs no package"
    ):
        resolved(recipe)
    assert resolved(write_recipe(tmp_path, memory=[entry("adafactor")])).training.optim == "adafactor"


def test_the_recipe_cannot_ask_for_another_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, memory=[entry("adafactor")], optimizer="muon")
    with pytest.raises(RecipeError, match="optimizer: muon is set here, but low-memory-optimizer brings its"):
        resolved(recipe)


def test_a_resolved_recipe_is_the_same_again(tmp_path: Path) -> None:
    first = resolved(write_recipe(tmp_path, memory=[entry("adafactor")]))
    (tmp_path / "again.yaml").write_text(first.to_yaml(), encoding="utf-8")
    assert identity(resolved(tmp_path / "again.yaml")) == identity(first)


@pytest.mark.parametrize("optimizer", PACKAGE)
def test_with_its_package_it_trains_and_resumes_exactly(tmp_path: Path, optimizer: str) -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    pytest.importorskip(PACKAGE[optimizer], exc_type=ImportError)
    recipe = write_recipe(tmp_path, model=LLAMA, memory=[entry(optimizer)], training={"weight_decay": 0.1})
    whole, _ = train(recipe, name="whole")
    assert_same_run(whole.folder, train_in_two(recipe, name="resumed", stop_after=3).folder)


@pytest.mark.parametrize("optimizer", ["galore", "apollo"])
def test_gpt2_has_no_matrices_to_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    monkeypatch.setattr("toolkit.recipe.strategies.find_spec", lambda name: True)
    with pytest.raises(RecipeError, match=rf"memory\[0\].optimizer: {optimizer} projects .* take adafactor"):
        train(write_recipe(tmp_path, memory=[entry(optimizer)]))
