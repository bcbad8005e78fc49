"""Attention within documents, for blocks that hold several: one document after the other, and no mask.

What a document mask hides is not computed, where a mask of (length, length) per sequence has it computed and thrown
away, and keeps a GPU from its fast kernels. On a GPU it is torch's attention of sequences of varying length, on a CPU a
call of its ordinary attention for each document. The sums are those of the mask in another order.

On a core with AVX-512, 4 x 12 heads x 1,024 tokens in documents of 300 take 198 ms in bf16 and 194 in fp32, forward and
backward; with a mask 411 and 551 (tests/benchmarks/test_attention_of_documents.py).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad, scaled_dot_product_attention

from toolkit.api import Objective, RunContext
from toolkit.logs import libraries_quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "within-documents"
"""What transformers knows this attention by, in a process; no config that is saved has it."""
SHORT_BLOCK = 512
"""Below this length a CPU is as fast with a mask in bf16: 8 x 4 heads x 256 tokens take 15 ms with it, 19 without."""
LARGEST_HEAD = 256
"""Width of a head up to which torch has kernels for varying lengths, in multiples of 8."""
DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""Names that configs have for the dropout of attention. A GPU's kernels lack it; on a CPU it has all scores held, and
how many those are depends on the documents, which a plan does not know."""


def attend_within_documents(
    model: PreTrainedModel, objective: Objective, tokenizer: PreTrainedTokenizerBase, context: RunContext
) -> None:
    """If the objective isolates documents, by positions, have the model's attention pass over what is hidden.

    Does nothing where the device gains nothing from it, or the model's attention is not transformers' sdpa.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation != "sdpa" or not _restarts_positions(objective, tokenizer):
        return
    if not _is_faster(model, context):
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, borders_or_mask)
    with libraries_quiet():  # of a model that cannot change its attention it says so, and goes on as before
        model.set_attn_implementation(NAME)


def _restarts_positions(objective: Objective, tokenizer: PreTrainedTokenizerBase) -> bool:
    import numpy

    block: Any = {"input_ids": numpy.zeros(8, dtype="int64"), "seed": 0}
    return objective.task == "causal-lm" and "position_ids" in objective.collator(tokenizer)([block])


def _is_faster(model: PreTrainedModel, context: RunContext) -> bool:
    config: Any = model.config.get_text_config()
    if any(getattr(config, name, 0.0) for name in DROPOUTS):
        return False
    if context.device.kind == "cpu":
        return context.precision == "fp32" or context.block_size >= SHORT_BLOCK
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        context.device.kind == "cuda"
        and context.device.bf16  # compute capability 8.0, which the kernels need
        and context.precision != "fp32"
        and width % 8 == 0
        and width <= LARGEST_HEAD
    )


def borders_or_mask(*, mask_function: Any, batch_size: int, device: Any, **given: Any) -> torch.Tensor | None:
    """In the place of a mask of several documents: where each begins in the line of all tokens, and their number last.

    int32, (documents + 1,). Otherwise what transformers' sdpa takes: a mask, or none for plain causal attention.
    """
    from transformers.masking_utils import sdpa_mask

    length = given["q_length"]
    causal_alone = given.get("attention_mask") is None and not given.get("use_vmap") and not given.get("local_size")
    if (
        given.get("allow_is_causal_skip", True)  # transformers has found no second document in any block
        or "allow_is_bidirectional_skip" in given
        or not causal_alone
        or length != given["kv_length"]
    ):
        return sdpa_mask(mask_function=mask_function, batch_size=batch_size, device=device, **given)
    sequence, token = torch.arange(batch_size, device=device)[:, None], torch.arange(length, device=device)[None]
    begins = ~mask_function(sequence, 0, token, token - 1)  # a token that does not see the one before it
    begins[:, 0] = True
    tokens = batch_size * length
    if isinstance(begins, FakeTensor):  # a plan, which has no values: as if each block were a document
        return torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    borders = pad(begins.flatten().nonzero()[:, 0], (0, 1), value=tokens).to(torch.int32)
    torch._dynamo.maybe_mark_dynamic(borders, 0)  # a layer is compiled once for any number of documents
    return borders


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of a layer, as transformers calls it.

    Args:
        module: the layer's attention.
        query: shape (batch, heads, length, width).
        key: shape (batch, heads of keys, length, width).
        value: as `key`.
        attention_mask: what `borders_or_mask` gave.
        dropout: probability with which a weight of attention is left out.
        scaling: what the products of queries and keys are multiplied by.
        rest: what only other attentions know.

    Returns:
        The attended values, shape (batch, length, heads, width), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.ndim != 1:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return plain
    batch, _, length, _ = query.shape
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    attended: torch.Tensor
    if query.device.type == "cpu" or dropout:
        attended = _one_by_one(query, key, value, attention_mask, dropout=dropout, scale=scaling)
    else:
        attended = _together(query, key, value, attention_mask, longest=length, scale=scaling)
    return attended.unflatten(0, (batch, length)), None


# Not compiled, because its calls depend on the documents of a batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no annotation for it
def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    *,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """Causal attention within each document; query, key and value (tokens, heads, width)."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (each.repeat_interleave(shared, dim=1) for each in (key, value))
    if isinstance(borders, FakeTensor):  # as one batch, so that plans of batches of any size have the same operations
        documents = [tuple(each.unflatten(0, (len(borders) - 1, -1)).transpose(1, 2) for each in (query, key, value))]
    else:
        lengths = borders.diff().tolist()
        lines = (each.transpose(0, 1)[None].split(lengths, 2) for each in (query, key, value))
        documents = list(zip(*lines, strict=True))
    attended = [
        scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True, scale=scale)
        for queries, keys, values in documents
    ]
    return torch.cat([each.transpose(1, 2).flatten(0, 1) for each in attended])


def _together(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    *,
    longest: int,
    scale: float | None,
) -> torch.Tensor:
    """The same in one kernel; `longest`, which no document may exceed, needs no look at the borders."""
    from torch.nn.attention.varlen import varlen_attn

    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # which does not reach these kernels, and they have no float32
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    # torch 2.11 shares heads of keys without being asked, 2.13 wants to be.
    asked = "enable_gqa" in inspect.signature(varlen_attn).parameters
    sharing: dict[str, Any] = {"enable_gqa": True} if asked else {}
    attended: Any = varlen_attn(
        query, key, value, borders, borders, longest, longest, scale=scale, window_size=(-1, 0), **sharing
    )
    return torch.as_tensor(attended)
