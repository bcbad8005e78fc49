"""Attention in blocks of queries on a CPU gives what torch's kernel gives, and only where gradients are computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from toolkit.api import RunContext
from toolkit.testing.bench import Bench
from toolkit.training import cpu_attention
from toolkit.training.cpu_attention import BLOCK, attend_in_blocks, attention
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.objective.masked_lm import MaskedLM

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64}
AS_BFLOAT16 = 1e-2
"""Relative to the norm: torch's kernel differs from float64 by 0.5 % at most, this attention by 0.6."""


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=64))


def run_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *, bf16: bool = True, amx: bool = False) -> RunContext:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bf16)
    run = Bench(folder, rehearsal=False).run()
    return replace(run, device=replace(run.device, kind="cpu"), precision="bf16")


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    exact = other.detach().double()
    return float((one.detach().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("length", [1, 8, BLOCK, BLOCK + 1, 2 * BLOCK + 88])
def test_values_and_gradients_are_those_of_exact_attention(length: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, length, 16, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    ours, exact = (
        [each.clone().to(kind).requires_grad_() for each in inputs] for kind in (torch.bfloat16, torch.float64)
    )
    slope = torch.randn(2, length, 4, 16, dtype=torch.bfloat16)
    attended, _ = attention(torch.nn.Module(), *ours, None, scaling=0.3)
    attended.backward(slope)
    expected = scaled_dot_product_attention(*exact, is_causal=True, scale=0.3, enable_gqa=True).transpose(1, 2)
    expected.backward(slope.double())
    assert distance(attended, expected) < AS_BFLOAT16
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        if length == 1 and one is not ours[2]:  # whom a single token attends to does not depend on anything
            assert not one.grad.any()
        else:
            assert distance(one.grad, other.grad) < AS_BFLOAT16


def test_without_gradients_or_with_a_mask_it_is_torchs_kernel_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is evaluated, checked at the export and generated is what a model loaded again computes."""
    plain, ours = llama(), llama()
    attend_in_blocks(ours, CausalLM(), run_of(tmp_path, monkeypatch))
    assert ours.config._attn_implementation == cpu_attention.NAME
    assert cpu_attention.NAME not in ours.config.to_json_string()
    ids = torch.randint(64, (2, 24))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours(ids).logits)
    for masked in ({"attention_mask": mask}, {"position_ids": torch.arange(24).remainder(7).expand(2, -1)}):
        with torch.autocast("cpu", torch.bfloat16):
            one, other = plain(ids, **masked, use_cache=False).logits, ours(ids, **masked, use_cache=False).logits
        assert torch.equal(one, other)


@pytest.mark.parametrize("layers", ["gpt2", "llama"])
def test_a_model_learns_the_same_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return llama() if layers == "llama" else GPT2LMHeadModel(GPT2Config(**SIZES, **still))

    plain, ours = made(), made()
    attend_in_blocks(ours, CausalLM(), run_of(tmp_path, monkeypatch))
    ids = torch.randint(64, (2, 300))
    calls, in_blocks = [], cpu_attention._in_blocks

    def counted(*words: Any) -> torch.Tensor:
        calls.append(words)
        return in_blocks(*words)

    monkeypatch.setattr(cpu_attention, "_in_blocks", counted)
    for model in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            model(ids, labels=ids, use_cache=False).loss.backward()
    assert len(calls) == 2
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert distance(one.grad, other.grad) < 2 * AS_BFLOAT16


def test_where_it_is_not_faster_the_model_keeps_its_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, monkeypatch)
    model = llama()
    attend_in_blocks(model, CausalLM(), replace(run, precision="fp32"))
    attend_in_blocks(model, MaskedLM(), run)
    attend_in_blocks(model, CausalLM(), run_of(tmp_path, monkeypatch, bf16=False))
    with_amx = run_of(tmp_path, monkeypatch, amx=True)
    attend_in_blocks(model, CausalLM(), replace(with_amx, block_size=BLOCK + 1))
    assert model.config._attn_implementation == "sdpa"
    attend_in_blocks(model, CausalLM(), replace(with_amx, block_size=BLOCK))
    assert model.config._attn_implementation == cpu_attention.NAME
    model.set_attn_implementation("eager")
    attend_in_blocks(model, CausalLM(), run_of(tmp_path, monkeypatch))
    assert model.config._attn_implementation == "eager"
