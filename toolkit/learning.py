"""Builds the tokenizer of a run: what one learns from the documents is kept, and shown while it takes its time."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from toolkit import documents
from toolkit.api import Progress, RunContext, Tokenizer
from toolkit.cache import text_kept
from toolkit.recipe.schema import Component

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
"""Raise this when what is kept means something else."""
BEAT_SECONDS = 0.5


class Corpus:
    """The training documents, counted as a tokenizer reads them."""

    def __init__(self, split: Dataset) -> None:
        self.split = split
        self.read = 0

    def __iter__(self) -> Iterator[str]:
        for batch in documents.texts(self.split):
            for text in batch:
                self.read += 1
                if text:
                    yield text


def tokenizer_of(component: Component, split: Dataset, digest: str, context: RunContext) -> PreTrainedTokenizerBase:
    """Have the plugin build its tokenizer; `digest` is of the documents in `split`.

    Raises:
        OptionError: the plugin refuses.
        UnavailableError: what it has learned cannot be written to the cache, or the plugin lacks something.
    """
    plugin = cast(Tokenizer, component.plugin)
    corpus = Corpus(split)
    file = context.cache / "tokenizers" / _key(component, digest, context)

    def learned(learn: Callable[[], str]) -> str:
        return text_kept(file, learn)

    with _shown(corpus, context.progress):
        return plugin.build(iter(corpus), replace(context, learned=learned))


def _key(component: Component, digest: str, context: RunContext) -> str:
    """What decides what a tokenizer learns: the plugin, its options, the documents, and what it may know of the run."""
    plugin = component.plugin
    parts = [
        FORMAT,
        component.name,
        component.distribution,
        _source(type(plugin)),
        plugin.model_dump(mode="json"),
        digest,
        [context.task, context.block_size, context.seed, context.rehearsal],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _source(plugin: type) -> str:
    """The text of the plugin's module, which its author may have changed and not its version."""
    with contextlib.suppress(OSError):
        return inspect.getsource(sys.modules[plugin.__module__])
    return ""


@contextlib.contextmanager
def _shown(corpus: Corpus, progress: Progress) -> Iterator[None]:
    """Tell how much of the corpus is read, and after that, as most of the learning comes then, that it goes on."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(BEAT_SECONDS):
            if corpus.read:
                progress("learning the tokenizer", corpus.read, len(corpus.split), unit="documents")

    # The libraries that learn release the interpreter's lock, but do not call back.
    thread = threading.Thread(target=tell, name="tokenizer-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
