"""Every two memory strategies exclude each other, and say why, or train together; their order never matters."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from tests.tiny import resolved, train, weights, write_recipe
from toolkit.api import Strategy
from toolkit.errors import RecipeError
from toolkit.registry import Registry

OPTIONS: dict[str, dict[str, Any]] = {
    "small-batch": {"micro_batch_size": 1},
    "gradient-checkpointing": {"every": 2},
    "chunked-loss": {"tokens": 20},
    "lora": {"r": 2},
}
"""What a tiny recipe needs them to be."""
NAMES = sorted(
    entry.name for entry in metadata.distribution("pretrain-toolkit").entry_points.select(group="toolkit.memory")
)


def declared(name: str) -> Strategy:
    strategy = Registry.discover().load("memory", name).model_validate(OPTIONS.get(name, {}))
    assert isinstance(strategy, Strategy)
    return strategy


UNFIT = "release-gradients cannot be used"
"""What is said where the settings of two strategies exclude each other, and not their claims."""
HERE = [name for name in NAMES if not declared(name).requires()]
"""Those that need neither a GPU nor a package."""


def pair(folder: Path, names: tuple[str, str]) -> Path:
    memory = [{"plugin": name, **OPTIONS.get(name, {})} for name in names]
    lora = {"exporters": ["merge-lora"]} if "lora" in names else {}
    return write_recipe(
        folder, "-".join(names), memory=memory, training={"max_steps": 2, "eval_steps": 2, "max_grad_norm": 0}, **lora
    )


def test_enough_of_them_are_tried() -> None:
    assert len(HERE) >= 9


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


EVERY_NTH = 5


def pairs() -> Iterator[ParameterSet]:
    """Every two; slow but for every fifth, and with auto, which makes some forty plans for each order, but for one."""
    for number, names in enumerate(itertools.combinations(HERE, 2)):
        is_slow = "lora" not in names if "auto" in names else number % EVERY_NTH > 0
        yield pytest.param(names, marks=pytest.mark.slow if is_slow else (), id="+".join(names))


@pytest.mark.parametrize("names", list(pairs()))
def test_together(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]) -> None:
    monkeypatch.setitem(os.environ, "TOOLKIT_CACHE", str(cache))
    shared = declared(names[0]).claims & declared(names[1]).claims
    recipes = [pair(tmp_path, names), pair(tmp_path, (names[1], names[0]))]
    refusals = [refusal(recipe) for recipe in recipes]
    if shared or UNFIT in refusals[0]:
        for said in refusals:
            assert UNFIT in said or all(name in said for name in names)
        return
    assert refusals == ["", ""]
    one, other = (weights(train(recipe)[0].folder) for recipe in recipes)
    assert one.keys() == other.keys()
    assert [name for name in one if not bool((one[name] == other[name]).all())] == []


def refusal(recipe: Path) -> str:
    try:
        resolved(recipe)
    except RecipeError as error:
        return str(error)
    return ""
