"""ResolvedRecipe -> what is in its data, seen with the tokenizer and the blocks that a run would have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.api import OptionError, RunContext
from toolkit.api.streams import BEGINNING_CHARACTERS
from toolkit.data import documents
from toolkit.data.inspection import MOST_CHARACTERS, Inspection, inspect, sampled_rows
from toolkit.data.kept_contents import SourceFacts
from toolkit.events import Listener, Message, ProgressReporter
from toolkit.formatting import compact
from toolkit.logs import libraries_quiet, plugin_messages_told
from toolkit.recipe.document import Path_
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recipe.streams import is_stream
from toolkit.training.components import context_of
from toolkit.training.known_source import Source
from toolkit.training.loading import documents_by_source
from toolkit.training.refusals import PACKING_OPTIONS, refusals_placed
from toolkit.training.sources import tokenizer_for

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase


def inspect_data(resolved: ResolvedRecipe, *, most_documents: int, listener: Listener) -> dict[str, Inspection]:
    """Load the recipe's documents and look at so many of them at most, of each source of a mixture.

    Returns:
        What was seen, by the source's name; under '' if there is one dataset.

    Raises:
        RecipeError: an option has to change; with its place.
        UnavailableError: the machine or the network lacks something.
    """
    recipe = resolved.recipe
    context = context_of(resolved, Path(resolved.name), progress=ProgressReporter(listener))
    seen = {}
    for name, part in sources_of(recipe).items():
        if is_stream(part.plugin):
            most = f"at most {compact(BEGINNING_CHARACTERS)} characters"
            listener(Message(f"{name or 'the dataset'} is a stream: this is its beginning, {most}"))
    with plugin_messages_told(listener), libraries_quiet():
        sources = documents_by_source(resolved, context)
        tokenizer = _tokenizer(resolved, sources, context, most_documents, listener)
        for name, part in sources_of(recipe).items():
            try:
                seen[name] = inspect(
                    sources[name],
                    tokenizer,
                    recipe.objective.plugin,
                    documents=most_documents,
                    progress=context.progress,
                )
            except OptionError as error:
                raise recipe.error(error.message, PACKING_OPTIONS.get(error.option, part.path)) from error
    return seen


def _tokenizer(
    resolved: ResolvedRecipe,
    sources: Mapping[str, DatasetDict],
    context: RunContext,
    most_documents: int,
    listener: Listener,
) -> PreTrainedTokenizerBase:
    """The run's tokenizer; if it learns from the documents and they are many, one that has learned from samples."""
    recipe, splits = resolved.recipe, [data["train"] for data in sources.values()]
    if all(len(split) <= most_documents for split in splits):
        parts = sources_of(recipe)
        return tokenizer_for(
            resolved, [_known(recipe, name, parts[name].path, data, context) for name, data in sources.items()], context
        )
    corpus = _Beginning([split.select(sorted(sampled_rows(len(split), most_documents))) for split in splits])
    with refusals_placed(recipe, ("tokenizer",)):
        tokenizer = recipe.tokenizer.plugin.build(iter(corpus), context)
    if corpus.is_read:
        learned = sum(map(len, corpus.splits))
        listener(Message(f"the tokenizer has learned from {learned:,} of {sum(map(len, splits)):,} documents"))
    return tokenizer


def _known(recipe: Recipe, name: str, path: Path_, data: DatasetDict, context: RunContext) -> Source:
    with refusals_placed(recipe, path):
        return Source(name, path, data, SourceFacts(documents.contents_of(data, context.progress)))


class _Beginning:
    """The texts of splits, up to `MOST_CHARACTERS`."""

    def __init__(self, splits: Sequence[Dataset]) -> None:
        self.splits = splits
        self.is_read = False

    def __iter__(self) -> Iterator[str]:
        characters = 0
        for batch in (batch for split in self.splits for batch in documents.texts(split)):
            for text in batch:
                self.is_read = True
                characters += len(text)
                if text:
                    yield text
                if characters > MOST_CHARACTERS:
                    return
