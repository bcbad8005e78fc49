"""Llama's architecture, from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, field_validator, model_validator

from toolkit.api import Model, RunContext
from toolkit_plugins.model.mup import check_untied, head_size, heads_of, parametrize
from toolkit_plugins.model.sizes import (
    TINY,
    Shape,
    derive,
    only_causal,
    parameter_count,
    positions,
    tell,
    vocabulary_size,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Llama(Model):
    """A Llama with random weights: rotary position embeddings, RMSNorm, SwiGLU, no biases.

    Set its size either with `parameters`, or with `num_hidden_layers` and `hidden_size`. Touvron et al. 2023,
    https://arxiv.org/abs/2302.13971.
    """

    parameters: int | str | None = None
    """Parameters of the whole model, embeddings included: 30M, 1.3B, 30000000. The shape is derived from it."""
    num_hidden_layers: int | None = Field(default=None, ge=1)
    """Number of layers."""
    hidden_size: int | None = Field(default=None, ge=2)
    """Width of the model: the length of the vector for each token."""
    num_attention_heads: int | None = Field(default=None, ge=1)
    """Attention heads per layer; must divide `hidden_size`. Default: a head size of 64, less in small models."""
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values; fewer than `num_attention_heads` means grouped-query attention. Default: as many."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width inside the feed-forward layers. Default: 8/3 of `hidden_size`, rounded up to a multiple of 64."""
    max_position_embeddings: int | None = Field(default=None, ge=8)
    """Longest sequence that the model is built for. Default: the objective's block_size."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the wavelengths of the rotary position embeddings."""
    tie_word_embeddings: bool = True
    """Tie the head to the input embedding, as small models do, where the vocabulary is most of the parameters."""
    mup_base_hidden_size: int | None = Field(default=None, ge=2)
    """muP: the width at which the learning rate was tuned. Weights and learning rates are scaled from there, so that
    the learning rate carries over to this width. Needs `tie_word_embeddings: false`; keep layers and head size the
    same. Yang et al. 2022, https://arxiv.org/abs/2203.03466."""

    @field_validator("parameters")
    @classmethod
    def _parameters_can_be_read(cls, value: int | str | None) -> int | str | None:
        if value is not None:
            parameter_count(value)
        return value

    @model_validator(mode="after")
    def _one_way_to_say_the_size(self) -> Self:
        names = (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
        )
        given = [name for name in names if getattr(self, name) is not None]
        if self.parameters is not None and given:
            raise ValueError(f"give either parameters, or {' and '.join(given)}; not both")
        if self.parameters is None and (self.num_hidden_layers is None or self.hidden_size is None):
            raise ValueError("say how large: either parameters (30M, say), or num_hidden_layers and hidden_size")
        if self.hidden_size:
            heads = self.num_attention_heads or heads_of(self.hidden_size, self.mup_base_hidden_size)
            if self.hidden_size % heads:
                raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}")
            if self.hidden_size // heads % 2:
                raise ValueError(f"rotary positions need heads of even size, not {self.hidden_size // heads}")
            if heads % (self.num_key_value_heads or heads):
                raise ValueError(
                    f"num_key_value_heads {self.num_key_value_heads} does not divide num_attention_heads {heads}"
                )
        check_untied(self.mup_base_hidden_size, tied=self.tie_word_embeddings)
        return self

    def rehearse(self) -> Self:
        """The same with two layers of width 64, and grouped-query attention where the original has it."""
        shared = self.num_key_value_heads is not None and self.num_key_value_heads != self.num_attention_heads
        return self.model_copy(
            update={
                "parameters": None,
                "num_hidden_layers": TINY.layers,
                "hidden_size": TINY.width,
                "num_attention_heads": TINY.heads,
                "num_key_value_heads": 1 if shared else None,
                "intermediate_size": None,
            }
        )

    def build(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Initialize the weights with torch's global generator: the same seed gives the same model."""
        only_causal(run, "llama")
        from transformers import AutoModelForCausalLM, LlamaConfig

        vocabulary = vocabulary_size(tokenizer)

        def count(shape: Shape) -> int:
            keys = shape.width // shape.heads * (self.num_key_value_heads or shape.heads)
            feed_forward = 3 * shape.width * self._intermediate(shape)
            layer = 2 * shape.width**2 + 2 * shape.width * keys + feed_forward + 2 * shape.width
            embeddings = vocabulary * shape.width * (1 if self.tie_word_embeddings else 2)
            return embeddings + shape.layers * layer + shape.width

        base = self.mup_base_hidden_size
        shape = self._shape() or derive(parameter_count(self.parameters or 0), count, head_size=head_size(base))
        config = LlamaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=positions(self.max_position_embeddings, run),
            hidden_size=shape.width,
            intermediate_size=self._intermediate(shape),
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=self.num_key_value_heads or shape.heads,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_word_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        if base is not None:
            parametrize(model, width=shape.width, base=base, run=run)
        tell(run, shape, count(shape), vocabulary, asked=self.parameters)
        return model

    def _intermediate(self, shape: Shape) -> int:
        return self.intermediate_size or -(-shape.width * 8 // 3 // 64) * 64

    def _shape(self) -> Shape | None:
        if self.num_hidden_layers is None or self.hidden_size is None:
            return None
        heads = self.num_attention_heads or heads_of(self.hidden_size, self.mup_base_hidden_size)
        return Shape(self.num_hidden_layers, self.hidden_size, heads)
