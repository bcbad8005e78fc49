"""muP: activations move alike at every width, nothing changes at the base, and a run resumes with its rates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tests.tiny import assert_same_run, from_, train, train_in_two, weights, write_recipe
from toolkit.api import Optimizer, RunContext
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.optimizer.adamw import AdamW
from toolkit_plugins.optimizer.muon import Muon
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

WIDTHS, HEAD_SIZE = (64, 128, 256, 512), 16
STEPS = 4
LAYERS = {GPT2: "transformer.h.", Llama: "model.layers."}
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "tie_word_embeddings": False}


@pytest.fixture
def tokenizer(run_context: RunContext) -> PreTrainedTokenizerBase:
    return ByteBPE(vocab_size=300).build(["some words, and some more words"] * 3, run_context)


def activations(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of all matrices and layers, by the module's name."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update(
                {name: (output[0] if isinstance(output, tuple) else output).detach()}
            )
        )
        for name, module in model.named_modules()
        if getattr(module, "weight", torch.zeros(0)).ndim == 2 or name[:-1] in LAYERS.values()
    ]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def growth(
    plugin: type[GPT2 | Llama],
    optimizer: Optimizer,
    widths: tuple[int, ...],
    tokenizer: PreTrainedTokenizerBase,
    run: RunContext,
    *,
    base: int | None,
) -> dict[str, float]:
    """How far each activation moves in a few steps, as an exponent of the width.

    The coordinate check of Yang et al. 2022 (https://arxiv.org/abs/2203.03466, appendix D.1): the slope of the mean
    absolute change over the width, both in logarithms.
    """
    tokens = torch.randint(len(tokenizer), (4, 32), generator=torch.Generator().manual_seed(1))
    moved: dict[str, list[float]] = {}
    for width in widths:
        torch.manual_seed(0)
        model = plugin(
            num_hidden_layers=2,
            hidden_size=width,
            num_attention_heads=width // HEAD_SIZE,
            tie_word_embeddings=False,
            mup_base_hidden_size=base,
        ).build(tokenizer, run)
        built = optimizer.build(model, learning_rate=1e-3, weight_decay=0.1, run=run)
        before = activations(model, tokens)
        for _ in range(STEPS):
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            built.step()
            built.zero_grad()
        for name, after in activations(model, tokens).items():
            moved.setdefault(name, []).append(math.log2((after - before[name]).abs().mean().item()))
    steps = torch.log2(torch.tensor(widths, dtype=torch.float64))
    steps -= steps.mean()
    return {name: float(steps @ torch.tensor(row).double() / (steps @ steps)) for name, row in moved.items()}


@pytest.mark.parametrize("plugin", [GPT2, Llama])
@pytest.mark.parametrize(
    ("optimizer", "widths"),
    # Newton-Schulz on matrices of width 512 would take most of a minute.
    [(AdamW(betas=(0.9, 0.95)), WIDTHS), (Muon(), WIDTHS[:3])],
    ids=["adamw", "muon"],
)
def test_with_mup_activations_move_alike_at_every_width_and_without_it_more_at_larger_ones(
    plugin: type[GPT2 | Llama],
    optimizer: Optimizer,
    widths: tuple[int, ...],
    tokenizer: PreTrainedTokenizerBase,
    run_context: RunContext,
) -> None:
    with_mup = growth(plugin, optimizer, widths, tokenizer, run_context, base=widths[0])
    without = growth(plugin, optimizer, widths, tokenizer, run_context, base=None)
    assert len(with_mup) == {GPT2: 13, Llama: 18}[plugin]
    # Measured: at most 0.12 with AdamW and, for the first layer of few columns, 0.26 with Muon.
    assert {name: slope for name, slope in with_mup.items() if slope > 0.3} == {}
    outputs = [f"{LAYERS[plugin]}0", f"{LAYERS[plugin]}1", "lm_head"]
    assert {name: without[name] for name in outputs if without[name] < 0.5} == {}


@pytest.mark.parametrize("plugin", ["gpt2", "llama"])
def test_at_the_base_width_it_is_the_run_without_it(tmp_path: Path, plugin: str) -> None:
    models = [{"plugin": plugin, **SMALL, **mup} for mup in ({}, {"mup_base_hidden_size": 32})]
    runs = [train(write_recipe(tmp_path, model=model), name=f"run-{n}")[0] for n, model in enumerate(models)]
    assert_same_run(runs[0].folder, runs[1].folder)


@pytest.mark.parametrize("plugin", ["gpt2", "llama"])
def test_what_is_exported_is_an_ordinary_model(tmp_path: Path, plugin: str) -> None:
    result, _ = train(write_recipe(tmp_path, model={"plugin": plugin, **SMALL, "mup_base_hidden_size": 16}))
    assert result.model_folder is not None
    assert "mup" not in (result.model_folder / "config.json").read_text(encoding="utf-8")
    loaded = AutoModelForCausalLM.from_pretrained(result.model_folder)
    assert type(loaded).__module__.startswith("transformers.models")
    exported = weights(result.folder)
    assert "lm_head.weight" in exported
    assert all(torch.equal(value, exported[name]) for name, value in loaded.state_dict().items())


RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "muon": {"optimizer": "muon"},
    "adafactor": {"memory": ["low-memory-optimizer"]},
    "weights in bf16, released": {
        "memory": ["weights-in-bf16", "release-gradients"],
        "training": {"max_grad_norm": 0, "weight_decay": 0.1},
    },
}
SLOW = {"muon", "adafactor"}
"""Whose parts the others have as well."""


def with_mup(folder: Path, **sections: Any) -> Path:
    """A recipe whose model is twice as wide as the base; it saves every second step."""
    model = {"plugin": "llama", **SMALL, "mup_base_hidden_size": 16}
    training = {"weight_decay": 0.1, "save_steps": 2, "save_total_limit": 9} | sections.pop("training", {})
    return write_recipe(folder, model=model, training=training, **sections)


def rates(run: Path, step: int) -> set[float]:
    """The learning rates in a checkpoint, before the schedule."""
    state = torch.load(run / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
    return {group["initial_lr"] for group in state["param_groups"]}


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(sections, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, sections in RECIPES.items()
    ],
)
def test_it_resumes_with_its_learning_rates(tmp_path: Path, sections: dict[str, Any]) -> None:
    recipe = with_mup(tmp_path, **sections)
    whole, _ = train(recipe)
    assert {5e-4, 1e-3} <= rates(whole.folder, 8)
    assert_same_run(whole.folder, train_in_two(recipe, name="resumed", stop_after=3).folder)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_branch_keeps_its_learning_rates_unless_they_are_changed(tmp_path: Path, optimizer: str) -> None:
    recipe = with_mup(tmp_path, optimizer=optimizer)
    whole, _ = train(recipe)
    same, _ = from_(recipe, "tiny@4", name="same")
    expected, found = weights(whole.folder), weights(same.folder)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    faster, _ = from_(recipe, "tiny@4", "training.learning_rate=4e-3", name="faster")
    assert rates(faster.folder, 8) - {0.02} == {2e-3, 4e-3}  # beside Muon's own


@pytest.mark.slow
def test_a_branch_may_change_the_base_and_its_optimizer_begins_anew(tmp_path: Path) -> None:
    recipe = with_mup(tmp_path)
    train(recipe)
    other, _ = from_(recipe, "tiny@4", "model.mup_base_hidden_size=32", name="other-base")
    assert rates(other.folder, 8) == {1e-3}
    record = json.loads((other.folder / "run.json").read_text(encoding="utf-8"))
    assert any("mup_base_hidden_size" in change for change in record["parent"]["changes"])
