"""A published architecture with two layers of width 64 and random weights, which a rehearsal builds in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.api import RunContext
from toolkit_plugins.model.sizes import TINY, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def stand_in(run: RunContext) -> PreTrainedConfig:
    """A substitute for a config that cannot be fetched."""
    from transformers import BertConfig, GPT2Config

    if run.task == "causal-lm":
        return GPT2Config(n_positions=run.block_size)
    return BertConfig(max_position_embeddings=run.block_size)


def shrunk(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config with at most two layers, of width 64, and the tokenizer's vocabulary; per-layer lists are cut too."""
    layers = config.num_hidden_layers
    for name, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(config, name, value[: TINY.layers])
    small = {
        "num_hidden_layers": min(layers, TINY.layers),
        "hidden_size": TINY.width,
        "num_attention_heads": TINY.heads,
        "intermediate_size": 2 * TINY.width,
        "head_dim": TINY.width // TINY.heads,
        "embedding_size": TINY.width,
    }
    for name, value in small.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    if getattr(config, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = min(config.num_key_value_heads, TINY.heads)
    config.vocab_size = vocabulary_size(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (token := getattr(tokenizer, name)) is not None:
            setattr(config, name, token)
        elif type(published := getattr(config, name, None)) is int and published >= config.vocab_size:
            setattr(config, name, 0)  # some architectures insist on a token that the tokenizer does not have
    return config
