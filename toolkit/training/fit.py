"""Whether tokenizer, model and objective fit together: checked before tokens are packed.

What is found here would otherwise be an index error, or a silent leak between documents, in mid-run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from toolkit.api import Objective, highest_id
from toolkit.errors import OptionError
from toolkit.recipe.schema import Recipe
from toolkit.training.refusals import refusals_placed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_fit(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, objective: Objective) -> None:
    """Check that they do.

    Raises:
        RecipeError: they do not, with the place of the option that has to change.
    """
    rows = cast(int, model.get_input_embeddings().num_embeddings)
    if (needed := highest_id(tokenizer) + 1) > rows:
        raise recipe.error(
            f"the tokenizer needs an embedding of {needed:,} rows and the model's has {rows:,}; take the model's own "
            f"tokenizer, or a model from scratch (gpt2, llama)",
            ("tokenizer",),
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and objective.block_size > positions:
        raise recipe.error(
            f"a block of {objective.block_size:,} tokens is longer than the model's {positions:,} positions; "
            f"set block_size to {positions} or less",
            ("objective", "block_size"),
        )
    with refusals_placed(recipe, ("objective",)):
        collate = objective.collator(tokenizer)
        batch = _checked_batch(collate, model, objective.document_end(tokenizer), known=needed)
    if recipe.training.warmup_block_size and (whole := [key for key, value in batch.items() if value.ndim != 2]):
        raise recipe.error(
            f"a batch has {', '.join(whole)}, which has not one value for each token, so its blocks cannot be cut; "
            f"remove this",
            ("training", "warmup_block_size"),
        )


def _checked_batch(
    collate: Any, model: PreTrainedModel, end: tuple[int, ...], *, known: int
) -> Mapping[str, torch.Tensor]:
    """A batch of which the model takes every entry, and isolates documents where `position_ids` restart.

    Not every architecture derives a document mask from the positions, and those that do not are silent: run the model.

    Args:
        collate: the objective's collator.
        model: as it was built.
        end: the token ids that end a document.
        known: all token ids below this one exist.
    """
    import numpy
    import torch

    from toolkit.training.without_effect import check_batch, takes

    words = [token for token in range(min(known, 12)) if token not in end][:8]
    first, second = [*words, *end], words[::-1]
    batch: Mapping[str, torch.Tensor] = collate([{"input_ids": numpy.array(first + second), "seed": 0}])
    if "position_ids" in batch and not takes(model, "position_ids"):
        raise OptionError(
            f"{type(model).__name__} takes no position_ids, which tell it where a document begins, so a document mask "
            f"would have no effect; set document_mask: false, or use another architecture",
            option="document_mask",
        )
    check_batch(batch, model)
    if not end or "position_ids" not in batch or batch["position_ids"][0, len(first)] != 0:
        return batch
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packed = {key: value for key, value in batch.items() if key != "labels"}
        # use_cache=False, as in the Trainer: with a cache, transformers ignores the positions.
        together = model(**packed, use_cache=False).logits[0, len(first) :]
        alone = model(input_ids=torch.tensor([second]), use_cache=False).logits[0]
    model.train(was_training)
    difference = (together - alone).abs().max().item()
    if difference > 1e-3:
        raise OptionError(
            f"{type(model).__name__} lets a document see the one before it in its block (its logits change by "
            f"{difference:.2g}), so the document mask would be a promise without effect; set document_mask: false",
            option="document_mask",
        )
    return batch
