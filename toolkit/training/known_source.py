"""The documents of a dataset, known by a cheap fingerprint: where an earlier run has read them, they are not loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import __version__
from toolkit.api import Dataset, RunContext, Stream
from toolkit.data.documents import Contents, contents_of
from toolkit.data.filtering import identity
from toolkit.data.kept_contents import LazyDocuments, SourceFacts, keep_facts, known_facts
from toolkit.data.shared_text import shared_text
from toolkit.data.stats import FilterAccount
from toolkit.data.taking_turns import heard, taking_turns
from toolkit.errors import UnavailableError
from toolkit.recipe.document import Path_
from toolkit.recipe.schema import Component, Recipe
from toolkit.recipe.streams import is_stream
from toolkit.system import distributed
from toolkit.system.source_code import source_code_of
from toolkit.training.refusals import refusals_placed

if TYPE_CHECKING:
    from datasets import Dataset as Split
    from datasets import DatasetDict

Load = Callable[[Component[Dataset], Recipe, RunContext], "tuple[DatasetDict, tuple[FilterAccount, ...]]"]
"""Loads the documents of a dataset, and says what its filters did."""


@dataclass(frozen=True)
class SourceKey:
    """What identifies the documents of a dataset without reading them."""

    source: str
    """The dataset's name in a mixture; empty for the only one of a recipe."""
    name: str
    file: Path | None
    """The file that says what they are; None if the dataset has no fingerprint."""
    part: Component[Dataset]
    recipe: Recipe


@dataclass(frozen=True)
class Source:
    """The documents of a dataset."""

    name: str
    """In a mixture; empty for the only one of a recipe."""
    path: Path_
    """Where the recipe has it."""
    data: Mapping[str, Split]
    """The splits, which are loaded when they are first needed."""
    facts: SourceFacts
    stream: Stream | None = None
    """If it is read as one; then `data` is its beginning."""


def source_key(
    source: str, part: Component[Dataset], recipe: Recipe, context: RunContext, end_token: Callable[[], str | None]
) -> SourceKey:
    """Ask the dataset for its fingerprint; `end_token` says at which token texts are cut.

    Raises:
        RecipeError, UnavailableError: the dataset refuses.
    """
    dataset = part.plugin
    with refusals_placed(recipe, part.path):
        # What has none is at least the same for all processes of a run, so that one of them loads it.
        fingerprint = None if is_stream(dataset) else dataset.fingerprint(context) or distributed.launch_id()
        cut = fingerprint is not None and is_cut(dataset)
    end = end_token() if cut else None
    known = [context.task, context.block_size, context.seed, context.rehearsal]
    what = [__version__, part.name, part.distribution, source_code_of(type(dataset)), dataset.model_dump(mode="json")]
    filters = []
    for each in part.filters:
        with refusals_placed(recipe, each.path):
            filters += identity([each], context)
    name = hashlib.sha256(json.dumps([what, known, fingerprint, end, filters]).encode()).hexdigest()[:32]
    return SourceKey(
        source, name, None if fingerprint is None else context.cache / "sources" / f"{name}.json", part, recipe
    )


def source_of(key: SourceKey, load: Load, context: RunContext, patience: float) -> Source:
    """Find out what the documents are: from an earlier run, or by loading and hashing all of them.

    Raises:
        RecipeError, UnavailableError: the dataset refuses, or another process that loads it makes no progress for
            `patience` seconds.
    """
    if found := _known(key, load, context):
        return found
    with taking_turns(context, f"source-{key.name}", patience=patience) as alone:
        if found := _known(key, load, context):
            return found
        data, filters = load(key.part, key.recipe, alone)
        contents = _contents(key, data, alone)
        facts = SourceFacts(contents, filters, shared_text(data, contents, alone))
        if key.file:
            keep_facts(key.file, facts)
    return Source(key.source, key.part.path, data, facts)


def is_cut(dataset: Dataset) -> bool:
    """Whether texts are cut at end tokens."""
    return dataset.holds_end_tokens() if dataset.cut_at_end_token is None else dataset.cut_at_end_token


def _known(key: SourceKey, load: Load, context: RunContext) -> Source | None:
    file, context = key.file, replace(context, progress=heard(context.progress))
    if file is None or (facts := known_facts(file)) is None:
        return None

    def loaded_again() -> DatasetDict:
        data, _ = load(key.part, key.recipe, context)
        if _contents(key, data, context) != facts.contents:
            file.unlink(missing_ok=True)
            raise UnavailableError(
                "the documents are no longer those that an earlier run read, although their fingerprint is the same "
                "(of files: path, size and time); run the same command again, and it reads them anew"
            )
        return data

    return Source(key.source, key.part.path, LazyDocuments(loaded_again), facts)


def _contents(key: SourceKey, data: DatasetDict, context: RunContext) -> dict[str, Contents]:
    with refusals_placed(key.recipe, key.part.path):
        return contents_of(data, context.progress)
