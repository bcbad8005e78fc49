"""What only a GPU can show: `make gpu` runs it; without one, each test is skipped."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import assert_same_run, callback, command, losses, texts, train, train_in_two, write_recipe
from toolkit.events import Message
from toolkit.system.device import detect

pytestmark = pytest.mark.skipif(detect().kind != "cuda", reason="needs a CUDA GPU")

MODEL = {"plugin": "gpt2", "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "dropout": 0.1}
RECIPES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"memory": ["mixed-precision"]},
    "fp16": {"training": {"precision": "fp16"}},
    "document mask": {"objective": {"document_mask": True}, "memory": ["mixed-precision"]},
    "accumulation": {"memory": [{"plugin": "small-batch", "micro_batch_size": 2}]},
    "lora": {"memory": [{"plugin": "lora", "lora_dropout": 0.1}], "exporters": ["merge-lora"]},
    "muon": {"optimizer": "muon", "memory": ["mixed-precision"]},
    "recomputed, in chunks": {"memory": ["gradient-checkpointing", "chunked-loss", "mixed-precision"]},
    "offloaded": {"memory": ["activation-offload", "mixed-precision"]},
    "weights in bf16": {"memory": ["weights-in-bf16"]},
    "adafactor": {"memory": ["low-memory-optimizer"]},
    "llama": {
        "model": {"plugin": "llama", "num_hidden_layers": 4, "hidden_size": 256, "num_key_value_heads": 2},
        "memory": ["mixed-precision"],
        "objective": {"document_mask": True},
    },
    "compiled": {"training": {"torch_compile": True}, "memory": ["mixed-precision"]},
}
ALIKE = {
    "recomputed": ["gradient-checkpointing"],
    "in chunks": ["chunked-loss"],
    "accumulation": [{"plugin": "small-batch", "micro_batch_size": 2}],
    "offloaded": ["activation-offload"],
}
SUM_ORDER_ON_GPU = 5e-4
"""Largest relative difference of a loss after eight steps that another order of fp32 sums, or another kernel, makes."""


def recipe_of(folder: Path, **sections: Any) -> Path:
    texts(folder, lines=3000)
    training = {"global_batch_size": 8, **sections.pop("training", {})}
    objective = {"block_size": 512, **sections.pop("objective", {})}
    return write_recipe(folder, **{"model": MODEL, "objective": objective, "training": training, **sections})


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_and_resumed_it_is_the_same_run_bit_for_bit(tmp_path: Path, name: str) -> None:
    recipe = recipe_of(tmp_path, **RECIPES[name])
    deterministic = "training.deterministic=true"
    whole, _ = train(recipe, deterministic, name="whole")
    parts = train_in_two(recipe, deterministic, name="parts", stop_after=5)
    assert_same_run(whole.folder, parts.folder)


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_exact_gives_the_same_losses(tmp_path: Path, name: str) -> None:
    model = {**MODEL, "dropout": 0.0}
    one = train(recipe_of(tmp_path, model=model), name="plain")[0]
    other = train(recipe_of(tmp_path, model=model, memory=ALIKE[name]), name="other")[0]
    expected = [loss for _, _, loss in losses(one.folder)]
    assert [loss for _, _, loss in losses(other.folder)] == pytest.approx(expected, rel=SUM_ORDER_ON_GPU)


def test_memory_that_runs_out_costs_a_step_and_no_more(tmp_path: Path) -> None:
    """The allocator is limited to less than the run has been seen to need."""
    import torch

    recipe = recipe_of(tmp_path, model={**MODEL, "dropout": 0.0}, training={"global_batch_size": 32})
    torch.cuda.reset_peak_memory_stats()
    whole, _ = train(recipe, name="whole")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        0.7 * torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        short, events = train(recipe, name="short")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory" in event.text for event in events if isinstance(event, Message))
    expected = [loss for _, _, loss in losses(whole.folder)]
    told = [loss for _, kind, loss in losses(short.folder) if kind != "memory"]
    assert told == pytest.approx(expected, rel=SUM_ORDER_ON_GPU)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    ending = f"def on_step_end(self, args, state, control, **k):\n    state.global_step == 5 and kill({int(number)})"
    callback(tmp_path, "ending", ending)
    training = {"save_steps": 2, "deterministic": True}
    recipe = recipe_of(tmp_path, plugin_paths=["plugins"], training=training)
    words = ("recipe", "run", str(recipe), "--json", "--set", "callbacks=[ending]")
    stopped = command(*words, cwd=tmp_path)
    stopped.communicate()
    assert stopped.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    shutil.rmtree(tmp_path / "plugins")
    callback(tmp_path, "ending", "pass")
    resumed = command(*words, cwd=tmp_path)
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    whole = command(*words, "--runs", "others", cwd=tmp_path)
    folders = [tmp_path / json.loads(answer)["folder"] for answer in (out, whole.communicate()[0])]
    assert_same_run(*folders)


@pytest.mark.parametrize("word", ["plan", "run"])
def test_a_signal_during_the_plan_ends_it_at_once(tmp_path: Path, word: str) -> None:
    """The plan of 96 layers takes a minute."""
    model = {"plugin": "gpt2", "num_hidden_layers": 96, "hidden_size": 1600}
    process = command("recipe", word, str(recipe_of(tmp_path, model=model)), cwd=tmp_path)
    assert process.stderr is not None
    while "planning memory" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
