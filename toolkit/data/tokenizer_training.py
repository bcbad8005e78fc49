"""Builds a run's tokenizer: what it learns from the documents is cached, and progress is shown meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.api import Progress, RunContext, Tokenizer
from toolkit.data import documents
from toolkit.recipe.schema import Component
from toolkit.system.cache import text_kept
from toolkit.system.threads import meanwhile

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TOKENIZER_TEXT_FORMAT = 1
"""Raise this when the cached text changes its meaning."""


class Corpus:
    """The training documents, counted as the tokenizer reads them."""

    def __init__(self, split: Dataset) -> None:
        self.split = split
        self.read = 0

    def __iter__(self) -> Iterator[str]:
        for batch in documents.texts(self.split):
            for text in batch:
                self.read += 1
                if text:
                    yield text


def tokenizer_of(
    component: Component[Tokenizer], split: Dataset, digest: str, context: RunContext
) -> PreTrainedTokenizerBase:
    """Have the plugin build its tokenizer; `digest` is that of the documents in `split`.

    Raises:
        OptionError: the plugin refuses.
        UnavailableError: what it learned cannot be written to the cache, or the plugin lacks something.
    """
    corpus = Corpus(split)
    file = context.cache / "tokenizers" / _key(component, digest, context)

    def learned(learn: Callable[[], str]) -> str:
        return text_kept(file, learn)

    with _shown(corpus, context.progress):
        return component.plugin.build(iter(corpus), replace(context, learned=learned))


def _key(component: Component, digest: str, context: RunContext) -> str:
    """Cache key of what a tokenizer learns: the plugin, its options, the documents, and what it may know of the run."""
    plugin = component.plugin
    parts = [
        TOKENIZER_TEXT_FORMAT,
        component.name,
        component.distribution,
        _source(type(plugin)),
        plugin.model_dump(mode="json"),
        digest,
        [context.task, context.block_size, context.seed, context.rehearsal],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _source(plugin: type) -> str:
    """Source of the plugin's module, which its author may have changed without a new version."""
    with contextlib.suppress(OSError):
        return inspect.getsource(sys.modules[plugin.__module__])
    return ""


@contextlib.contextmanager
def _shown(corpus: Corpus, progress: Progress) -> Iterator[None]:
    """Report how much of the corpus is read, and keep reporting after that, when most of the learning happens."""

    def tell() -> None:
        if corpus.read:
            progress("training the tokenizer", corpus.read, len(corpus.split), unit="documents")

    # From a thread: tokenizer training releases the GIL, but has no progress callback.
    with meanwhile(tell, name="tokenizer-progress"):
        yield
