"""Every two memory strategies exclude each other, and say why, or train together; their order never matters."""

from __future__ import annotations

import itertools
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


EXCLUSIVE = {
    ("frozen-layers", "lora"): "{second} and {first} exclude each other: both manage the trainable-parameters",
    ("mixed-precision", "weights-in-bf16"): "{second} and {first} exclude each other: both manage the precision",
    ("release-gradients", "small-batch"): "release-gradients cannot be used",
    ("release-gradients", "shard"): "{second} and {first} exclude each other: both manage the gradients",
    ("shard", "weights-in-bf16"): "{second} and {first} exclude each other: both manage the weights",
    ("low-memory-optimizer", "shard"): "shard cannot be used: adafactor needs whole matrices",
}
"""Those that exclude each other, and what is said of them in this order; all others go together."""
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


EVERY_NTH = 12


def pairs() -> Iterator[ParameterSet]:
    """Every two that go together; slow but for every twelfth, and with auto, which makes some forty plans an order."""
    together = [names for names in itertools.combinations(HERE, 2) if names not in EXCLUSIVE]
    for number, names in enumerate(together):
        is_slow = "auto" in names or number % EVERY_NTH > 0
        yield pytest.param(names, marks=pytest.mark.slow if is_slow else (), id="+".join(names))


@pytest.mark.parametrize(("names", "why"), EXCLUSIVE.items(), ids=map("+".join, EXCLUSIVE))
def test_what_excludes_each_other_is_refused_in_either_order(tmp_path: Path, names: tuple[str, str], why: str) -> None:
    for order in (names, names[::-1]):
        said = refusal(pair(tmp_path, order))
        assert why.format(first=order[0], second=order[1]) in said


@pytest.mark.parametrize("names", list(pairs()))
def test_together(tmp_path: Path, names: tuple[str, str]) -> None:
    recipes = [pair(tmp_path, names), pair(tmp_path, names[::-1])]
    assert [refusal(recipe) for recipe in recipes] == ["", ""]
    one, other = (weights(train(recipe)[0].folder) for recipe in recipes)
    assert one.keys() == other.keys()
    assert [name for name in one if not bool((one[name] == other[name]).all())] == []


def refusal(recipe: Path) -> str:
    try:
        resolved(recipe)
    except RecipeError as error:
        return str(error)
    return ""
