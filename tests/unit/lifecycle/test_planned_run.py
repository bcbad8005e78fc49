"""A run plans its memory before it begins, whether `auto` chooses or a person did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import resolved, train, write_recipe
from toolkit.errors import RecipeError
from toolkit.events import Event, Message, Progressed
from toolkit.lifecycle.launch import run
from toolkit.planning.choose import with_choice
from toolkit.planning.plan import peak_bytes
from toolkit.planning.variants import candidates
from toolkit.recipe.resolve import load, resolve
from toolkit.system.device import detect

HALVED = '''
"""Made for a test."""

from toolkit.api import Strategy


class Halved(Strategy):
    """Half of the global batch at a time."""

    claims = frozenset({"batch"})
    fidelity = "exact"

    @classmethod
    def candidates(cls, settings, device):
        return [cls()]

    def changes(self, settings, device):
        from toolkit.api import Change

        return {"micro_batch_size": Change(settings.global_batch_size // 2, "made for a test")}
'''
LOOKS = """
    def apply(self, model, run):
        assert float(next(model.parameters()).detach().sum()) != 0
        return model
"""
LOOKING_MODEL = '''
"""Made for a test."""

from toolkit.api import Model


class Halved(Model):
    """GPT-2, with half of its first weight."""

    def build(self, tokenizer, run):
        import torch
        from toolkit_plugins.model.gpt2 import GPT2

        model = GPT2(num_hidden_layers=1, hidden_size=16, num_attention_heads=1).build(tokenizer, run)
        with torch.no_grad():
            first = next(model.parameters())
            first[0, 0] = float(first[0, 0]) / 2
        return model
'''


def plugin(folder: Path, code: str, *, kind: str = "memory") -> None:
    (folder / kind).mkdir(parents=True)
    (folder / kind / "halved.py").write_text(code, encoding="utf-8")


def test_it_is_planned_without_auto_too(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    result, events = train(recipe)
    assert result.planned_memory_bytes == peak_bytes(resolved(recipe))
    assert not any("planned peak" in event.text for event in events if isinstance(event, Message))


def test_too_much_for_the_machine_is_told_before_it_begins(tmp_path: Path) -> None:
    recipe = resolved(write_recipe(tmp_path))
    small = replace(recipe, device=replace(recipe.device, memory_bytes=10 * 2**20))
    events: list[Event] = []
    run(small, runs=tmp_path / "runs", listener=events.append)
    (told,) = [event.text for event in events if isinstance(event, Message) and "planned peak" in event.text]
    assert "exceeds the 10.5 MB available here" in told
    assert "memory: [auto]" in told


@pytest.mark.parametrize("memory", [[], ["auto"]])
def test_a_block_longer_than_the_text_is_refused_before_it_is_planned(tmp_path: Path, memory: list[str]) -> None:
    recipe = resolved(
        write_recipe(tmp_path, memory=memory, objective={"plugin": "causal-lm", "block_size": 100_000_000})
    )
    events: list[Event] = []
    with pytest.raises(RecipeError, match=r"yaml:\d+:\d+: objective\.block_size: the training documents have .* bytes"):
        run(recipe, runs=tmp_path / "runs", listener=events.append)
    assert not any(isinstance(event, Progressed) and event.phase == "planning memory" for event in events)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("memory", [["halved"], ["auto"]])
def test_what_cannot_be_planned_is_trained_all_the_same(tmp_path: Path, memory: list[str]) -> None:
    if memory == ["auto"]:  # a model that looks at its weights
        plugin(tmp_path / "plugins", LOOKING_MODEL, kind="model")
        recipe = write_recipe(tmp_path, memory=memory, plugin_paths=["plugins"], model="halved")
    else:
        plugin(tmp_path / "plugins", HALVED + LOOKS)
        recipe = write_recipe(tmp_path, memory=memory, plugin_paths=["plugins"])
    result, events = train(recipe)
    assert result.planned_memory_bytes is None
    assert any("no plan can be made" in event.text for event in events if isinstance(event, Message))


def test_auto_knows_the_plugins_of_folders_that_only_the_command_names(tmp_path: Path) -> None:
    plugin(tmp_path / "elsewhere", HALVED)
    read = load(str(write_recipe(tmp_path, memory=["auto"])), plugin_folders=[tmp_path / "elsewhere"])
    recipe = resolve(read, detect())
    assert "halved" in [part.name for part in candidates(recipe)]
    chosen = with_choice(recipe, {"strategies": [{"plugin": "halved"}], "save_in_background": None})
    assert chosen.training.micro_batch_size == 2
