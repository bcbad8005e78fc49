"""Model FLOPs by the field's formula, on models whose weights can be counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from toolkit.training.model_flops import flops_per_token

LAYERS, WIDTH, BLOCK, VOCABULARY = 2, 32, 16, 100
ATTENTION = 12 * LAYERS * WIDTH * BLOCK
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_gpt2_multiplies_with_all_but_its_positions() -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=BLOCK)
    )
    expected = 6 * (parameters(model) - BLOCK * WIDTH) + ATTENTION
    assert flops_per_token(model, BLOCK) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_is_no_head_is_only_looked_up(tied: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    looked_up = 0 if tied else VOCABULARY * WIDTH
    assert flops_per_token(model, BLOCK) == 6 * (parameters(model) - looked_up) + ATTENTION


def test_a_frozen_weight_needs_no_gradient_of_its_own() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    before = flops_per_token(model, BLOCK)
    frozen: Any = model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad = False
    assert before - flops_per_token(model, BLOCK) == 2 * frozen.numel()


def test_a_token_goes_through_some_of_a_mixtures_experts() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2))
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    looked_up = VOCABULARY * WIDTH
    assert experts > 0
    assert flops_per_token(model, BLOCK) == 6 * (parameters(model) - looked_up - experts / 2) + ATTENTION


def test_packed_weights_do_not_say_how_many_they_are() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.config.quantization_config = {"load_in_4bit": True}
    assert flops_per_token(model, BLOCK) == 0
