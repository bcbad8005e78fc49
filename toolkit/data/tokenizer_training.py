"""Builds a run's tokenizer: what it learns from the documents is cached, and progress is shown meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.api import Progress, RunContext, Tokenizer
from toolkit.data import documents
from toolkit.data.taking_turns import PATIENCE_SECONDS, taking_turns
from toolkit.recipe.schema import Component
from toolkit.system.cache import kept_text, text_kept
from toolkit.system.source_code import source_code_of
from toolkit.system.threads import meanwhile

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TOKENIZER_TEXT_FORMAT = 1
"""Raise this when the cached text changes its meaning."""


class Corpus:
    """The training documents of all sources, counted as the tokenizer reads them."""

    def __init__(self, sources: Sequence[Mapping[str, Dataset]], progress: Progress) -> None:
        self.sources = sources
        self.progress = progress
        self.read = 0

    def __len__(self) -> int:
        return sum(len(data["train"]) for data in self.sources)

    def __iter__(self) -> Iterator[str]:
        for data in self.sources:
            for batch in documents.texts(data["train"]):
                for text in batch:
                    self.read += 1
                    if text:
                        yield text


def tokenizer_of(
    component: Component[Tokenizer],
    sources: Sequence[Mapping[str, Dataset]],
    digest: str,
    context: RunContext,
    *,
    patience: float = PATIENCE_SECONDS,
) -> PreTrainedTokenizerBase:
    """Have the plugin build its tokenizer; `digest` is that of the training documents of the `sources`.

    Raises:
        OptionError: the plugin refuses.
        UnavailableError: what it learned cannot be written to the cache, or the plugin lacks something, or another
            process that learns the same makes no progress for `patience` seconds.
    """
    corpus = Corpus(sources, context.progress)
    file = context.cache / "tokenizers" / _key(component, digest, context)

    def learned(learn: Callable[[], str]) -> str:
        if (kept := kept_text(file)) is not None:
            return kept
        with taking_turns(context, f"tokenizer-{file.name}", patience=patience) as alone:
            corpus.progress = alone.progress  # so that whoever waits sees it
            return text_kept(file, learn)

    with _shown(corpus):
        return component.plugin.build(iter(corpus), replace(context, learned=learned))


def _key(component: Component, digest: str, context: RunContext) -> str:
    """Cache key of what a tokenizer learns: the plugin, its options, the documents, and what it may know of the run."""
    plugin = component.plugin
    parts = [
        TOKENIZER_TEXT_FORMAT,
        component.name,
        component.distribution,
        source_code_of(type(plugin)),
        plugin.model_dump(mode="json"),
        digest,
        [context.task, context.block_size, context.seed, context.rehearsal],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _shown(corpus: Corpus) -> Iterator[None]:
    """Report how much of the corpus is read, and keep reporting after that, when most of the learning happens."""

    def tell() -> None:
        if corpus.read:
            corpus.progress("training the tokenizer", corpus.read, len(corpus), unit="documents")

    # From a thread: tokenizer training releases the GIL, but has no progress callback.
    with meanwhile(tell, name="tokenizer-progress"):
        yield
