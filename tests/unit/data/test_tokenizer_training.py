"""What a tokenizer has learned is kept for the same documents and options, and shown while it is learned."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from tests.tiny import WORDS
from toolkit.api import RunContext, Tokenizer
from toolkit.data.documents import contents_of
from toolkit.data.tokenizer_training import tokenizer_of
from toolkit.recipe.schema import Component
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

DOCUMENTS = [" ".join(WORDS[:count]) for count in range(1, 20)] * 3
BPE = Component("byte-bpe", ByteBPE(vocab_size=300), "toolkit 1")


@pytest.fixture
def learnings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each time that byte-bpe learns."""
    learn, count = ByteBPE._learned, list[int]()

    def counted(*arguments: Any) -> Any:
        count.append(len(count))
        return learn(*arguments)

    monkeypatch.setattr(ByteBPE, "_learned", counted)
    return count


def built(run: RunContext, component: Component = BPE, documents: list[str] = DOCUMENTS) -> Any:
    data = DatasetDict(train=Dataset.from_dict({"text": documents}))
    return tokenizer_of(component, [data], contents_of(data)["train"].digest, run)


def saved(tokenizer: Any, folder: Path) -> dict[str, bytes]:
    tokenizer.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_tokenizer_is_learned_once(run_context: RunContext, learnings: list[int], tmp_path: Path) -> None:
    files = saved(built(run_context), tmp_path / "first")
    assert saved(built(run_context), tmp_path / "second") == files
    assert len(learnings) == 1
    (kept,) = (run_context.cache / "tokenizers").glob("[0-9a-f]*")
    kept.write_bytes(kept.read_bytes()[:-9])
    assert saved(built(run_context), tmp_path / "third") == files
    assert len(learnings) == 2
    assert saved(ByteBPE(vocab_size=300).build(DOCUMENTS, run_context), tmp_path / "uncached") == files


@pytest.mark.parametrize(
    ("component", "documents", "run"),
    [
        (replace(BPE, plugin=ByteBPE(vocab_size=290)), DOCUMENTS, {}),
        (replace(BPE, distribution="toolkit 2"), DOCUMENTS, {}),
        (BPE, [*DOCUMENTS, "more"], {}),
        (BPE, DOCUMENTS, {"task": "masked-lm"}),
    ],
    ids=["options", "version", "documents", "task"],
)
def test_what_could_change_it_has_it_learned_again(
    run_context: RunContext, learnings: list[int], component: Component, documents: list[str], run: dict[str, Any]
) -> None:
    built(run_context)
    built(replace(run_context, **run), component, documents)
    assert len(learnings) == 2


SHOWN = threading.Event()
"""That the tokenizer is being learned was shown often enough."""


class Slow(Tokenizer):
    """Learns for a while after it has read."""

    def build(self, corpus: Iterable[str], run: RunContext) -> Any:
        """Read, and then do as native code does, which calls nobody."""
        assert len(list(corpus)) == len(DOCUMENTS)
        assert SHOWN.wait(120)


class Loaded(Tokenizer):
    """Reads no documents."""

    def build(self, corpus: Iterable[str], run: RunContext) -> Any:
        """Take its time."""
        time.sleep(0.1)


def test_learning_is_shown_and_loading_is_not_taken_for_it(
    run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.system.threads.PROGRESS_SECONDS", 0.01)
    told: list[tuple[Any, ...]] = []

    def progress(phase: str, done: int, total: int | None = None, *, unit: str) -> None:
        told.append((phase, done, total, unit))
        if told.count(learning) > 3:
            SHOWN.set()

    everything = len(DOCUMENTS) + 1
    learning = ("training the tokenizer", everything, everything, "documents")
    SHOWN.clear()
    run = replace(run_context, progress=progress)
    built(run, Component("loaded", Loaded(), "toolkit 1"))
    assert told == []
    built(run, Component("slow", Slow(), "toolkit 1"), ["", *DOCUMENTS])
    assert told.count(learning) > 3
