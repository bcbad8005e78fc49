"""The preparation of a stream: killed at any document it ends the same; what cannot be read is told."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.streams import sentences
from tests.tiny import with_holes
from toolkit.api import (
    Dropped,
    Filter,
    OptionError,
    RunContext,
    Stream,
    StreamingDataset,
    UnavailableError,
    UnreadableFileError,
)
from toolkit.data import stream_preparation
from toolkit.data.stream_filters import accounts
from toolkit.data.stream_preparation import StreamToPrepare, prepare_stream
from toolkit.data.stream_state import state_of
from toolkit.recipe.schema import Component
from toolkit_plugins.filter.decontamination import Decontamination
from toolkit_plugins.filter.length import Length
from toolkit_plugins.filter.regex import Regex
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.objective.masked_lm import MaskedLM

FILES = {f"file-{number}": sentences(number, 20) for number in range(4)}


@dataclass
class Files(Stream):
    """Files in memory, of which one ends the process, or cannot be read, at a document."""

    dies: tuple[str, int] | None = None
    ends: tuple[str, int] | None = None
    identity: str = "files"
    files: tuple[str, ...] = tuple(FILES)
    validation_files: tuple[str, ...] = ()

    def texts(self, file: str, start: int = 0) -> Iterator[str]:
        for row, text in enumerate(FILES[file]):
            if self.dies == (file, row):
                raise Killed
            if self.ends == (file, row):
                raise UnreadableFileError("it ends in the middle")
            if row >= start:
                yield text


class Killed(BaseException):
    """Nobody catches it."""


class InMemory(StreamingDataset):
    """The files above."""

    def load(self, run: RunContext) -> Any:
        raise NotImplementedError

    def stream(self, run: RunContext) -> Files:
        return Files()


@pytest.fixture
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_preparation, "CHARACTERS_PER_BATCH", 500)
    monkeypatch.setattr("toolkit.data.encoding.CHARACTERS_PER_PIECE", 100)


class Emptying(Filter):
    """Leaves nothing of a document, and does not drop it."""

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        return lambda document: ""


FILTERS = (
    Component("length", Length(min_words=30), "toolkit"),
    Component("regex", Regex(pattern=r"\b[a-f]\w+ ", replace=""), "toolkit"),
)


def work(entry: Path, stream: Files | None = None, **options: Any) -> StreamToPrepare:
    given = {"max_tokens": 800, "shuffle_tokens": 200, "eval_samples": 7, **options}
    objective, filters = given.pop("objective", CausalLM(block_size=16)), given.pop("filters", ())
    return StreamToPrepare(InMemory(**given), stream or Files(), with_holes(5), objective, entry, "lock", filters)


def content(entry: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(entry.iterdir())}


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize("filters", [(), FILTERS])
@pytest.mark.parametrize("objective", [CausalLM(block_size=16), MaskedLM(block_size=16)])
def test_killed_at_every_fifth_document_it_ends_the_same(
    tmp_path: Path, run_context: RunContext, objective: Any, filters: Any
) -> None:
    options = {"objective": objective, "filters": filters}
    prepare_stream(work(tmp_path / "alone", **options), run_context)
    killed, deaths = tmp_path / "killed", 0
    for file in work(killed).dataset.training_files(Files()):
        for row in range(0, 20, 5):
            died = work(killed, Files(dies=(file, row)), **options)
            if died.is_complete:
                continue
            try:
                prepare_stream(died, run_context)
            except Killed:
                deaths += 1
    prepare_stream(work(killed, **options), run_context)
    assert deaths > 5
    assert content(killed) == content(tmp_path / "alone")


@pytest.mark.usefixtures("_small_batches")
def test_the_blocks_are_the_documents_in_the_order_of_the_files(tmp_path: Path, run_context: RunContext) -> None:
    made = work(tmp_path / "made")
    prepare_stream(made, run_context)
    order = [text for file in made.dataset.training_files(made.stream) for text in FILES[file]]
    tokenizer, end = made.tokenizer, made.objective.document_end(made.tokenizer)
    line = [token for text in order[7:] for token in [*tokenizer(text)["input_ids"], *end]]
    tokens = numpy.fromfile(tmp_path / "made" / "train.tokens", "uint16")
    blocks = state_of(tmp_path / "made").blocks
    assert blocks >= made.blocks == 50
    assert tokens[: blocks * 16].tolist() == line[: blocks * 16]
    held_out = numpy.fromfile(tmp_path / "made" / "validation.tokens", "uint16")
    expected = [token for text in order[:7] for token in [*tokenizer(text)["input_ids"], *end]]
    assert held_out.tolist() == expected[: len(held_out)]
    assert len(held_out) == len(expected) // 16 * 16
    account = state_of(tmp_path / "made").account(blocks=50, room=16, frame_tokens=0)
    assert account.tokens == 800 + account.tokens_dropped
    starts = numpy.fromfile(tmp_path / "made" / "train.documents", "int64").reshape(-1, 2)
    assert starts[:, 0].tolist() == list(range(account.documents))


@pytest.mark.usefixtures("_small_batches")
def test_the_blocks_are_what_the_filters_leave(tmp_path: Path, run_context: RunContext) -> None:
    made = work(tmp_path / "made", filters=FILTERS)
    prepare_stream(made, run_context)
    order = [text for file in made.dataset.training_files(made.stream) for text in FILES[file]]
    read = state_of(tmp_path / "made").document
    assert len(order) > read > 7
    long = [text for text in order[7 : 7 + read] if len(text.split()) >= 30]
    left = [re.sub(r"\b[a-f]\w+ ", "", text) for text in long]
    end = made.objective.document_end(made.tokenizer)
    line = [token for text in left for token in [*made.tokenizer(text)["input_ids"], *end]]
    state = state_of(tmp_path / "made")
    tokens = numpy.fromfile(tmp_path / "made" / "train.tokens", "uint16")[: state.blocks * 16]
    assert tokens.tolist() == line[: state.blocks * 16]
    length, regex = accounts(FILTERS, state.filters)
    assert (length.documents, length.dropped_documents) == (read, read - len(long))
    assert (regex.documents, regex.changed_documents) == (len(long), sum(map(str.__ne__, long, left)))
    assert regex.changed_characters == sum(map(len, long)) - sum(map(len, left))
    account = state.account(blocks=50, room=16, frame_tokens=0)
    assert (account.documents, account.empty_documents) == (len(long), 0)


def test_a_filter_that_drops_everything_is_named_with_examples(tmp_path: Path, run_context: RunContext) -> None:
    strict = (FILTERS[1], Component("length", Length(min_words=1000), "toolkit"))
    with pytest.raises(OptionError, match=r"length drops every document that reaches it, 73:.*\n  ") as refused:
        prepare_stream(work(tmp_path / "made", filters=strict), run_context)
    assert refused.value.option == "filters.1"


def test_filters_that_together_leave_no_text_are_named(tmp_path: Path, run_context: RunContext) -> None:
    emptying = (FILTERS[0], Component("first", Emptying(), "toolkit"))
    with pytest.raises(OptionError, match=r"no text is left of 73 documents after the filters \(length, f") as refused:
        prepare_stream(work(tmp_path / "made", filters=emptying), run_context)
    assert refused.value.option == "filters"


def test_a_file_that_was_removed_is_named(tmp_path: Path, run_context: RunContext) -> None:
    made = work(tmp_path / "made")
    prepare_stream(made, run_context)
    for file in ("train.tokens", "validation.tokens"):
        kept = (tmp_path / "made" / file).read_bytes()
        (tmp_path / "made" / file).unlink()
        with pytest.raises(UnavailableError, match=rf"{file} is missing; remove .*made to prepare it again"):
            prepare_stream(made, run_context)
        (tmp_path / "made" / file).write_bytes(kept)
    prepare_stream(made, run_context)


def test_a_filter_that_drops_everything_is_not_given_the_whole_stream(
    tmp_path: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_preparation, "DOCUMENTS_IN_VAIN", 20)
    strict = (Component("length", Length(min_words=1000), "toolkit"),)
    with pytest.raises(OptionError, match=r"length drops every document that reaches it, 33:"):  # of two files, but 7
        prepare_stream(work(tmp_path / "made", filters=strict), run_context)


def test_what_filters_leave_has_to_fill_a_block(tmp_path: Path, run_context: RunContext) -> None:
    longest = max((text for texts in FILES.values() for text in texts), key=lambda text: len(text.split()))
    few = (Component("length", Length(min_words=len(longest.split())), "toolkit"),)
    objective = CausalLM(block_size=4000)
    with pytest.raises(
        OptionError, match=r"give \d+ tokens after its filters, fewer than one block of 4,000"
    ) as refused:
        prepare_stream(
            work(tmp_path, filters=few, objective=objective, max_tokens=4000, eval_samples=None), run_context
        )
    assert refused.value.option == "max_tokens"


def test_what_a_filter_refuses_is_said_with_its_name(tmp_path: Path, run_context: RunContext) -> None:
    missing = (Component("decontamination", Decontamination(files=str(tmp_path / "no.txt")), "toolkit"),)
    with pytest.raises(OptionError, match=r"decontamination: .*no\.txt") as refused:
        prepare_stream(work(tmp_path / "made", filters=missing), run_context)
    assert refused.value.option == "filters.0"


@pytest.mark.usefixtures("_small_batches")
def test_fewer_tokens_of_the_same_stream_are_there_already(tmp_path: Path, run_context: RunContext) -> None:
    prepare_stream(work(tmp_path / "made"), run_context)
    before = content(tmp_path / "made")
    prepare_stream(work(tmp_path / "made", max_tokens=400), run_context)
    after = content(tmp_path / "made")
    assert after["train.tokens"][: 400 * 2] == before["train.tokens"][: 400 * 2]
    assert work(tmp_path / "made").is_complete
    assert work(tmp_path / "made", max_tokens=400).is_complete


@pytest.mark.usefixtures("_small_batches")
def test_a_file_that_cannot_be_read_stops_it_or_is_left_out(
    tmp_path: Path, run_context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "toolkit")
    second = work(tmp_path).dataset.training_files(Files())[1]
    broken = Files(ends=(second, 2))
    with pytest.raises(OptionError, match=f"{second} cannot be read: it ends in the middle.*skip") as refused:
        prepare_stream(work(tmp_path / "made", broken), run_context)
    assert refused.value.option == "unreadable_files"
    done = state_of(tmp_path / "made")
    assert done.blocks > 0
    prepare_stream(work(tmp_path / "made", broken, unreadable_files="skip"), run_context)
    assert state_of(tmp_path / "made").left_out == [{"file": second, "reason": "it ends in the middle"}]
    assert f"{second} cannot be read, and is left out from there on" in caplog.text
    prepare_stream(work(tmp_path / "at once", broken, unreadable_files="skip"), run_context)
    assert content(tmp_path / "made") == content(tmp_path / "at once")


def test_a_stream_that_ends_too_early_says_what_it_has(tmp_path: Path, run_context: RunContext) -> None:
    with pytest.raises(OptionError, match=r"the 4 files of the dataset give [0-9,]+ tokens, and no more") as refused:
        prepare_stream(work(tmp_path / "made", max_tokens=100_000), run_context)
    assert refused.value.option == "max_tokens"
    most = int(str(refused.value).partition("set max_tokens: ")[2].split()[0])
    prepare_stream(work(tmp_path / "made", max_tokens=most), run_context)
    assert json.loads((tmp_path / "made" / f"state-{most // 16}.json").read_text())["blocks"] == most // 16


def test_a_disk_without_room_is_told_before_the_work(
    tmp_path: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_preparation, "free_bytes", lambda folder: 1000.0)
    with pytest.raises(UnavailableError, match=r"the tokens take .* more"):
        prepare_stream(work(tmp_path / "made"), run_context)


def test_tokens_for_less_than_a_block_are_refused(tmp_path: Path) -> None:
    too_small = replace(work(tmp_path), dataset=InMemory(max_tokens=10))
    with pytest.raises(OptionError, match="fewer than one block"):
        assert too_small.blocks
