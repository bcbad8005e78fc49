"""A dataset's documents, as they are tokenized: loaded, cut at end tokens, filtered, sampled, and held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.api import Dataset, Filter, RunContext, Tokenizer, TokenizerSkeleton
from toolkit.data import documents
from toolkit.data.filtering import filtered
from toolkit.data.stats import FilterAccount
from toolkit.errors import OptionError, PluginError
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.schema import Component, Recipe
from toolkit.training.known_source import is_cut
from toolkit.training.refusals import refusals_placed

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase


def documents_by_source(
    resolved: ResolvedRecipe, context: RunContext, tokenizer: PreTrainedTokenizerBase | None = None
) -> dict[str, DatasetDict]:
    """The documents of each of the recipe's datasets, as `documents_of` gives them: those of a mixture by name."""
    recipe = resolved.recipe
    return {name: documents_of(part, recipe, context, tokenizer)[0] for name, part in sources_of(recipe).items()}


def documents_of(
    part: Component[Dataset], recipe: Recipe, context: RunContext, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[DatasetDict, tuple[FilterAccount, ...]]:
    """Load a dataset, cut its texts at end tokens, filter them, draw its samples and hold out its evaluation share.

    The end token is that of `tokenizer`, or of the recipe's own if none is given.

    Returns:
        The documents, and what each filter made of those to train on.

    Raises:
        RecipeError, UnavailableError: the dataset plugin or a filter refuses.
    """
    dataset = part.plugin
    with refusals_placed(recipe, part.path):
        data = dataset.load(context)
        tokens = {split: documents.holds_tokens(data[split]) for split in data}
        if missing := [split for split in data if not tokens[split] and "text" not in data[split].column_names]:
            raise PluginError(f"the dataset plugin returned no column 'text' in {', '.join(map(str, missing))}")
        cut = is_cut(dataset)
        if cut and any(tokens.values()):
            raise OptionError("the dataset holds tokens, and no text to cut", option="cut_at_end_token")
    if part.filters and tokens["train"]:
        with refusals_placed(recipe, part.filters[0].path):
            raise OptionError("filters read text, and the dataset holds tokens: clean the text before it is tokenized")
    if cut:
        end = end_token(recipe, context, tokenizer)
        data = documents.cut_at(data, end, context.cache) if end else data
    comparing = [each for each in part.filters if each.plugin.needs_held_out()]
    data, accounts = _filtered(data, part, [each for each in part.filters if each not in comparing], recipe, context)
    with refusals_placed(recipe, part.path):
        data = documents.drawn(data, dataset)
    if not comparing:
        return data, accounts
    if "validation" not in data:
        with refusals_placed(recipe, comparing[0].path):
            raise OptionError("nothing is held out to compare with; set eval_fraction on the dataset")
    context = replace(context, held_out=documents.held_out_texts(data["validation"], context.cache))
    data, more = _filtered(data, part, comparing, recipe, context)
    return data, (*accounts, *more)


def _filtered(
    data: DatasetDict,
    part: Component[Dataset],
    filters: Sequence[Component[Filter]],
    recipe: Recipe,
    context: RunContext,
) -> tuple[DatasetDict, tuple[FilterAccount, ...]]:
    """Filter the training documents; what a dataset has of its own to be held out stays as it is."""
    from datasets import DatasetDict

    if not filters:
        return data, ()
    with refusals_placed(recipe, part.path):
        contents = documents.contents_of(DatasetDict(train=data["train"]), context.progress)["train"]
    train, accounts = filtered(
        data["train"],
        contents,
        filters,
        context,
        recipe.registry,
        placed=lambda one: refusals_placed(recipe, one.path),
    )
    return DatasetDict({**data, "train": train}), accounts


def end_token(recipe: Recipe, context: RunContext, tokenizer: PreTrainedTokenizerBase | None) -> str | None:
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


def tokenizer_skeleton(plugin: Tokenizer, context: RunContext) -> PreTrainedTokenizerBase:
    """A tokenizer like the one that the plugin would build from the documents, without them."""
    return plugin.skeleton(context) if isinstance(plugin, TokenizerSkeleton) else plugin.build(iter(()), context)
