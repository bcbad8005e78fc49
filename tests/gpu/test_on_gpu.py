"""What only a GPU can show: `make gpu` runs it; without one, each test is skipped."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
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


@pytest.mark.skipif((detect().compute_capability or (0, 0)) < (8, 9), reason="needs a GPU that multiplies float8")
@pytest.mark.parametrize("compiled", [False, True])
def test_in_float8_it_learns_like_in_bf16_and_resumes_bit_for_bit(tmp_path: Path, compiled: bool) -> None:
    recipes = [recipe_of(tmp_path, name=name, memory=[name]) for name in ("fp8", "mixed-precision")]
    settings = ("training.deterministic=true", f"training.torch_compile={str(compiled).lower()}")
    whole, plain = (train(recipe, *settings, name=recipe.stem)[0] for recipe in recipes)
    expected = [loss for _, _, loss in losses(plain.folder)]
    assert expected != [loss for _, _, loss in losses(whole.folder)] == pytest.approx(expected, rel=0.02)
    assert_same_run(whole.folder, train_in_two(recipes[0], *settings, name="parts", stop_after=5).folder)


@pytest.mark.parametrize("heads_of_keys", [4, 2])
def test_attention_within_documents_is_that_of_a_mask(tmp_path: Path, heads_of_keys: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from toolkit.testing.bench import Bench
    from toolkit.training.document_attention import NAME, attend_within_documents
    from toolkit_plugins.objective.causal_lm import CausalLM

    bench = Bench(tmp_path, rehearsal=False)
    objective = CausalLM(block_size=512, document_mask=True)
    ids = torch.randint(8, 64, (4, 512), generator=torch.Generator().manual_seed(0))
    ids[torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.01] = bench.tokenizer.eos_token_id
    collated = objective.collator(bench.tokenizer)([{"input_ids": block, "seed": 0} for block in ids.numpy()])
    batch = {name: tensor.cuda() for name, tensor in collated.items()}
    found = []
    for device in (replace(detect(), kind="mps"), detect()):
        torch.manual_seed(0)
        sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=300, num_key_value_heads=heads_of_keys, **sizes)
        model = LlamaForCausalLM(config).cuda()
        attend_within_documents(model, objective, bench.tokenizer, replace(bench.run(device=device), precision="bf16"))
        assert (model.config._attn_implementation == NAME) is (device.kind == "cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        found.append((loss.item(), {name: weight.grad for name, weight in model.named_parameters()}))
    (masked, slopes), (loss, gradients) = found
    assert loss == pytest.approx(masked, rel=1e-3)
    for name, slope in slopes.items():
        assert (gradients[name] - slope).norm() < 0.02 * slope.norm(), name


@pytest.mark.parametrize("name", ["fp32", "bf16", "accumulation", "recomputed, in chunks", "compiled"])
def test_no_step_waits_for_the_gpu_unless_it_logs_evaluates_or_saves(tmp_path: Path, name: str) -> None:
    """torch raises an error where a step would wait."""
    body = """
def on_step_begin(self, args, state, control, **rest):
    if 3 <= state.global_step < 7:
        torch.cuda.set_sync_debug_mode("error")
def on_step_end(self, args, state, control, **rest):
    torch.cuda.set_sync_debug_mode("default")
"""
    callback(tmp_path, "no-waiting", body)
    training = {"logging_steps": 8, "eval_steps": 8, **RECIPES[name].get("training", {})}
    sections = {**RECIPES[name], "training": training}
    recipe = recipe_of(tmp_path, plugin_paths=["plugins"], callbacks=["no-waiting"], **sections)
    assert train(recipe)[0].steps == 8


def test_a_guard_that_judges_on_the_gpu_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.training import loss_guard

    recipe = recipe_of(tmp_path, training={"deterministic": True, "on_spike": "skip-batch", "max_steps": 30})
    on_gpu, _ = train(recipe, name="on-gpu")
    monkeypatch.setattr(loss_guard, "ASYNCHRONOUS_DEVICES", frozenset())
    on_host, _ = train(recipe, name="on-host")
    assert_same_run(on_gpu.folder, on_host.folder)


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
