"""The loss in chunks is the loss, for every architecture: the value, each gradient, the run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import SUM_ORDER, losses, train, weights, write_recipe
from toolkit.api import Loss, OptionError
from toolkit.errors import RecipeError
from toolkit.testing.bench import Bench
from toolkit.training.loss import StepLoss, token_mean_loss
from toolkit_plugins.memory.chunked_cross_entropy import ChunkedCrossEntropy


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, rehearsal=False)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def chunked_loss(
    model: Any, task: Any, *, chunk_size: int, dtype: torch.dtype | None, on_gpu: bool = False
) -> StepLoss:
    summed = ChunkedCrossEntropy(model.get_output_embeddings(), chunk_size=chunk_size, dtype=dtype, on_gpu=on_gpu)
    return StepLoss(model, task, Loss(summed, inputs="hidden_states"), name="chunked-loss", in_evaluation=True)


def compute(model: Any, loss: Any, ids: torch.Tensor, labels: torch.Tensor, **how: Any) -> torch.Tensor:
    if isinstance(loss, StepLoss):
        with loss.head_withheld():
            outputs = model(input_ids=ids)
        assert outputs.logits.shape[-1] == (32 if loss.loss else model.config.vocab_size)
        return loss(outputs, labels, **how)
    return loss(model(input_ids=ids), labels, **how)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("chunk_size", [7, 10_000])
@pytest.mark.parametrize("counted", [None, torch.tensor(500)])
@pytest.mark.parametrize("on_gpu", [False, True], ids=["300 rows", "300 rows filled up to 320"])
def test_the_same_loss_and_the_same_gradients(
    bench: Bench, family: str, chunk_size: int, counted: Any, on_gpu: bool
) -> None:
    task: Any = "masked-lm" if family == "bert" else "causal-lm"
    model, ids = bench.model(family), bench.batch()
    assert len(model.get_output_embeddings().weight) == 300
    labels = ids.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -100)
    loss = chunked_loss(model, task, chunk_size=chunk_size, dtype=None, on_gpu=on_gpu)
    assert_same(model, task, loss, ids, labels, counted)
    with torch.no_grad():
        assert compute(model, loss, ids, labels).item() == pytest.approx(
            compute(model, token_mean_loss(task), ids, labels).item(), rel=1e-6
        )
    assert model(input_ids=ids).logits.shape[-1] == len(bench.tokenizer), "the head stays withheld"


def assert_same(model: Any, task: Any, loss: StepLoss, ids: torch.Tensor, labels: torch.Tensor, counted: Any) -> None:
    """The loss and the gradients are those of the logits."""
    results = []
    for each in (token_mean_loss(task), loss):
        model.zero_grad()
        value = compute(model, each, ids, labels, num_items_in_batch=counted)
        (value * 1024).backward()  # as the scaler of float16 would
        results.append((value.detach(), gradients(model)))
    (plain, expected), (chunked, found) = results
    assert chunked.item() == pytest.approx(plain.item(), rel=1e-6)
    assert expected.keys() == found.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_head_that_is_aligned_for_a_gpu_gives_the_same_logits(bench: Bench, family: str) -> None:
    """BERT's head has a bias, GPT-2's is tied to the embedding."""
    task: Any = "masked-lm" if family == "bert" else "causal-lm"
    model, ids = bench.model(family), bench.batch()
    loss = StepLoss(model, task, None, name="", in_evaluation=True, on_gpu=True)
    assert_same(model, task, loss, ids, ids, None)
    with torch.autocast("cpu", torch.bfloat16), loss.head_withheld():
        logits = model(input_ids=ids).logits
    assert (logits.dtype, logits.shape[-1]) == (torch.bfloat16, 300)
    assert logits.untyped_storage().nbytes() == 2 * ids.numel() * 320


def test_no_gradient_for_what_is_frozen(bench: Bench) -> None:
    model, ids = bench.model("llama"), bench.batch()
    head = model.get_output_embeddings().requires_grad_(False)
    compute(model, chunked_loss(model, "causal-lm", chunk_size=16, dtype=None), ids, ids).backward()
    assert head.weight.grad is None
    assert model.get_input_embeddings().weight.grad is not None


def test_products_in_bf16_under_autocast(bench: Bench) -> None:
    model, ids = bench.model("gpt2"), bench.batch()
    with torch.autocast("cpu", torch.bfloat16):
        plain = compute(model, token_mean_loss("causal-lm"), ids, ids)
    loss = chunked_loss(model, "causal-lm", chunk_size=16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), loss.head_withheld():
        outputs = model(input_ids=ids)
    assert loss(outputs, ids).item() == pytest.approx(plain.item(), rel=1e-5)


def test_nothing_as_wide_as_the_vocabulary_is_kept(bench: Bench) -> None:
    model, ids = bench.model("gpt2"), bench.batch()
    widths = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: widths.append(tensor.shape) or tensor, lambda t: t):
        compute(model, chunked_loss(model, "causal-lm", chunk_size=16, dtype=None), ids, ids)
    assert widths
    assert not [shape for shape in widths if len(shape) > 1 and shape[-1] == len(bench.tokenizer)]


def test_a_model_that_changes_its_logits_is_refused(bench: Bench) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                          num_key_value_heads=2, head_dim=16, intermediate_size=64,
                          final_logit_softcapping=0.1)  # fmt: skip
    model = Gemma2ForCausalLM(config)
    with pytest.raises(OptionError, match="logits of Gemma2ForCausalLM are not those that its head gives"):
        chunked_loss(model, "causal-lm", chunk_size=16, dtype=None)
    assert model(input_ids=bench.batch() % 300).logits.shape[-1] == 300


def test_a_head_that_is_more_than_a_linear_is_refused(tmp_path: Path) -> None:
    memory = [{"plugin": "lora", "target_modules": ["lm_head"]}, "chunked-loss"]
    llama = {"plugin": "llama", "num_hidden_layers": 2, "hidden_size": 32, "tie_word_embeddings": False}
    recipe = write_recipe(tmp_path, model=llama, memory=memory, exporters=["merge-lora"])
    with pytest.raises(RecipeError, match=r"memory\[1\]: .*chunked-loss knows how to compute those of a plain Linear"):
        train(recipe)


@pytest.mark.parametrize("accumulated", [False, True])
def test_a_run_is_exact_up_to_the_order_of_sums(tmp_path: Path, accumulated: bool) -> None:
    recipe = write_recipe(tmp_path)
    small = "training.micro_batch_size=2" if accumulated else "training.micro_batch_size=4"
    plain, _ = train(recipe, small, name="plain")
    chunked, _ = train(recipe, small, "memory=[{plugin: chunked-loss, tokens: 10}]", name="chunked")
    for one, other in zip(losses(plain.folder), losses(chunked.folder), strict=True):
        assert one[:2] == other[:2]
        assert other[2] == pytest.approx(one[2], rel=SUM_ORDER)
    first, second = weights(plain.folder), weights(chunked.folder)
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4
