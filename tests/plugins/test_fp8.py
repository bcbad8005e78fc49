"""Products in float8; on the processor, which torch multiplies float8 on too, if slowly."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import assert_same_run, losses, train, train_in_two, write_recipe
from toolkit.api import OptionError, RunContext
from toolkit.errors import RecipeError
from toolkit.planning.devices import known
from toolkit.recipe.resolve import load, resolve
from toolkit.testing.bench import Bench
from toolkit.training.strategies import checkpoint_layers
from toolkit_plugins.memory.float8_product import float8_linear
from toolkit_plugins.memory.fp8 import FP8
from toolkit_plugins.memory.lora import LoRA

E4M3, E5M2 = (2.0**-bits / 12**0.5 / 1.47 for bits in (3, 2))
"""Relative error, root mean square, of rounding to so many bits after the point: of mantissas from 1 to 2, whose mean
square is 1.47 squared, the step is 2**-bits."""


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other).norm() / other.double().norm())


def in_bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def in_float8(model: Any) -> set[str]:
    """The names of the modules whose products are."""
    return {name for name, module in model.named_modules() if "forward" in vars(module)}


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e9])
def test_product_and_gradients_are_those_of_float32_to_within_the_rounding(size: float) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, weight, slope = (torch.randn(shape, generator=draw) for shape in ((2, 48, 64), (32, 64), (2, 48, 32)))
    bias = torch.randn(32, generator=draw)
    found = []
    for product in (torch.nn.functional.linear, float8_linear):
        own = [(tensor * by).requires_grad_() for tensor, by in ((inputs, size), (weight, 1.0), (bias, size))]
        if product is torch.nn.functional.linear:
            outputs = product(*own)
        else:
            with in_bf16():
                outputs = product(*own)
            assert outputs.dtype == torch.bfloat16
        outputs.backward((slope * size).to(outputs.dtype))
        found.append([outputs, *(tensor.grad for tensor in own)])
    (exact, of_inputs, of_weight, of_bias), (rounded, *gradients) = found
    assert relative(rounded.detach(), exact.detach()) == pytest.approx((E4M3**2 + E4M3**2) ** 0.5, rel=0.15)
    for gradient, expected in zip(gradients[:2], (of_inputs, of_weight), strict=True):
        assert gradient.dtype == torch.float32
        assert relative(gradient, expected) == pytest.approx((E4M3**2 + E5M2**2) ** 0.5, rel=0.15)
    assert relative(gradients[2], of_bias) < 0.01


def test_zeros_stay_zeros_and_what_is_not_finite_shows() -> None:
    weight = torch.randn(16, 16)
    with in_bf16():
        assert not float8_linear(torch.zeros(16, 16), weight, None).any()
        for bad in (float("inf"), float("nan")):
            assert float8_linear(torch.full((16, 16), bad), weight, None).isnan().all()


def test_other_numbers_of_tokens_and_float32_are_multiplied_plainly() -> None:
    inputs, weight = torch.randn(3, 32), torch.randn(16, 32)
    with in_bf16():
        assert torch.equal(float8_linear(inputs, weight, None), torch.nn.functional.linear(inputs, weight))
    inputs = torch.randn(32, 32)
    assert torch.equal(float8_linear(inputs, weight, None), torch.nn.functional.linear(inputs, weight))


@pytest.mark.parametrize(("family", "matrices", "layer"), [("gpt2", 8, ".h."), ("llama", 14, ".layers.")])
def test_the_matrices_of_the_layers_learn_in_float8(
    tmp_path: Path, run_context: RunContext, family: str, matrices: int, layer: str
) -> None:
    bench = Bench(tmp_path, rehearsal=False)
    run = replace(run_context, block_size=48)
    plain, model = bench.model(family), FP8().apply(bench.model(family), run)
    assert len(in_float8(model)) == matrices
    assert all(layer in name for name in in_float8(model))
    assert plain.state_dict().keys() == model.state_dict().keys()
    ids = bench.batch()
    gradients = []
    for each in (plain, model):
        with in_bf16():
            each(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad for name, weight in each.named_parameters()})
    for name, expected in gradients[0].items():
        assert 0 < relative(gradients[1][name], expected) < 0.2, name


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, run_context: RunContext) -> None:
    bench, gradients = Bench(tmp_path, rehearsal=False), []
    for recomputed in (False, True):
        model = FP8().apply(bench.model("gpt2"), replace(run_context, block_size=48))
        if recomputed:
            checkpoint_layers(model, every=1)
        model.train()
        with in_bf16():
            model(input_ids=bench.batch(), labels=bench.batch(), use_cache=False).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


# torch.compile makes an instance of any autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_a_layer_is_one_graph(tmp_path: Path, run_context: RunContext) -> None:
    from torch._dynamo.testing import CompileCounter
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    model = FP8().apply(LlamaModel(config), replace(run_context, block_size=48))
    counter = CompileCounter()
    layer = torch.compile(model.layers[0].mlp, backend=counter, dynamic=False, fullgraph=True)
    inputs = torch.randn(1, 48, 32, requires_grad=True)
    with in_bf16():
        expected, outputs = model.layers[0].mlp(inputs), layer(inputs)
        outputs.sum().backward()
    assert counter.frame_count == 1
    assert torch.equal(outputs, expected)
    assert inputs.grad is not None


def test_the_factors_of_lora_are_left_alone(tmp_path: Path, run_context: RunContext) -> None:
    bench = Bench(tmp_path, rehearsal=False)
    run = replace(run_context, block_size=48)
    model = LoRA(r=16).apply(FP8().apply(bench.model("gpt2"), run), run)
    assert all(name.endswith("base_layer") for name in in_float8(model))
    assert len(in_float8(model)) == 8
    with in_bf16():
        model(input_ids=bench.batch(), labels=bench.batch()).loss.backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is None} == {
        name for name, _ in model.named_parameters() if "lora_" not in name
    }


def test_what_float8_cannot_multiply(tmp_path: Path, run_context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    run = replace(run_context, block_size=48, log=logging.getLogger("toolkit.test"))
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    with pytest.raises(OptionError, match="no matrices in its layers whose sides are multiples of 16"):
        FP8().apply(LlamaForCausalLM(LlamaConfig(hidden_size=24, intermediate_size=40, **sizes)), run)
    with pytest.raises(OptionError, match=r"set objective\.block_size to 32, not 40"):
        FP8().apply(Bench(tmp_path, rehearsal=False).model("gpt2"), replace(run, block_size=40))
    model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=40, **sizes))
    with caplog.at_level("INFO", logger="toolkit.test"):
        FP8().apply(model, run)
    assert caplog.messages == [
        "fp8: 8 matrices of the layers are multiplied in float8",
        "fp8 leaves 6 matrices in bf16, such as model.layers.0.mlp.gate_proj, of 40 x 32: float8 needs multiples of 16",
    ]


@pytest.mark.parametrize(
    ("device", "memory", "why"),
    [
        (None, ["fp8"], r"fp8 needs a cuda device of compute capability 8\.9 or later, .*, or use mixed-precision"),
        (
            "a100-80g",
            ["fp8"],
            r"needs .* 8\.9 or later, but this machine has: NVIDIA A100-SXM4-80GB \(8\.0\)",
        ),
        ("h100", ["fp8", "weights-in-bf16"], "exclude each other: both manage the weights"),
        ("h100", ["fp8", {"plugin": "mixed-precision", "precision": "fp16"}], "fp8 sets it to 'bf16'"),
    ],
)
def test_it_is_refused_in_one_message(tmp_path: Path, device: str | None, memory: list[Any], why: str) -> None:
    recipe = load(str(write_recipe(tmp_path, memory=memory)))
    with pytest.raises(RecipeError, match=why) as refused:
        resolve(recipe, known(device or "colab-cpu").device)
    assert len(refused.value.problems) == 1


def test_it_sets_bf16_for_the_rest(tmp_path: Path) -> None:
    recipe = load(str(write_recipe(tmp_path, memory=["fp8", "mixed-precision"])))
    assert resolve(recipe, known("h100").device).training.precision == "bf16"


ANYWHERE = '''
"""Made for a test."""

from toolkit_plugins.memory.fp8 import FP8


class Anywhere(FP8):
    """fp8 without its requirement."""

    def requires(self):
        return []
'''


def test_a_run_resumes_bit_for_bit_and_its_losses_are_near_those_of_bf16(tmp_path: Path) -> None:
    (tmp_path / "plugins" / "memory").mkdir(parents=True)
    (tmp_path / "plugins" / "memory" / "anywhere.py").write_text(ANYWHERE)
    memory: list[Any] = [{"plugin": "mixed-precision", "precision": "bf16"}]
    recipe = write_recipe(tmp_path, memory=memory, plugin_paths=["plugins"])
    plain = [loss for *_, loss in losses(train(recipe, name="plain")[0].folder)]
    recipe = write_recipe(tmp_path, memory=[*memory, "anywhere"], plugin_paths=["plugins"])
    whole, parts = train(recipe, name="whole")[0], train_in_two(recipe, name="parts", stop_after=5)
    assert_same_run(whole.folder, parts.folder)
    rounded = [loss for *_, loss in losses(whole.folder)]
    assert plain != rounded == pytest.approx(plain, rel=0.01)
