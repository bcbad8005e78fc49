"""ResolvedRecipe -> its documents as token ids in the format of another trainer."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.api import OptionError, highest_id
from toolkit.data.encoding import batches, check_given, encoder_of
from toolkit.data.token_files import VALIDATION_NAMES, TokenFileWriter, TokenFormat, WrittenTokens
from toolkit.errors import UnavailableError, UsageError
from toolkit.events import Listener, ProgressReporter
from toolkit.logs import libraries_quiet, plugin_messages_told
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.streams import is_stream
from toolkit.training.components import context_of
from toolkit.training.known_source import Source
from toolkit.training.refusals import PACKING_OPTIONS
from toolkit.training.sources import loaded_sources, tokenizer_for

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def export_tokens(
    resolved: ResolvedRecipe, output: Path, token_format: TokenFormat, *, listener: Listener
) -> dict[str, WrittenTokens]:
    """Tokenize the recipe's documents and write them, and the tokenizer, into a new folder; by split.

    In a mixture each source has its own files, SOURCE-SPLIT.

    Raises:
        UsageError: the folder exists.
        RecipeError: an option has to change; with its place.
        UnavailableError: the machine or the network lacks something; the folder is then not there.
    """
    if output.exists():
        raise UsageError(f"{output} exists already; name another folder with --output, or remove it")
    recipe, objective = resolved.recipe, resolved.recipe.objective.plugin
    for part in sources_of(recipe).values():
        if is_stream(part.plugin):
            raise recipe.error("a stream is read and thrown away, and cannot be exported", (*part.path, "max_tokens"))
    context = context_of(resolved, Path(resolved.name), progress=ProgressReporter(listener))
    written: dict[str, WrittenTokens] = {}
    with plugin_messages_told(listener), libraries_quiet():
        sources = loaded_sources(resolved, context)
        tokenizer = tokenizer_for(resolved, sources, context)
        total = sum(one.characters for each in sources for one in each.facts.contents.values())
        parts = [(source, split) for source in sources for split in source.facts.contents]
        done = 0
        with _made_or_removed(output):
            for source, split in parts:
                file = VALIDATION_NAMES[token_format] if split == "validation" else split
                try:
                    with TokenFileWriter(
                        output,
                        _name(source, file),
                        token_format,
                        highest_id(tokenizer),
                        objective.document_end(tokenizer),
                    ) as writer:
                        for characters in _write(writer, source.data[split], tokenizer):
                            done += characters
                            context.progress("tokenizing", done, total or None, unit="characters")
                except OptionError as error:
                    path = PACKING_OPTIONS.get(error.option, source.path)
                    raise recipe.error(error.message, path) from error
                written[_name(source, split)] = writer.written()
            tokenizer.save_pretrained(output / "tokenizer")
    return written


def _name(source: Source, split: str) -> str:
    """The split's name, with that of its source in a mixture before it."""
    return f"{source.name}-{split}" if source.name else split


def _write(writer: TokenFileWriter, split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """Write the documents that have a token, and yield the characters of each batch."""
    check_given(split, tokenizer)
    encode, ids = encoder_of(tokenizer), list[int]()
    for batch in batches(split):
        shard = batch.shard(encode, writer.highest_id)
        for (_, some), is_last in zip(shard.by_text(), batch.is_last, strict=True):
            ids += some.tolist()
            if is_last and ids:
                writer.write(ids)
                ids = []
        yield int(shard.characters)


@contextlib.contextmanager
def _made_or_removed(folder: Path) -> Iterator[None]:
    """A new folder, which is gone again if what fills it fails."""
    try:
        folder.mkdir(parents=True)
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UnavailableError(f"cannot write to {folder}: {error.strerror}") from error
        raise
