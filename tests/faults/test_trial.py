"""What a run saves, loads and exports at its end is tried before its first step, and leaves no trace."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import train, write_recipe
from toolkit.errors import InterruptedRun, RecipeError, ToolkitError
from toolkit.events import Message, TrainingStarted
from toolkit.lifecycle import trial_save

pytestmark = pytest.mark.usefixtures("cache")


def plugin(folder: Path, kind: str, name: str, source: str) -> None:
    """Write a plugin of the recipe's own."""
    file = folder / "plugins" / kind / f"{name}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'"""Made for a test."""\n\n{source}', encoding="utf-8")


OPTIMIZER = '''
from toolkit.api import Optimizer


class Secretive(Optimizer):
    """Keeps an object in its state, which torch saves and refuses to load."""

    def build(self, model, *, learning_rate, weight_decay, run):
        import torch

        class Momentum:
            pass

        globals()["Momentum"] = Momentum
        Momentum.__qualname__ = "Momentum"

        class Secretive(torch.optim.SGD):
            def step(self, closure=None):
                super().step(closure)
                self.state[self.param_groups[0]["params"][0]]["more"] = Momentum()

        return Secretive([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
'''
MODEL = '''
from toolkit.api import Model
from toolkit_plugins.model.gpt2 import GPT2


class {name}(Model):
    """A GPT-2, {what}."""

    def build(self, tokenizer, run):
        model = GPT2(num_hidden_layers=1, hidden_size=32).build(tokenizer, run)
        {change}
        return model
'''
EXPORTER = '''
from toolkit.api import Exporter, ToolkitError


class Fussy(Exporter):
    """Writes to no folder of its own, or refuses what it is given."""

    @property
    def folder(self):
        return "fussy"

    def export(self, model, tokenizer, folder, results, run):
        raise ToolkitError(f"not this one, of {run.rehearsal and 'the trial' or 'the run'}")
'''
REFUSED: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "a state that does not load": (
        "optimizer", "secretive", OPTIMIZER, {"optimizer": {"plugin": "secretive"}},
        "optimizer: the optimizer's state cannot be loaded from a checkpoint",
    ),
    "a config that is no JSON": (
        "model", "wordless", MODEL.format(name="Wordless", what="with a set in its config",
        change="model.config.words = {1, 2}"), {"model": {"plugin": "wordless"}},
        "model: a checkpoint of this model cannot be written",
    ),
    "weights that share memory": (
        "model", "shared", MODEL.format(name="Shared", what="with a weight that is part of another",
        change="model.transformer.ln_f.weight.data = model.transformer.wpe.weight.data[0]"),
        {"model": {"plugin": "shared"}}, "model: a checkpoint of this model cannot be written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_saved_or_loaded_is_refused_at_its_line_before_the_first_step(
    tmp_path: Path, case: tuple[str, str, str, dict[str, Any], str]
) -> None:
    kind, name, source, sections, message = case
    plugin(tmp_path, kind, name, source)
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], exporters=[], **sections)
    with pytest.raises(RecipeError, match=message):
        train(recipe)
    run = tmp_path / "runs" / "tiny"
    assert not (run / "metrics.jsonl").exists()
    assert not (run / trial_save.TRIAL_FOLDER).exists()


def test_an_exporter_that_refuses_does_so_before_the_first_step(tmp_path: Path) -> None:
    plugin(tmp_path, "exporter", "fussy", EXPORTER)
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], exporters=["fussy"])
    with pytest.raises(ToolkitError, match="of the trial"):
        train(recipe)
    assert not (tmp_path / "runs" / "tiny" / "metrics.jsonl").exists()


def test_an_upload_with_nothing_to_upload_is_refused_at_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    recipe = write_recipe(tmp_path, exporters=[{"plugin": "push-to-hub", "repo_id": "me/mine"}])
    with pytest.raises(RecipeError, match=r"exporters\[0\]: this exporter reads what another one has written"):
        train(recipe)


@pytest.mark.parametrize("memory", [[], [{"plugin": "lora", "r": 2}], ["low-memory-optimizer"]], ids=str)
def test_in_place_of_a_large_model_a_small_one_is_saved_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: list[Any]
) -> None:
    monkeypatch.setattr(trial_save, "MAX_COPIED_BYTES", 0)
    seen = []
    original = trial_save._export
    monkeypatch.setattr(
        trial_save,
        "_export",
        lambda subject, *rest: (seen.append(subject.model.config.hidden_size), original(subject, *rest)),
    )
    exporters = ["merge-lora" if memory and memory[0] != "low-memory-optimizer" else "model-folder"]
    result, events = train(write_recipe(tmp_path, memory=memory, exporters=exporters, training={"max_steps": 2}))
    assert (result.steps, seen) == (2, [64])
    assert not [event for event in events if isinstance(event, Message) and "not tested" in event.text]


def test_a_large_model_that_nobody_can_make_small_is_trained_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_save, "MAX_COPIED_BYTES", 0)
    plugin(tmp_path, "model", "plain", MODEL.format(name="Plain", what="as it is", change="pass"))
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], model={"plugin": "plain"}, training={"max_steps": 1})
    _, events = train(recipe)
    assert [event.text for event in events if isinstance(event, Message) and "not tested" in event.text] == [
        "saving is not tested beforehand: the model plain has no rehearse() that makes it small"
    ]


def test_a_signal_that_a_library_swallows_before_the_first_step_still_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow(*_: Any) -> None:
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trial_save, "_subject", swallow)
    with pytest.raises(InterruptedRun, match="before training"):
        train(write_recipe(tmp_path, training={"max_steps": 1}))
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_what_a_kill_in_the_trial_leaves_is_removed_by_the_next_start(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"max_steps": 1})
    result, _ = train(recipe)
    (result.folder / trial_save.TRIAL_FOLDER / "checkpoints").mkdir(parents=True)
    record = json.loads((result.folder / "run.json").read_text())
    (result.folder / "run.json").write_text(json.dumps(record | {"status": "running", "results": None}))
    _, events = train(recipe)
    assert not (result.folder / trial_save.TRIAL_FOLDER).exists()
    assert not any(isinstance(event, TrainingStarted) for event in events)
