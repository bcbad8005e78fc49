"""What a dataset plugin loaded -> the documents to train on: cut at end tokens, sampled, held out, and read.

The options that all datasets share are applied here, so that they mean the same for each of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import Progress
from toolkit.api.context import nobody_watches
from toolkit.data.token_documents import add_tokens
from toolkit.errors import OptionError
from toolkit.system.cache import entry_made, refusals_explained, staging_folder

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset as Split
    from datasets import DatasetDict

    from toolkit.api import Dataset

DOCUMENTS_PER_BATCH = 1000
DOCUMENTS_PER_DIGEST = 10_000
BYTES_PER_SLICE = 1 << 26
MAX_TOKENS_PER_BYTE = 2
"""A tokenizer gives one at most; twice that, for one that normalizes the text or marks the words."""
MAX_TOKENS_PER_DOCUMENT = 8
"""The tokens around a document: its end, and what a tokenizer adds."""
SPLITS = {"train": "training", "validation": "held-out"}
TOKENS_COLUMN = "input_ids"
"""The column of documents that come as token ids, in place of `text`."""
CUT_COLUMN = "cut"
"""The column that says whether a document was split off at an end token; exists only if texts were cut."""


@dataclass(frozen=True)
class Contents:
    """Digest and counts of the documents of a split."""

    digest: str
    characters: int
    cut: int
    """Documents split off at an end token inside a text."""


def contents_of(data: DatasetDict, progress: Progress = nobody_watches) -> dict[str, Contents]:
    """Read all documents once; the digest covers every text of a split and its boundaries.

    Raises:
        OptionError: a text is not UTF-8, which reading Arrow data does not check.
    """
    import xxhash

    total, done = sum(map(len, data.values())), 0
    contents = {}
    for name, split in data.items():
        digest, characters = xxhash.xxh3_128(), 0
        column = TOKENS_COLUMN if holds_tokens(split) else "text"
        for batch in split.select_columns(column).with_format("arrow").iter(DOCUMENTS_PER_DIGEST):
            if column == TOKENS_COLUMN:
                add_tokens(batch[column], digest)
            else:
                characters += _digested(batch["text"], digest)
            done += len(batch)
            progress("hashing", done, total, unit="documents")
        contents[name] = Contents(digest.hexdigest(), characters, cut_count(split))
    return contents


def _digested(column: Any, digest: Any) -> int:
    """Add the texts of a column to the digest, and return their number of characters."""
    import numpy
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.fill_null(column.cast(pa.large_string()), "")
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    _check_utf8(texts)
    _, offsets, content = texts.buffers()
    ends = numpy.frombuffer(offsets, "int64")[texts.offset : texts.offset + len(texts) + 1]
    digest.update(numpy.diff(ends))  # the lengths, or texts with other boundaries would look the same
    digest.update(memoryview(content or b"")[ends[0] : ends[-1]])
    return int(pc.sum(pc.utf8_length(texts)).as_py() or 0)


def check_holds_block(data: DatasetDict, block_size: int) -> None:
    """Check that the texts of each split may give a block of tokens, whatever the tokenizer.

    Raises:
        OptionError: they are too short for any.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, split in data.items():
        if holds_tokens(split):
            continue
        size = 0
        for batch in split.select_columns("text").with_format("arrow").iter(DOCUMENTS_PER_DIGEST):
            size += int(pc.sum(pc.binary_length(batch["text"].cast(pa.large_string()))).as_py() or 0)
            if MAX_TOKENS_PER_BYTE * size > block_size:
                break
        else:
            if MAX_TOKENS_PER_BYTE * size + MAX_TOKENS_PER_DOCUMENT * len(split) < block_size:
                what = SPLITS.get(name, name)
                raise OptionError(
                    f"the {what} documents have {size:,} bytes of text together, fewer than one block of "
                    f"{block_size:,} tokens; take a smaller block_size, or more {what} text",
                    option="block_size",
                )


def _check_utf8(texts: Any) -> None:
    import pyarrow as pa

    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        for content in texts.cast(pa.large_binary()).to_pylist():
            try:
                content.decode()
            except UnicodeDecodeError as error:
                around = content[max(0, error.start - 40) : error.start + 20].decode(errors="replace")
                raise OptionError(
                    f"a text is not valid UTF-8, although its column has a text type; fix it at its source: "
                    f"...{around!r}..."
                ) from error
        raise


def drawn(data: DatasetDict, dataset: Dataset) -> DatasetDict:
    """Apply `max_samples`, `eval_fraction` and `seed`.

    Done here, because `train_test_split` leaves its indices in files beside the data, which a power cut may empty.

    Raises:
        OptionError: nothing would be left on one side of `eval_fraction`.
    """
    from datasets import DatasetDict

    train = data["train"]
    if dataset.max_samples is not None and dataset.max_samples < len(train):
        train = _selected(train, _permutation(train, dataset.seed)[: dataset.max_samples])
    if dataset.eval_fraction is None:
        return DatasetDict({**data, "train": train})
    held_out = round(len(train) * dataset.eval_fraction)
    if not 0 < held_out < len(train):
        some = "a single document" if len(train) == 1 else f"{len(train)} documents"
        larger = f"use {1 / len(train):.2g}, " if dataset.eval_fraction < 0.5 and len(train) > 1 else ""
        raise OptionError(
            f"{dataset.eval_fraction:g} of {some} leaves one split empty; {larger}split the text into more documents "
            f"(text-files: sample_by: paragraph), or remove eval_fraction",
            option="eval_fraction",
        )
    order = _permutation(train, dataset.seed)
    return DatasetDict({"train": _selected(train, order[held_out:]), "validation": _selected(train, order[:held_out])})


def _permutation(split: Split, seed: int) -> numpy.ndarray[Any, Any]:
    import numpy

    return numpy.random.default_rng(seed).permutation(len(split))


def _selected(split: Split, rows: numpy.ndarray[Any, Any]) -> Split:
    return split.select(rows, keep_in_memory=True)


def holds_tokens(split: Split) -> bool:
    """Whether the documents come as token ids, and not as texts."""
    return TOKENS_COLUMN in split.column_names


def texts(split: Split) -> Iterator[list[str]]:
    """The texts of a split, in batches.

    Raises:
        OptionError: there are none, but tokens.
    """
    if holds_tokens(split):
        raise OptionError(
            "the dataset holds tokens and no text to learn from; take the tokenizer that they were made with, as in "
            "tokenizer: {plugin: pretrained, path: tokens/tokenizer}",
            option="plugin",
        )
    for batch in split.select_columns("text").iter(batch_size=DOCUMENTS_PER_BATCH):
        yield [text or "" for text in batch["text"]]


def held_out_texts(split: Split, cache: Path) -> Path:
    """A JSONL file of the cache with the texts of a split, under the key `text`.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    from datasets import DatasetDict

    digest = contents_of(DatasetDict(validation=split))["validation"].digest
    if not (file := cache / "held-out" / f"{digest}.jsonl").exists():
        with entry_made(file) as made, made.open("w", encoding="utf-8") as out:
            out.writelines(f"{json.dumps({'text': text})}\n" for some in texts(split) for text in some)
    return file


def cut_count(split: Split) -> int:
    """Number of documents in the split that were split off at an end token inside a text."""
    return sum(split[CUT_COLUMN][:]) if CUT_COLUMN in split.column_names else 0


def cut_at(data: DatasetDict, end: str, cache: Path) -> DatasetDict:
    """Cut the texts at every end token, and drop the token.

    Line breaks after it go too, as it mostly stands on a line of its own; pieces without text are left out.

    Raises:
        UnavailableError: `cache`, where the pieces lie until they are packed, cannot be written.
    """
    from datasets import DatasetDict

    return DatasetDict({name: _cut(split, end, cache) for name, split in data.items()})


def _cut(split: Split, end: str, cache: Path) -> Split:
    """The split itself if the token does not occur; else its pieces, memory-mapped from a file already deleted."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset as Split

    column = split.with_format("arrow")
    if not any(
        pc.any(pc.match_substring(_large(batch["text"]), end)).as_py() for batch in column.iter(DOCUMENTS_PER_BATCH)
    ):
        return split
    schema = pa.schema({"text": pa.large_string(), CUT_COLUMN: pa.bool_()})
    folder = cache / "documents"
    with staging_folder(folder) as staging, refusals_explained(folder):
        file = staging / "cut.arrow"
        with file.open("wb") as out, pa.ipc.new_stream(out, schema) as writer:
            for batch in column.iter(DOCUMENTS_PER_BATCH):
                for some in _slices(batch["text"]):
                    writer.write_table(_pieces(some, end, schema))
        return Split(pa.ipc.open_stream(pa.memory_map(str(file))).read_all())


def _large(column: Any) -> Any:
    """The same texts as large_string, which every pyarrow function takes, and whose offsets never overflow."""
    import pyarrow as pa

    return column if column.type == pa.large_string() else column.cast(pa.large_string())


def _slices(column: Any) -> Iterator[Any]:
    """The column in slices small enough to be copied in memory, or of a single text."""
    if column.nbytes <= BYTES_PER_SLICE or len(column) == 1:
        yield column
    else:
        half = len(column) // 2
        yield from _slices(column[:half])
        yield from _slices(column[half:])


def _pieces(column: Any, end: str, schema: Any) -> Any:
    """Cut a column of texts into the rows of `schema`."""
    import numpy
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.fill_null(_large(column), "").combine_chunks()
    lists = pc.split_pattern(texts, pattern=end)
    pieces, offsets = lists.values, lists.offsets.to_numpy()
    cut = numpy.ones(len(pieces), dtype=bool)
    cut[offsets[:-1]] = False
    pieces = pc.if_else(cut, pc.ascii_ltrim(pieces, characters="\r\n"), pieces)
    has_text = pc.not_equal(pc.ascii_trim_whitespace(pieces), "").to_numpy(zero_copy_only=False)
    # A text of which nothing would be left stays as one document, and is counted among the empty ones.
    first = offsets[:-1]
    has_text[first] |= ~numpy.logical_or.reduceat(has_text, first)
    return pa.table([pieces.filter(has_text), cut[has_text]], schema=schema)
