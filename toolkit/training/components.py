"""ResolvedRecipe -> Components: tokenizer, model and packed data.

torch is imported inside the functions only. What a plugin rejects is reported at its line of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.api import Objective, Peek, Progress, RunContext
from toolkit.data.mixture import MixedData
from toolkit.data.packing import PackedData
from toolkit.data.streamed_blocks import StreamedData
from toolkit.recipe.mix import Mix, peeked, sources_of
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.schema import Recipe
from toolkit.system.cache import cache_folder, remove_abandoned
from toolkit.training.fit import check_fit
from toolkit.training.refusals import refusals_placed
from toolkit.training.sources import Prepared, loaded_sources, packed, tokenizer_for
from toolkit.training.strategies import checked_loss, optimizer_wrapper, with_strategies

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from toolkit.training.loss import StepLoss


@dataclass(frozen=True)
class Components:
    """What a recipe's plugins built."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    data: PackedData | MixedData | StreamedData
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


def assemble(resolved: ResolvedRecipe, context: RunContext, prepared: Prepared | None = None) -> Components:
    """Load the documents, build tokenizer and model, check that they fit together, and pack the tokens.

    The order finds mistakes before the expensive work: nothing is packed before the model fits. What is `prepared`
    is packed already.

    Raises:
        RecipeError: an option has to change; with its place.
        UnavailableError: the machine or the network lacks something.
    """
    from transformers import set_seed

    from toolkit.training.cpu_attention import attend_in_blocks
    from toolkit.training.document_attention import attend_within_documents

    recipe = resolved.recipe
    remove_abandoned(context.cache)
    if prepared is None:
        sources = loaded_sources(resolved, context)
        tokenizer = tokenizer_for(resolved, sources, context)
    else:
        tokenizer = prepared.tokenizer
    set_seed(context.seed)  # the model's first weights
    model = _model(recipe, tokenizer, context)
    _check_own_loss(recipe, model, context)
    objective = recipe.objective.plugin
    with refusals_placed(recipe, ("objective",)):
        attend_within_documents(model, objective, tokenizer, context)
        attend_in_blocks(model, objective, context)
    check_fit(recipe, tokenizer, model, objective)
    model = with_strategies(resolved, model, context)
    check_exporters(recipe, model, context)
    loss = checked_loss(recipe, model, context)
    data = packed(resolved, sources, tokenizer, context, beside=True) if prepared is None else prepared.data
    return Components(tokenizer, model, data, objective, loss, optimizer_wrapper(recipe, model, context))


def peek_documents(resolved: ResolvedRecipe) -> Peek | None:
    """Preview the first rows of the recipe's datasets; None if the plugin cannot without loading everything.

    Raises:
        RecipeError, UnavailableError: a dataset plugin refuses, or a filter, which is made ready to judge.
    """
    context, peeks = context_of(resolved, Path(resolved.name)), {}
    for name, part in sources_of(resolved.recipe).items():
        with refusals_placed(resolved.recipe, part.path):
            peeks[name] = part.plugin.peek(context)
        for each in part.filters:
            with refusals_placed(resolved.recipe, each.path):
                each.plugin.judge(context)
    return peeked(peeks) if isinstance(resolved.recipe.dataset.plugin, Mix) else peeks[""]


def _model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: RunContext) -> PreTrainedModel:
    with refusals_placed(recipe, ("model",)):
        return recipe.model.plugin.build(tokenizer, context)


def _check_own_loss(recipe: Recipe, model: PreTrainedModel, context: RunContext) -> None:
    """Say so if the model has a loss of its own, because training uses the toolkit's."""
    from toolkit.training.without_effect import check_built

    with refusals_placed(recipe, ("model",)):
        if told := check_built(model, context.task):
            context.log.info("%s", told)


def check_exporters(recipe: Recipe, model: PreTrainedModel, context: RunContext) -> None:
    """Let the exporters object before training rather than after it."""
    for part in recipe.exporters:
        with refusals_placed(recipe, part.path):
            part.plugin.check(model, context)
