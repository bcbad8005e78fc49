"""What memory strategies declare is merged, and their conflicts are derived from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_recipe
from toolkit.api import Device
from toolkit.errors import PluginError, RecipeError
from toolkit.recipe.identity import identity
from toolkit.recipe.resolve import ResolvedRecipe, load, resolve

CPU = Device(kind="cpu", name="a CPU", memory_bytes=2**33)
BF16_CPU = Device(kind="cpu", name="a CPU with bf16", memory_bytes=2**33, bf16=True)
T4 = Device(kind="cuda", name="Tesla T4", memory_bytes=2**34, compute_capability=(7, 5))

STRATEGY = '''
"""A strategy of the tests."""

from toolkit.api import Change, Requirement, Strategy


class Strategy(Strategy):
    """Does what the test says."""

    fidelity = "exact"
    claims = frozenset({claims})

    def requires(self):
        return [{requires}]

    def changes(self, settings, device):
        return {changes}
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plugins" / "memory").mkdir(parents=True)
    return tmp_path


def strategy(folder: Path, name: str, *, claims: str = "()", requires: str = "", changes: str = "{}") -> str:
    code = STRATEGY.replace("{claims}", claims).replace("{requires}", requires).replace("{changes}", changes)
    (folder / "plugins" / "memory" / f"{name}.py").write_text(code, encoding="utf-8")
    return name


def resolved(folder: Path, *memory: Any, device: Device = CPU, **training: Any) -> ResolvedRecipe:
    recipe = write_recipe(folder, plugin_paths=["plugins"], memory=list(memory), training=training)
    return resolve(load(str(recipe)), device)


def test_their_order_does_not_matter(folder: Path) -> None:
    first = resolved(folder, "gradient-checkpointing", {"plugin": "small-batch", "micro_batch_size": 2})
    second = resolved(folder, {"plugin": "small-batch", "micro_batch_size": 2}, "gradient-checkpointing")
    assert first.training == second.training
    assert identity(first) == identity(second)
    assert (first.training.micro_batch_size, first.training.gradient_checkpointing) == (2, True)
    assert first.training.global_batch_size == 4


@pytest.mark.parametrize("name", ["shard", "frequent-saves"])
def test_what_determines_no_numbers_is_not_part_of_a_runs_identity(folder: Path, name: str) -> None:
    assert identity(resolved(folder, name)) == identity(resolved(folder))
    assert identity(resolved(folder, "gradient-checkpointing")) != identity(resolved(folder))


def test_shards_of_a_host_need_no_gpu_but_their_offload_does(folder: Path) -> None:
    training = resolved(folder, {"plugin": "shard", "within_host": True}).training
    assert (training.shard, training.shard_within_host, training.shard_cpu_offload) == (True, True, False)
    with pytest.raises(RecipeError, match=r"shard needs a cuda device.*leave out cpu_offload"):
        resolved(folder, {"plugin": "shard", "cpu_offload": True})
    with pytest.raises(RecipeError, match="fp16's loss scaler knows no shards"):
        resolved(folder, "shard", precision="fp16")


@pytest.mark.parametrize(
    ("device", "precision", "why"),
    [(BF16_CPU, "bf16", "in hardware"), (T4, "fp16", "no bf16"), (CPU, "fp32", "would be slower")],
)
def test_mixed_precision_takes_what_the_device_has_and_says_why(
    folder: Path, device: Device, precision: str, why: str
) -> None:
    recipe = resolved(folder, "mixed-precision", device=device)
    assert recipe.training.precision == precision
    value, origin = recipe.origins()["training.precision"]
    assert (value, origin.partition(":")[0]) == (precision, "mixed-precision")
    assert why in origin
    assert f"precision: {precision} # {origin}" in recipe.to_yaml()


def test_fidelity_is_the_lowest_of_all(folder: Path) -> None:
    assert resolved(folder).fidelity == "exact"
    assert resolved(folder, "small-batch", "mixed-precision").fidelity == "approximate"
    assert resolved(folder, "lora", "small-batch", "mixed-precision").fidelity == "different"


def test_two_holders_of_one_claim_exclude_each_other(folder: Path) -> None:
    rival = strategy(folder, "rival", claims="{'batch'}")
    with pytest.raises(RecipeError, match=r"rival and small-batch exclude each other: both manage the batch"):
        resolved(folder, "small-batch", rival)


def test_a_claim_may_be_a_word_that_the_toolkit_does_not_know(folder: Path) -> None:
    first, second = (strategy(folder, name, claims="{'sparsity'}") for name in ("first", "second"))
    with pytest.raises(RecipeError, match=r"second and first exclude each other: both manage the sparsity"):
        resolved(folder, first, second)
    assert resolved(folder, first)


def test_one_setting_has_one_value(folder: Path) -> None:
    other = strategy(folder, "other", changes="{'micro_batch_size': Change(1)}")
    with pytest.raises(RecipeError, match="other sets micro_batch_size to 1 and small-batch sets it to 2"):
        resolved(folder, "small-batch", other)
    assert resolved(folder, {"plugin": "small-batch", "micro_batch_size": 1}, other).training.micro_batch_size == 1


def test_what_the_person_wrote_is_not_overruled(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"training.micro_batch_size: set to 4 here, but small-batch .* sets it to 2"):
        resolved(folder, "small-batch", micro_batch_size=4)
    assert resolved(folder, "small-batch", micro_batch_size=2).training.micro_batch_size == 2


def test_requirements_are_claims_devices_and_packages(folder: Path) -> None:
    for requirement, message in {
        "Requirement('claim', 'precision')": "needs another strategy that manages the precision",
        "Requirement('claim', 'sparsity')": "needs another strategy that manages the sparsity",
        "Requirement('device', 'cuda')": "needs a cuda device, but this machine has: a CPU",
        "Requirement('package', 'no_such_package', 'wait')": "pip install no_such_package, or wait",
    }.items():
        needy = strategy(folder, "needy", requires=requirement)
        with pytest.raises(RecipeError, match=message):
            resolved(folder, needy)
        (folder / "plugins" / "memory" / "needy.py").unlink()
        clear_local_plugins()
    needy = strategy(folder, "needy", requires="Requirement('claim', 'precision')")
    assert resolved(folder, needy, "mixed-precision")


def test_no_strategy_changes_what_the_recipe_asked_for(folder: Path) -> None:
    greedy = strategy(folder, "greedy", changes="{'global_batch_size': Change(1)}")
    with pytest.raises(PluginError, match="global_batch_size, which only the recipe may set"):
        resolved(folder, greedy)
    typo = strategy(folder, "typo", changes="{'micro_batch': Change(1)}")
    with pytest.raises(PluginError, match="did you mean 'micro_batch_size'"):
        resolved(folder, typo)


def clear_local_plugins() -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("_toolkit_local_")]:
        del sys.modules[name]
