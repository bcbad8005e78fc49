"""What a plan says is what the real thing takes: counted on real tensors, on small models of several kinds."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.planned import RATES, SMALL
from tests.tiny import command, resolved, write_recipe
from toolkit.api import Device
from toolkit.errors import PluginError, RecipeError
from toolkit.planning.devices import known
from toolkit.planning.fake_step import trace
from toolkit.planning.kernels import as_on
from toolkit.planning.plan import Plan, make_plan
from toolkit.planning.trace import Trace, Work
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.resolve import ResolvedRecipe, load, resolve

MODELS = {
    "gpt2": {"plugin": "gpt2", **SMALL, "dropout": 0.1},
    "llama": {"plugin": "llama", **SMALL, "num_key_value_heads": 1},
}

MODEL = '''
"""A model that the toolkit does not know."""

from toolkit.api import Model


class Own(Model):
    """Llama, with a memory of its own."""

    def build(self, tokenizer, run):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        ))
        model.register_buffer("memory", torch.zeros(1000))
        {looks}
        return model
'''


def recipe_for(folder: Path, **sections: Any) -> ResolvedRecipe:
    return resolved(write_recipe(folder, **sections))


def traced(recipe: ResolvedRecipe, *, micro_batch_size: int = 2, accumulation: int = 2) -> Trace:
    return trace(recipe, micro_batch_size=micro_batch_size, accumulation=accumulation)


def planned(recipe: ResolvedRecipe, **options: Any) -> Plan:
    return make_plan(recipe, rates=RATES, **options)


def real_model(recipe: ResolvedRecipe) -> Any:
    """The recipe's model with real tensors, and its strategies."""
    from toolkit.training.components import context_of
    from toolkit.training.strategies import with_strategies

    context = context_of(recipe, Path("none"))
    tokenizer = recipe.recipe.tokenizer.plugin.skeleton(context)
    model = recipe.recipe.model.plugin.build(tokenizer, context)
    return with_strategies(recipe, model, context).train()


def exporters_for(memory: Sequence[Any]) -> list[str]:
    """An adapter whose base is saved nowhere is of no use, and a model without one has nothing to merge."""
    return ["merge-lora" if "lora" in memory else "model-folder"]


def bytes_of(tensors: Any) -> int:
    """Of all storages, each once."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.parametrize("memory", [(), ("lora",)], ids=["plain", "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("family", MODELS)
def test_weights_gradients_and_optimizer_are_the_real_ones(
    family: str, optimizer: str, memory: tuple[str, ...], tmp_path: Path
) -> None:
    import torch

    recipe = recipe_for(
        tmp_path, model=MODELS[family], optimizer=optimizer, memory=list(memory), exporters=exporters_for(memory)
    )
    totals = traced(recipe).totals()
    model = real_model(recipe)
    parameters = list(model.parameters())
    built = recipe.recipe.optimizer.plugin.build(model, learning_rate=1e-3, weight_decay=0.0, run=_context(recipe))
    ids = torch.zeros(2, 32, dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    built.step()
    state = [value for entry in built.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    assert totals["weights"] == bytes_of([*parameters, *model.buffers()])
    assert totals["gradients"] == bytes_of([p.grad for p in parameters if p.grad is not None])
    # The sum of losses that the trainer clips by, and the like, are a few numbers more.
    assert 0 <= totals["optimizer"] - bytes_of(state) < 256


def _context(recipe: ResolvedRecipe) -> Any:
    from toolkit.training.components import context_of

    return context_of(recipe, Path("none"))


@pytest.mark.parametrize("family", MODELS)
def test_activations_are_what_autograd_keeps(family: str, tmp_path: Path) -> None:
    import torch

    from toolkit.training.loss import token_mean_loss

    recipe = recipe_for(tmp_path, model=MODELS[family])
    model = real_model(recipe)
    ids = torch.zeros(2, 32, dtype=torch.long)
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers(), ids]}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_mean_loss("causal-lm")(model(input_ids=ids, use_cache=False), ids, torch.tensor(64))
    assert at_the_turn(traced(recipe)) == pytest.approx(sum(storage.nbytes() for storage in kept.values()), abs=64)


def test_a_checkpointed_forward_pass_keeps_no_16_bit_copy_of_the_weights(tmp_path: Path) -> None:
    memory = [{"plugin": "mixed-precision", "precision": "bf16"}, "gradient-checkpointing"]
    layers, width = 6, 128
    model = {"plugin": "llama", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 2}
    made = traced(recipe_for(tmp_path, model=model, memory=memory), micro_batch_size=1)
    matrices = layers * 4 * width**2  # of attention alone
    assert made.fullest()["forward"].held["activations"] < 2 * matrices


def at_the_turn(made: Trace) -> int:
    """Bytes of activations and logits when the first backward pass begins."""
    held = 0
    for event in made.events:
        if event.phase == "backward":
            return held
        held += event.size
    raise AssertionError("there is no backward pass")


def test_the_weights_are_those_that_a_run_loads_whatever_was_published(tmp_path: Path) -> None:
    """Most models are published in 16 bits, and trained in 32 unless a strategy says otherwise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "published")
    recipe = recipe_for(tmp_path, model={"plugin": "pretrained", "path": str(tmp_path / "published")})
    made = planned(recipe)
    assert made.weights_bytes == pytest.approx(4 * made.parameters, rel=0.01)
    assert made.gradients_bytes == 4 * made.trained_parameters


@pytest.mark.slow
def test_what_is_offloaded_is_not_on_the_device(tmp_path: Path) -> None:
    gpu = Device(kind="cuda", name="a GPU", memory_bytes=10**10, bf16=True, compute_capability=(8, 0))

    def made(*memory: Any) -> ResolvedRecipe:
        file = write_recipe(tmp_path, model={"plugin": "llama", **SMALL, "num_hidden_layers": 6}, memory=list(memory))
        return resolve(load(str(file)), gpu)

    offload = {"plugin": "activation-offload", "least_bytes": 0}
    assert planned(made(offload)).peak_bytes < planned(made()).peak_bytes
    borders = 5 * 4 * 32 * 32 * 4  # of layers x sequences x tokens x features x bytes
    both, checkpointed = (
        at_the_turn(traced(made("gradient-checkpointing", *more), micro_batch_size=4, accumulation=1))
        for more in ((offload,), ())
    )
    assert checkpointed - both >= borders


def test_attention_is_counted_as_the_products_that_it_is() -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from toolkit.planning.tracker import StorageTracker

    with FakeTensorMode():
        query = torch.empty(2, 4, 64, 16, requires_grad=True)
        with StorageTracker(vocabulary_size=1) as ledger:
            out = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
            out.sum().backward()
    product = 2 * 2 * 4 * 64 * 64 * 16
    # Two products; on the way back the scores again, and two for each of the two.
    assert [work.flops for work in ledger._work if work.flops] == [2 * product, 5 * product]


@pytest.mark.slow
def test_products_in_float8_are_as_many_flops_and_keep_less(tmp_path: Path) -> None:
    def made(strategy: str) -> Plan:
        model = {"plugin": "llama", **SMALL, "hidden_size": 64}
        return planned(resolve(load(str(write_recipe(tmp_path, model=model, memory=[strategy]))), known("h100").device))

    float8, bf16 = made("fp8"), made("mixed-precision")
    assert float8.flops_per_step == bf16.flops_per_step
    assert float8.peak_bytes < bf16.peak_bytes


def test_products_in_float8_take_as_long_as_in_bf16() -> None:
    for dtype in ("float8_e4m3fn", "float8_e5m2", "bfloat16"):
        second = Work("forward", dtype, flops=int(RATES.flops["bf16"]), moved_bytes=0)
        assert RATES.seconds([(second, 1)]) == pytest.approx(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mixture_of_experts_is_counted_by_the_experts_that_a_token_goes_through(
    precision: str, tmp_path: Path
) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    work = []
    for chosen in (1, 2):
        folder = tmp_path / f"of-{chosen}"
        config = MixtralConfig(vocab_size=300, num_local_experts=4, num_experts_per_tok=chosen, **shape, **heads)
        MixtralForCausalLM(config).save_pretrained(folder)
        recipe = recipe_for(
            tmp_path, model={"plugin": "pretrained", "path": str(folder)}, training={"precision": precision}
        )
        step = traced(recipe, micro_batch_size=2, accumulation=1)
        work.append(sum(operation.flops for operation in step.work if operation.phase != "evaluation"))
    tokens, expert = 2 * 32, 3 * 32 * 64
    assert work[1] - work[0] == 6 * tokens * expert
    assert step.totals()["gradients"] == bytes_of(real_model(recipe).parameters())


def test_two_sizes_of_micro_batch_give_all_others(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, model=MODELS["gpt2"], memory=["gradient-checkpointing"])
    two, three, five = (traced(recipe, micro_batch_size=size) for size in (2, 3, 5))
    line = two.at_micro_batch(5, other=three)
    assert line is not None
    assert line.fullest() == five.fullest()
    assert line.totals()["optimizer"] == five.totals()["optimizer"]
    assert line.work == five.work


@pytest.mark.parametrize(
    ("tokens", "chunk"),  # a chunk takes so many of 2 x (tokens + 1) outputs, and of 4 x as many in an evaluation
    [
        (40, 4),
        (31, 10),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in ((31, 4), (62, 4), (40, 10), (62, 10))),
    ],
)
def test_the_chunks_of_a_loss_are_alike(
    chunk: int, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {"plugin": "causal-lm", "block_size": tokens + 1}
    recipe = recipe_for(tmp_path, objective=objective, memory=[{"plugin": "chunked-loss", "tokens": chunk}])
    counted, few = planned(recipe), traced(recipe)
    monkeypatch.setattr("toolkit.planning.kernels.chunks_counted", lambda _: contextlib.nullcontext())
    every = traced(recipe)
    assert planned(recipe) == counted
    assert every.fullest() == few.fullest()
    assert dict(every.operations(accumulation=2)) == dict(few.operations(accumulation=2))
    assert len(every.work) > len(few.work)


@pytest.mark.parametrize("objective", [{"document_mask": True}, {}])
def test_a_block_of_any_length_is_planned_in_as_many_operations(objective: dict[str, bool], tmp_path: Path) -> None:
    def made(block_size: int) -> Trace:
        lengthened = {"plugin": "causal-lm", "block_size": block_size, **objective}
        return traced(recipe_for(tmp_path, objective=lengthened, memory=["chunked-loss"]))

    long, longer = made(40_960), made(81_920)  # of whole chunks, both
    assert len(longer.work) == len(long.work)
    assert longer.totals()["batch"] == 2 * long.totals()["batch"] == (2 + len(objective)) * 2 * 81_920 * 8


def test_steps_of_another_course_are_on_no_line(tmp_path: Path) -> None:
    plain, other = recipe_for(tmp_path), recipe_for(tmp_path, memory=["gradient-checkpointing"])
    assert traced(plain, micro_batch_size=2).at_micro_batch(4, other=traced(other, micro_batch_size=3)) is None


def test_every_strategy_shows(tmp_path: Path) -> None:
    def peak(*memory: Any) -> Plan:
        settings, exporters = {"save_in_background": False}, exporters_for(memory)
        return planned(recipe_for(tmp_path, memory=list(memory), training=settings, exporters=exporters))

    plain = peak()
    assert peak("gradient-checkpointing").phases["loss"] < plain.phases["loss"] - plain.parts["activations"] / 2
    assert peak({"plugin": "small-batch", "micro_batch_size": 1}).parts["logits"] <= plain.parts["logits"] / 4
    lora = peak("lora")
    assert lora.gradients_bytes < plain.gradients_bytes / 2
    assert lora.trained_parameters < plain.trained_parameters < lora.parameters
    assert lora.checkpoint_bytes < plain.checkpoint_bytes / 2
    half = peak({"plugin": "mixed-precision", "precision": "bf16"})
    assert half.phases["forward"] < plain.phases["forward"]
    assert half.seconds_per_step < plain.seconds_per_step
    assert (plain.fidelity, half.fidelity, lora.fidelity) == ("exact", "approximate", "different")


def test_more_computing_takes_more_time_and_the_same_numbers_of_tokens(tmp_path: Path) -> None:
    plain, twice = planned(recipe_for(tmp_path)), planned(recipe_for(tmp_path, memory=["gradient-checkpointing"]))
    assert 1.2 < twice.flops_per_step / plain.flops_per_step < 1.5
    assert (plain.tokens_per_step, plain.steps, plain.tokens) == (4 * 32, 8, 8 * 4 * 32)


def test_epochs_are_as_long_as_the_data(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, training={"max_steps": None, "num_train_epochs": 2})
    assert planned(recipe).steps is None
    assert planned(recipe, training_blocks=10).steps == 6


def test_the_peak_is_the_sum_of_its_parts_and_the_highest_phase(tmp_path: Path) -> None:
    made = planned(recipe_for(tmp_path))
    assert sum(made.parts.values()) == made.peak_bytes == max(made.phases.values())
    assert {"load", "forward", "loss", "backward", "optimizer step", "evaluation", "export"} == made.phases.keys()
    assert made.fits
    assert not planned(recipe_for(tmp_path), limit_bytes=made.peak_bytes - 10**6).fits


def test_a_copy_of_the_state_is_in_the_plan(tmp_path: Path) -> None:
    def snapshot(asked: bool | None, limit: int) -> int:
        return planned(recipe_for(tmp_path, training={"save_in_background": asked}), limit_bytes=limit).snapshot_bytes

    state = planned(recipe_for(tmp_path)).state_bytes
    assert [snapshot(asked, 2**40) for asked in (True, False, None)] == [state, 0, state]
    assert snapshot(None, 2**20) == 0


def test_several_processes_share_the_step_and_hold_buckets(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, training={"save_in_background": False})
    alone, pair = planned(recipe), planned(recipe, processes=2)
    assert (alone.micro_batch_size, pair.micro_batch_size) == (4, 2)
    assert pair.parts["gradient buckets"] == pair.gradients_bytes
    with pytest.raises(RecipeError, match="3 processes with micro-batches of 1 cannot share 4 sequences"):
        BatchSplit.of(recipe, processes=3)


def test_a_plan_for_cuda_rounds_and_holds_no_scores_of_attention(tmp_path: Path) -> None:
    card = Device("cuda", "a card", 2**34, compute_capability=(7, 5))
    recipe = recipe_for(tmp_path, model=MODELS["gpt2"])
    here, there = planned(recipe), planned(replace(recipe, device=card))
    assert there.parts["activations"] < here.parts["activations"]
    assert there.parts["framework"] > 2**28
    assert "fake CPU tensors" in there.how_memory


def test_a_model_of_somebody_else_gets_a_plan(tmp_path: Path) -> None:
    made = planned(own_model(tmp_path))
    assert made.weights_bytes == 4 * made.parameters + 4 * 1000 + made_of_rotary_positions()
    assert made.parts["activations"] > 0


def test_a_model_that_looks_at_its_values_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"model .*Own fails .* its method skeleton"):
        planned(own_model(tmp_path, looks='assert float(model.get_buffer("memory").sum()) == 0'))


@pytest.mark.slow
def test_a_signal_while_it_is_planned_is_told_in_a_sentence(tmp_path: Path) -> None:
    own_model(tmp_path, looks="import os; os.kill(os.getpid(), 15); torch.zeros(2) + 1")
    process = command("recipe", "run", str(tmp_path / "tiny.yaml"), cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 143
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: stopped by SIGTERM; before training")


def own_model(folder: Path, *, looks: str = "") -> ResolvedRecipe:
    clear_local_plugins()
    (folder / "plugins" / "model").mkdir(parents=True)
    (folder / "plugins" / "model" / "own.py").write_text(MODEL.replace("{looks}", looks), encoding="utf-8")
    return recipe_for(folder, plugin_paths=["plugins"], model={"plugin": "own"})


def made_of_rotary_positions() -> int:
    """Llama's buffers: the frequencies of 16 / 2 pairs, twice."""
    return 2 * 8 * 4


def clear_local_plugins() -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("_toolkit_local_")]:
        del sys.modules[name]


def test_a_plan_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    before = torch.get_rng_state()
    recipe = recipe_for(tmp_path)
    planned(recipe)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["texts.txt", "tiny.yaml"]
    assert torch.equal(torch.get_rng_state(), before)
    assert (os.environ["WORLD_SIZE"], os.environ["RANK"]) == ("4", "1")
    assert isinstance(torch.zeros(1), torch.Tensor)
    assert type(torch.zeros(1)) is torch.Tensor


@pytest.mark.parametrize(("device_kind", "dtype"), [("cpu", "bfloat16"), ("cuda", "float32")])
def test_autocast_keeps_what_it_keeps_on_the_device_of_the_run(device_kind: str, dtype: str) -> None:
    """GPT-2's GELU has a power in it, which CUDA's autocast computes in float32."""
    import torch

    half = torch.ones(4, dtype=torch.bfloat16)
    with as_on(device_kind), torch.autocast("cpu", torch.bfloat16):
        assert str((half**3).dtype) == str(torch.pow(half, 3.0).dtype) == f"torch.{dtype}"
        assert torch.tanh(half).dtype == torch.bfloat16
    with as_on(device_kind):
        assert torch.pow(half, 3.0).dtype == torch.bfloat16
