"""Attention within documents gives what a document mask gives, and leaves no trace in what is exported."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from toolkit.system.device import Device
from toolkit.testing.bench import Bench
from toolkit.training import document_attention
from toolkit.training.document_attention import attend_within_documents
from toolkit_plugins.objective.causal_lm import CausalLM

LENGTH, END = 24, 0
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64}
GPU = Device(kind="cuda", name="a GPU", memory_bytes=2**34, bf16=True, compute_capability=(9, 0))


def model_of(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    if family == "gpt2":
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**SIZES, n_positions=LENGTH, **(still | options)))
    shared = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": LENGTH, **options}
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**SIZES, **shared, sliding_window=4))
    return LlamaForCausalLM(LlamaConfig(**SIZES, **shared))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, rehearsal=False)


def batch_of(bench: Bench, *, whole: bool = False) -> dict[str, torch.Tensor]:
    """Blocks of 4, 1 and 2 documents, one of them a single token."""
    ids = torch.randint(1, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    if not whole:
        ids[0, [4, 5, 17]] = ids[2, 9] = END
    blocks = [{"input_ids": block, "seed": 0} for block in ids.numpy()]
    tokenizer: Any = bench.tokenizer
    tokenizer.eos_token_id = END
    return CausalLM(block_size=LENGTH, document_mask=True).collator(tokenizer)(blocks)


def within_documents(bench: Bench, model: Any, **context: Any) -> Any:
    run = replace(bench.run(), **context)
    attend_within_documents(model, CausalLM(block_size=LENGTH, document_mask=True), bench.tokenizer, run)
    return model


def trained(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    outputs = model(**batch, use_cache=False)
    outputs.loss.backward()
    return outputs.logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def assert_as_with_a_mask(model: Any, masked: Any, batch: dict[str, torch.Tensor], **tolerance: float) -> None:
    (logits, gradients), (expected, slopes) = trained(model, batch), trained(masked, batch)
    torch.testing.assert_close(logits, expected, **tolerance)
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient, slope, **tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_losses_and_gradients_are_those_of_a_mask(bench: Bench, family: str) -> None:
    """Mistral's window is left to its mask."""
    model = within_documents(bench, model_of(family))
    assert model.config._attn_implementation == document_attention.NAME
    for batch in (batch_of(bench), batch_of(bench, whole=True)):
        assert_as_with_a_mask(model, model_of(family), batch, rtol=1e-4, atol=1e-6)


def test_in_bf16_they_differ_by_its_rounding(bench: Bench) -> None:
    model = within_documents(bench, model_of("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        assert_as_with_a_mask(model, model_of("llama"), batch_of(bench), rtol=0.05, atol=0.01)


def test_no_config_knows_of_it(bench: Bench, tmp_path: Path) -> None:
    model = within_documents(bench, model_of("gpt2"))
    model.save_pretrained(tmp_path / "saved")
    assert document_attention.NAME not in (tmp_path / "saved" / "config.json").read_text()
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    assert again.config._attn_implementation == "sdpa"
    batch = batch_of(bench)
    assert_as_with_a_mask(model, again, batch, rtol=1e-4, atol=1e-6)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "gpt2"


@pytest.mark.parametrize(
    ("family", "options", "context", "used"),
    [
        ("llama", {}, {"device": GPU, "precision": "bf16"}, True),
        ("llama", {}, {"device": GPU, "precision": "fp32"}, False),
        ("llama", {}, {"device": replace(GPU, bf16=False), "precision": "fp16"}, False),
        ("llama", {"head_dim": 12}, {"device": GPU, "precision": "bf16"}, False),
        ("gpt2", {"attn_pdrop": 0.1}, {"device": GPU, "precision": "bf16"}, False),
        ("gpt2", {"attn_pdrop": 0.1}, {}, False),
        ("gpt2", {}, {"precision": "bf16", "block_size": 256}, False),
        ("gpt2", {}, {"precision": "bf16", "block_size": 512}, True),
        ("gpt2", {"attn_implementation": "eager"}, {}, False),
    ],
)
def test_it_is_used_where_it_is_faster(
    bench: Bench, family: str, options: Any, context: dict[str, Any], used: bool
) -> None:
    model = within_documents(bench, model_of(family, **options), **context)
    assert (model.config._attn_implementation == document_attention.NAME) is used


@pytest.fixture
def kernels_of_a_gpu() -> Iterator[None]:
    """The operations that a GPU's kernels implement, by ordinary attention on this CPU."""
    from torch.nn.attention import varlen

    def attended(query: Any, key: Any, value: Any, borders: Any, scale: Any) -> torch.Tensor:
        outputs = []
        for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            one = [each[begin:end].transpose(0, 1)[None] for each in (query, key, value)]
            outputs.append(scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=True))
        return torch.cat([each[0].transpose(0, 1) for each in outputs])

    def forward(query: Any, key: Any, value: Any, borders: Any, *rest: Any, **named: Any) -> Any:
        _, longest, _, is_causal, scale, window = rest[:6]
        assert (longest, is_causal, list(window)) == (LENGTH, True, [-1, 0])
        assert borders.dtype == torch.int32
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        output = attended(query, key, value, borders, scale)
        return (
            output,
            query.new_zeros(query.shape[1], len(query), dtype=torch.float),
            torch.zeros(2, dtype=torch.uint64),
        )

    def backward(grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, borders: Any, *rest: Any) -> Any:
        def differentiated() -> tuple[torch.Tensor, ...]:
            inputs = [each.detach().requires_grad_() for each in (query, key, value)]
            return torch.autograd.grad(attended(*inputs, borders, rest[5]), inputs, grad)

        with ThreadPoolExecutor(1) as elsewhere:  # in this thread, autograd is off below an operation
            return elsewhere.submit(differentiated).result()

    handles = torch.library.Library("torch_attn", "IMPL")
    for operation, kernel in ((varlen._varlen_attn, forward), (varlen._varlen_attn_backward, backward)):
        handles.impl(operation._opoverload, kernel, "CPU")
    yield
    handles._destroy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_gpus_kernels_get_what_they_expect(
    bench: Bench, family: str, kernels_of_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layout, scale, shared heads, precision; what they compute themselves, tests/gpu shows."""
    model = within_documents(bench, model_of(family))

    def together(*tensors: Any, dropout: float, scale: float) -> torch.Tensor:
        return document_attention._together(*tensors, longest=LENGTH, scale=scale)

    monkeypatch.setattr(document_attention, "_one_by_one", together)
    with torch.autocast("cpu", torch.bfloat16):
        assert_as_with_a_mask(model, model_of(family), batch_of(bench), rtol=0.05, atol=0.01)


def test_a_compiled_layer_is_compiled_once_for_any_number_of_documents(bench: Bench) -> None:
    from torch._dynamo.testing import CompileCounter

    model, counter = within_documents(bench, model_of("llama")), CompileCounter()
    masked = model_of("llama")
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, backend=counter, dynamic=False)
    batch = batch_of(bench)
    trained(model, batch)
    compiled_at_first = counter.frame_count
    assert compiled_at_first > 0
    assert_as_with_a_mask(
        model, masked, {name: tensor.flip(0)[:3] for name, tensor in batch.items()}, rtol=1e-4, atol=1e-6
    )
    fewer = {**batch, "position_ids": batch["position_ids"].clone()}
    fewer["position_ids"][0] = torch.arange(LENGTH)
    assert_as_with_a_mask(model, masked, fewer, rtol=1e-4, atol=1e-6)
    assert counter.frame_count == compiled_at_first
