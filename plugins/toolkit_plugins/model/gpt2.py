"""GPT-2's architecture, from scratch."""

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


class GPT2(Model):
    """GPT-2 with random weights: learned position embeddings, LayerNorm, GELU.

    Set its size either with `parameters`, or with `num_hidden_layers` and `hidden_size`. Radford et al. 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf.
    """

    parameters: int | str | None = None
    """Parameters of the whole model, embeddings included: 30M, 1.3B, 30000000. The shape is derived from it."""
    num_hidden_layers: int | None = Field(default=None, ge=1)
    """Number of layers."""
    hidden_size: int | None = Field(default=None, ge=2)
    """Width of the model: the length of the vector for each token."""
    num_attention_heads: int | None = Field(default=None, ge=1)
    """Attention heads per layer; must divide `hidden_size`. Default: a head size of 64, less in small models."""
    max_position_embeddings: int | None = Field(default=None, ge=8)
    """Longest sequence that the model can read. Default: the objective's block_size."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on embeddings, attention and residuals. 0 is usual in pre-training, where data is seen about once, and
    lets attention take its fast path."""
    tie_word_embeddings: bool = True
    """Tie the head to the input embedding, as GPT-2 does."""
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
        shape = (self.num_hidden_layers, self.hidden_size, self.num_attention_heads)
        if self.parameters is not None and shape != (None, None, None):
            raise ValueError(
                "give either parameters, or num_hidden_layers, hidden_size and num_attention_heads; not both"
            )
        if self.parameters is None and (self.num_hidden_layers is None or self.hidden_size is None):
            raise ValueError("say how large: either parameters (30M, say), or num_hidden_layers and hidden_size")
        if self.hidden_size:
            heads = self.num_attention_heads or heads_of(self.hidden_size, self.mup_base_hidden_size)
            if self.hidden_size % heads:
                raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}")
        check_untied(self.mup_base_hidden_size, tied=self.tie_word_embeddings)
        return self

    def rehearse(self) -> Self:
        """The same with two layers of width 64."""
        return self.model_copy(
            update={
                "parameters": None,
                "num_hidden_layers": TINY.layers,
                "hidden_size": TINY.width,
                "num_attention_heads": TINY.heads,
            }
        )

    def build(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Initialize the weights with torch's global generator: the same seed gives the same model."""
        only_causal(run, "gpt2")
        from transformers import AutoModelForCausalLM, GPT2Config

        vocabulary, length = vocabulary_size(tokenizer), positions(self.max_position_embeddings, run)

        def count(shape: Shape) -> int:
            layer = 12 * shape.width**2 + 13 * shape.width
            embeddings = vocabulary * shape.width * (1 if self.tie_word_embeddings else 2)
            return embeddings + (length + 2) * shape.width + shape.layers * layer

        base = self.mup_base_hidden_size
        shape = self._shape() or derive(parameter_count(self.parameters or 0), count, head_size=head_size(base))
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=length,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            # GPT-2's own function, in one kernel that keeps its input alone: "gelu_new" keeps five tensors of its size.
            activation_function="gelu_pytorch_tanh",
            tie_word_embeddings=self.tie_word_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        model.loss_type = "ForCausalLM"  # transformers cannot infer it from this class's name, and warns
        if base is not None:
            parametrize(model, width=shape.width, base=base, run=run)
        tell(run, shape, count(shape), vocabulary, asked=self.parameters)
        return model

    def _shape(self) -> Shape | None:
        if self.num_hidden_layers is None or self.hidden_size is None:
            return None
        heads = self.num_attention_heads or heads_of(self.hidden_size, self.mup_base_hidden_size)
        return Shape(self.num_hidden_layers, self.hidden_size, heads)
