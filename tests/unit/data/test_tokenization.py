"""Shards of tokens: the same blocks whoever makes them, none is made twice, and what is damaged is made again."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from tests.tiny import WORDS, with_holes
from toolkit.api import RunContext
from toolkit.data import encoding, packing
from toolkit.data.documents import contents_of
from toolkit.data.encoding import BackendCalled, TokenizerCalled, batches, encoder_of
from toolkit.data.tokenizing_process import tokenizing_processes
from toolkit.errors import OptionError, UnavailableError
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

DOCUMENTS = ["", *(" ".join(WORDS[: 1 + number % 17]) for number in range(200)), "", " ".join(WORDS * 40), "the end"]


@pytest.fixture
def tokenizer(run_context: RunContext) -> Any:
    return ByteBPE(vocab_size=300).build(DOCUMENTS, run_context)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHARACTERS_PER_BATCH", 600)
    monkeypatch.setattr(encoding.pieces, "__defaults__", (100,))


def split(documents: list[str] = DOCUMENTS) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict({"text": documents}))


def made(tokenizer: Any, run: RunContext, data: DatasetDict | None = None, **options: Any) -> dict[str, bytes]:
    """What is in the cache once the documents are packed."""
    data = data or split()
    packing.prepare(data, contents_of(data), tokenizer, CausalLM(block_size=16), run, **options)
    (entry,) = (run.cache / "tokens").iterdir()
    return {file.name: file.read_bytes() for file in sorted(entry.iterdir())}


def elsewhere(run: RunContext, name: str) -> RunContext:
    from dataclasses import replace

    return replace(run, cache=run.cache.with_name(name))


@pytest.fixture
def whole(tokenizer: Any, run_context: RunContext) -> dict[str, bytes]:
    """What one shard of everything gives."""
    return made(tokenizer, elsewhere(run_context, "whole"))


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_shards_and_processes_gives_the_same_bytes(
    tokenizer: Any, run_context: RunContext, whole: dict[str, bytes], small_shards: None, workers: int
) -> None:
    assert len(list(batches(split()["train"]))) > 10
    assert made(tokenizer, run_context, workers=workers) == whole
    assert {folder.name for folder in run_context.cache.iterdir()} == {"tokens", "locks"}
    assert list((run_context.cache / "locks").iterdir()) == []


def test_a_batch_begins_where_the_one_before_it_ends(small_shards: None) -> None:
    rows = split()["train"]
    found = list(batches(rows))
    for number, batch in enumerate(found):
        assert next(batches(rows, begin=batch.begin)) == batch
        assert batch.end == (found[number + 1].begin if batch is not found[-1] else (len(rows), 0))


class Counting:
    """Counts the texts that it encodes in this process, and may fail after some."""

    def __init__(self, tokenizer: Any, most: int = 10**9) -> None:
        self.encode, self.most, self.count = BackendCalled(tokenizer.backend_tokenizer.to_str(), False), most, 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        self.count += len(texts)
        if self.count > self.most:
            raise KeyboardInterrupt
        return self.encode(texts)


def test_what_was_interrupted_goes_on_where_it_was(
    tokenizer: Any,
    run_context: RunContext,
    whole: dict[str, bytes],
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Counting(tokenizer, most=150)
    monkeypatch.setattr(packing, "encoder_of", lambda _: first)
    with pytest.raises(KeyboardInterrupt):
        made(tokenizer, run_context, workers=1)
    shards = sorted((run_context.cache / "tokens").glob(".unfinished-*/*.npz"))
    assert len(shards) > 4
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-200])
    lost = [
        batch for number, batch in enumerate(batches(split()["train"])) if number in (1, 2) or number >= len(shards)
    ]
    second = Counting(tokenizer)
    monkeypatch.setattr(packing, "encoder_of", lambda _: second)
    assert made(tokenizer, run_context, workers=1) == whole
    assert second.count == sum(len(batch.texts) for batch in lost)


@pytest.fixture
def only_small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_a_file_cannot_be_written_what_is_done_stays(
    tokenizer: Any, run_context: RunContext, small_shards: None, only_small_files: None
) -> None:
    data = split(DOCUMENTS * 3)
    with pytest.raises(
        UnavailableError, match=r"cannot write to the cache .*; \d+ finished parts of the work will not"
    ):
        made(tokenizer, run_context, data, workers=1)
    assert len(list((run_context.cache / "tokens").glob(".unfinished-*/*.npz"))) > 10


def test_parts_without_a_token_belong_to_their_document(run_context: RunContext, small_shards: None) -> None:
    """A document begins with its first token, wherever the shards are cut."""
    tokenizer = with_holes(3)
    blank = " " * 1500
    data = split([blank + WORDS[0], blank, blank + WORDS[1] + blank + WORDS[2] + blank, WORDS[3], blank] * 9)
    one = packing.prepare(data, contents_of(data), tokenizer, CausalLM(block_size=8), run_context)
    line = [token for blocks in one.train.tokens.tolist() for token in blocks]
    ids = [tokenizer.convert_tokens_to_ids(word) for word in WORDS[:4]]
    end = tokenizer.eos_token_id
    assert line == ([ids[0], end, ids[1], ids[2], end, ids[3], end] * 9)[: len(line)]
    assert (one.account.train.documents, one.account.train.empty_documents) == (27, 18)
    assert one.train.documents
    assert one.train.documents.rows[:4].tolist() == [0, 2, 3, 5]
    assert one.train.documents.offsets[:4].tolist() == [0, 2, 5, 7]


class Killing:
    """Kills its own process."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


class Refusing:
    """Refuses every text."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        raise ValueError("no such text")


def test_what_goes_wrong_in_a_process_is_told(tmp_path: Path) -> None:
    (batch,) = batches(split()["train"])
    with (
        pytest.raises(UnavailableError, match=r"a process that tokenizes was ended by SIGKILL; .* fewer --workers"),
        tokenizing_processes(1, Killing(), 300) as processes,
    ):
        processes.make(batch, tmp_path / "shard.npz")
    with tokenizing_processes(1, Refusing(), 300) as processes:
        with pytest.raises(OptionError, match=r"cannot encode a text in .* number 1 on: no such text"):
            processes.make(batch, tmp_path / "shard.npz")
        with pytest.raises(OptionError, match="no such text"):  # and it lives
            processes.make(batch, tmp_path / "shard.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_a_way_of_its_own_is_called(tokenizer: Any) -> None:
    def _encode_plus(self: Any, *arguments: Any, **options: Any) -> Any:
        return type(tokenizer)._encode_plus(self, *arguments, **options)

    own_class: Any = type("Own", (type(tokenizer),), {"_encode_plus": _encode_plus})
    own = own_class(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    assert isinstance(encoder_of(own), TokenizerCalled)
    plain = encoder_of(tokenizer)
    assert isinstance(plain, BackendCalled)
    assert plain(DOCUMENTS) == TokenizerCalled(tokenizer)(DOCUMENTS) == encoder_of(own)(DOCUMENTS)
