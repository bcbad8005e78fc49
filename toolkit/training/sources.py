"""The datasets of a recipe, each prepared for itself, and put together to what a run trains on.

Most recipes have one; those with the dataset `mix` have one for each of its sources.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toolkit.api import RunContext
from toolkit.data import packing
from toolkit.data.mixture import MixedData, mixed
from toolkit.data.mixture_plan import MixturePlan
from toolkit.data.packing import PackedData
from toolkit.data.shared_text import shared_with_others
from toolkit.data.streamed_blocks import StreamedData
from toolkit.data.taking_turns import taking_turns
from toolkit.data.tokenizer_training import tokenizer_of
from toolkit.errors import OptionError, Problem, RecipeError
from toolkit.recipe.document import Path_, dotted
from toolkit.recipe.length import total_steps
from toolkit.recipe.mix import Mix, sources_of
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.streams import is_stream
from toolkit.system.cache import remove_abandoned
from toolkit.training.known_source import Source, SourceKey, source_key, source_of
from toolkit.training.loading import documents_of, end_token
from toolkit.training.refusals import PACKING_OPTIONS, refusals_placed
from toolkit.training.streams import prepared_whole, streamed, streamed_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """The part of a run's components that needs no model."""

    tokenizer: PreTrainedTokenizerBase
    data: PackedData | MixedData | StreamedData


def prepare(
    resolved: ResolvedRecipe, context: RunContext, *, workers: int | None = None, beside: bool = False
) -> Prepared:
    """Load the documents, build the tokenizer, and pack the tokens.

    With `beside`, the rest of a stream is prepared beside the training, and only its beginning is waited for.

    Raises:
        RecipeError: an option has to change; with its place.
        UnavailableError: the machine or the network lacks something, or another process that prepares the same data
            makes no progress.
    """
    remove_abandoned(context.cache)
    keys = known_sources(resolved, context)
    with contextlib.ExitStack() as stack:
        known = (key.file and key.file.exists() for key in keys if not is_stream(key.part.plugin))
        if not all(known):  # one does all, so that no other loads as well
            turn = taking_turns(context, f"data-{joined(keys)}", patience=resolved.training.ddp_timeout)
            context = stack.enter_context(turn)
            keys = known_sources(resolved, context)  # files may have changed while this process waited
        sources = loaded_sources(resolved, context, keys)
        tokenizer = tokenizer_for(resolved, sources, context)
        return Prepared(tokenizer, packed(resolved, sources, tokenizer, context, workers, beside=beside))


def known_sources(resolved: ResolvedRecipe, context: RunContext) -> list[SourceKey]:
    """What identifies the documents of each of the recipe's datasets without reading them."""
    recipe = resolved.recipe
    return [
        source_key(name, part, recipe, context, lambda: end_token(recipe, context, None))
        for name, part in sources_of(recipe).items()
    ]


def joined(keys: Sequence[SourceKey]) -> str:
    """A key of all: that of a single one is its own."""
    return _joined([key.name for key in keys])


def loaded_sources(
    resolved: ResolvedRecipe, context: RunContext, keys: Sequence[SourceKey] | None = None
) -> list[Source]:
    """The documents of each dataset, which are loaded only if they are not those that an earlier run read.

    Args:
        resolved: the recipe.
        context: of the run.
        keys: what identifies them; if not given, they are asked. Asking takes two system calls or more for each file.

    Raises:
        RecipeError, UnavailableError: a dataset plugin refuses.
    """
    patience = resolved.training.ddp_timeout
    return [
        streamed_source(key, context) if is_stream(key.part.plugin) else source_of(key, documents_of, context, patience)
        for key in (known_sources(resolved, context) if keys is None else keys)
    ]


def tokenizer_for(resolved: ResolvedRecipe, sources: Sequence[Source], context: RunContext) -> PreTrainedTokenizerBase:
    """Build the tokenizer, which may learn from the training documents of all sources, each of them once.

    Raises:
        RecipeError, UnavailableError: the tokenizer plugin refuses.
    """
    recipe, patience = resolved.recipe, resolved.training.ddp_timeout
    digest = _joined([source.facts.contents["train"].digest for source in sources])
    with refusals_placed(recipe, ("tokenizer",)):
        return tokenizer_of(recipe.tokenizer, [source.data for source in sources], digest, context, patience=patience)


def _joined(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def packed(
    resolved: ResolvedRecipe,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    context: RunContext,
    workers: int | None = None,
    *,
    beside: bool = False,
) -> PackedData | MixedData | StreamedData:
    """Pack the tokens of each source, and mix them; a stream is its recipe's only one.

    Raises:
        RecipeError: an option has to change; with its place.
        UnavailableError: the cache cannot be written.
    """
    if is_stream(resolved.recipe.dataset.plugin):
        (only,) = sources
        return streamed(resolved, only, tokenizer, context, beside=beside)
    prepared = {
        source.name: prepared_whole(resolved, source, tokenizer, context)
        if source.stream
        else _packed(resolved, source, tokenizer, context, workers)
        for source in sources
    }
    if len(sources) > 1:
        shared = shared_with_others({source.name: (source.data, source.facts.contents) for source in sources}, context)
        prepared = {
            name: replace(data, account=replace(data.account, shared_with=shared[name]))
            for name, data in prepared.items()
        }
    return data_of(resolved, prepared)


def _packed(
    resolved: ResolvedRecipe,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    context: RunContext,
    workers: int | None,
) -> PackedData:
    recipe, patience, facts = resolved.recipe, resolved.training.ddp_timeout, source.facts
    objective = recipe.objective.plugin
    try:
        found = packing.prepare(
            source.data, facts.contents, tokenizer, objective, context, workers=workers, patience=patience
        )
    except OptionError as error:
        about = f"{source.name}: " if source.name and error.option in PACKING_OPTIONS else ""
        raise recipe.error(about + error.message, PACKING_OPTIONS.get(error.option, source.path)) from error
    return replace(found, account=replace(found.account, filters=facts.filters, shared_text=facts.shared_text))


def data_of(resolved: ResolvedRecipe, sources: Mapping[str, PackedData]) -> PackedData | MixedData:
    """What the run trains on: its only dataset, or its sources mixed.

    Raises:
        RecipeError: the run would repeat a source more often than the recipe allows.
    """
    mix = resolved.recipe.dataset.plugin
    if not isinstance(mix, Mix):
        (only,) = sources.values()
        return only
    training, block_size = resolved.training, resolved.recipe.objective.plugin.block_size
    available = sum(len(data.train) for data in sources.values())
    steps = total_steps(training, block_size=block_size, blocks=available)
    data = mixed(sources, mix, blocks=steps * training.global_batch_size, seed=training.seed)
    if problems := list(too_small(resolved, data.plan, steps)):
        raise RecipeError(problems)
    return data


def too_small(resolved: ResolvedRecipe, plan: MixturePlan, steps: int) -> Iterator[Problem]:
    """A problem for each source that the run would repeat more often than the recipe allows."""
    refused, recipe = plan.too_small(steps=steps), resolved.recipe
    for index, name in enumerate(plan.passes_allowed):
        if name in refused:
            path: Path_ = ("dataset", "sources", index)
            yield Problem(recipe.document.place(path), dotted(path), refused[name])
