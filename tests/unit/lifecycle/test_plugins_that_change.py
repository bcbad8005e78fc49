"""An unfinished run outlives a new version of one of its plugins: what it has not heard of is the default."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.tiny import resolved, train, write_recipe
from toolkit.errors import InterruptedRun, RecipeError
from toolkit.lifecycle.comparison import differences
from toolkit.storage.runs_folder import open_run

FIRST = '''
"""A strategy of an outsider."""

from pydantic import Field

from toolkit.api import Strategy


class Halving(Strategy):
    """Halve the head's weight at the start."""

    fidelity = "different"

    share: float = 0.5
    """What the weight is multiplied by."""

    def apply(self, model, run):
        model.get_output_embeddings().weight.data *= self.share
        return model
'''
SECOND = FIRST.replace(
    "    def apply",
    '    layers: int = Field(default=0, ge=0)\n    """Layers to halve as well."""\n\n    def apply',
)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of a run that was stopped in the middle."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    install(tmp_path, FIRST)
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], memory=["halving"])
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    return recipe


def install(folder: Path, code: str) -> None:
    """Write this version of the plugin, and forget the one that was imported."""
    file = folder / "plugins" / "memory" / "halving.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code, encoding="utf-8")
    for name in [name for name in sys.modules if name.startswith("_toolkit_local_")]:
        del sys.modules[name]


def found(recipe: Path, *overrides: str) -> dict[str, str]:
    return differences(open_run(recipe.parent / "runs" / "tiny"), resolved(recipe, *overrides))


def test_a_new_option_with_a_default_leaves_the_run_resumable(begun: Path) -> None:
    install(begun.parent, SECOND)
    assert found(begun) == {}
    assert train(begun)[0].steps == 8


def test_a_new_option_with_another_value_is_named(begun: Path) -> None:
    install(begun.parent, SECOND)
    assert found(begun, "memory=[{plugin: halving, layers: 1}]") == {
        "memory.halving.layers": "the run has its default, 0, the recipe now says 1"
    }


def test_a_changed_default_is_named_as_that(begun: Path) -> None:
    install(begun.parent, FIRST.replace("share: float = 0.5", "share: float = 0.25"))
    assert found(begun) == {
        "memory.halving.share": (
            "its default has changed from 0.5 to 0.25 since the run began; to resume, write share: 0.5 there"
        )
    }
    assert found(begun, "memory=[{plugin: halving, share: 0.5}]") == {}


def test_settings_that_became_a_strategys_own_leave_the_run_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    memory = ["chunked-loss", "weights-in-bf16"]
    recipe = write_recipe(tmp_path, memory=memory)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    run = open_run(tmp_path / "runs" / "tiny")
    set_before = {"training.loss_chunk_size": 256, "training.stochastic_rounding": True}
    run.update(identity={**run.record["identity"], **set_before})
    assert found(recipe) == {}
    written = write_recipe(tmp_path, memory=memory, training={"loss_chunk_size": 256, "stochastic_rounding": True})
    assert found(written) == {}, "a resolved recipe of then"


def test_a_setting_that_became_a_strategy_says_which(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"loss_chunk_size": 256})
    with pytest.raises(RecipeError, match=r"training.loss_chunk_size: this is now memory: \[chunked-loss\]; add that"):
        resolved(recipe)
