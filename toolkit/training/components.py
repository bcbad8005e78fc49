"""ResolvedRecipe -> Components: tokenizer, model and packed data.

torch is imported inside the functions only. What a plugin rejects is reported at its line of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolkit.api import Objective, Peek, Progress, RunContext, Tokenizer, TokenizerSkeleton, highest_id
from toolkit.data import documents, packing
from toolkit.data.packing import PackedData
from toolkit.data.tokenizer_training import tokenizer_of
from toolkit.errors import OptionError, PluginError
from toolkit.recipe.document import Path_
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.schema import Recipe
from toolkit.system.cache import cache_folder, remove_abandoned
from toolkit.training.refusals import refusals_placed
from toolkit.training.strategies import checked_loss, optimizer_wrapper, with_strategies

if TYPE_CHECKING:
    import torch
    from datasets import DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from toolkit.training.loss import StepLoss

PACKING_OPTIONS: dict[str | None, Path_] = {"block_size": ("objective", "block_size"), "tokenizer": ("tokenizer",)}
"""Recipe paths of the options that packing may reject; anything else is reported at the dataset."""


@dataclass(frozen=True)
class Components:
    """What a recipe's plugins built."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    data: PackedData
    objective: Objective
    loss: StepLoss
    wrap_optimizer: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
    """Puts the memory strategies' wrappers around the recipe's optimizer."""


def context_of(
    resolved: ResolvedRecipe, folder: Path, *, rehearsal: bool = False, progress: Progress | None = None
) -> RunContext:
    """The `RunContext` that a run's plugins receive."""
    objective = resolved.recipe.objective.plugin
    context = RunContext(
        name=folder.name,
        folder=folder,
        cache=cache_folder(),
        seed=resolved.training.seed,
        device=resolved.device,
        task=objective.task,
        block_size=objective.block_size,
        precision=resolved.training.precision,
        rehearsal=rehearsal,
    )
    return replace(context, progress=progress) if progress else context


def assemble(resolved: ResolvedRecipe, context: RunContext) -> Components:
    """Load the documents, build tokenizer and model, check that they fit together, and pack the tokens.

    The order finds mistakes before the expensive work: nothing is packed before the model fits.

    Raises:
        RecipeError: an option has to change; with its place.
        UnavailableError: the machine or the network lacks something.
    """
    from transformers import set_seed

    recipe = resolved.recipe
    remove_abandoned(context.cache)
    data = load_documents(resolved, context)
    with refusals_placed(recipe, ("dataset",)):
        contents = documents.contents_of(data, context.progress)
    tokenizer = _tokenizer(recipe, data, contents["train"].digest, context)
    set_seed(context.seed)  # the model's first weights
    model = _model(recipe, tokenizer, context)
    _check_own_loss(recipe, model, context)
    objective = recipe.objective.plugin
    _check_fit(recipe, tokenizer, model, objective)
    model = with_strategies(resolved, model, context)
    check_exporters(recipe, model, context)
    loss = checked_loss(recipe, model, context)
    try:
        packed = packing.prepare(data, contents, tokenizer, objective, context)
    except OptionError as error:
        raise recipe.error(error.message, PACKING_OPTIONS.get(error.option, ("dataset",))) from error
    return Components(tokenizer, model, packed, objective, loss, optimizer_wrapper(recipe, model, context))


def load_documents(
    resolved: ResolvedRecipe, context: RunContext, tokenizer: PreTrainedTokenizerBase | None = None
) -> DatasetDict:
    """Load the recipe's dataset, cut its texts at end tokens, draw its samples and hold out its evaluation share.

    The end token is that of `tokenizer`, or of the recipe's own if none is given.

    Raises:
        RecipeError, UnavailableError: the dataset plugin refuses.
    """
    recipe = resolved.recipe
    dataset = recipe.dataset.plugin
    with refusals_placed(recipe, ("dataset",)):
        data = dataset.load(context)
        if missing := [split for split in data if "text" not in data[split].column_names]:
            raise PluginError(f"the dataset plugin returned no column 'text' in {', '.join(map(str, missing))}")
        cut = dataset.holds_end_tokens() if dataset.cut_at_end_token is None else dataset.cut_at_end_token
    if cut:
        end = _end_token(recipe, context, tokenizer)
        data = documents.cut_at(data, end, context.cache) if end else data
    with refusals_placed(recipe, ("dataset",)):
        return documents.drawn(data, dataset)


def peek_documents(resolved: ResolvedRecipe) -> Peek | None:
    """Preview the first rows of the recipe's dataset; None if the plugin cannot without loading everything.

    Raises:
        RecipeError, UnavailableError: the dataset plugin refuses.
    """
    dataset = resolved.recipe.dataset.plugin
    with refusals_placed(resolved.recipe, ("dataset",)):
        return dataset.peek(context_of(resolved, Path(resolved.name)))


def _end_token(recipe: Recipe, context: RunContext, tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """The end token as written in a text: the tokenizer's own, or else the objective's (SEP, with BERT)."""
    if tokenizer is None:
        with refusals_placed(recipe, ("tokenizer",)):
            tokenizer = tokenizer_skeleton(recipe.tokenizer.plugin, context)
    if tokenizer.eos_token is not None:
        return str(tokenizer.eos_token)
    objective = recipe.objective.plugin
    with refusals_placed(recipe, ("objective",)):
        end = objective.document_end(tokenizer)
    return str(tokenizer.convert_ids_to_tokens(end[-1])) if end else None


def _tokenizer(recipe: Recipe, data: DatasetDict, digest: str, context: RunContext) -> PreTrainedTokenizerBase:
    with refusals_placed(recipe, ("tokenizer",)):
        return tokenizer_of(recipe.tokenizer, data["train"], digest, context)


def _model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: RunContext) -> PreTrainedModel:
    with refusals_placed(recipe, ("model",)):
        return recipe.model.plugin.build(tokenizer, context)


def _check_own_loss(recipe: Recipe, model: PreTrainedModel, context: RunContext) -> None:
    """Say so if the model has a loss of its own, because training uses the toolkit's."""
    from toolkit.training.without_effect import check_built

    with refusals_placed(recipe, ("model",)):
        if told := check_built(model, context.task):
            context.log.info("%s", told)


def _check_fit(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, objective: Objective
) -> None:
    """Catch now what would otherwise be an index error, or a silent leak between documents, in mid-run."""
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
        _check_batch(collate, model, objective.document_end(tokenizer), known=needed)


def check_exporters(recipe: Recipe, model: PreTrainedModel, context: RunContext) -> None:
    """Let the exporters object before training rather than after it."""
    for part in recipe.exporters:
        with refusals_placed(recipe, part.path):
            part.plugin.check(model, context)


def tokenizer_skeleton(plugin: Tokenizer, context: RunContext) -> PreTrainedTokenizerBase:
    """A tokenizer like the one that the plugin would build from the documents, without them."""
    return plugin.skeleton(context) if isinstance(plugin, TokenizerSkeleton) else plugin.build(iter(()), context)


def _check_batch(collate: Any, model: PreTrainedModel, end: tuple[int, ...], *, known: int) -> None:
    """Check that the model takes every entry of a batch, and isolates documents where `position_ids` restart.

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
    batch = collate([{"input_ids": numpy.array(first + second), "seed": 0}])
    if "position_ids" in batch and not takes(model, "position_ids"):
        raise OptionError(
            f"{type(model).__name__} takes no position_ids, which tell it where a document begins, so a document mask "
            f"would have no effect; set document_mask: false, or use another architecture",
            option="document_mask",
        )
    check_batch(batch, model)
    if not end or "position_ids" not in batch or batch["position_ids"][0, len(first)] != 0:
        return
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
