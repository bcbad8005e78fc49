"""Reads one file: the documents in it, or a `Fault` that says where in it something is wrong."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import itertools
import json
import lzma
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

from toolkit_plugins.hub_errors import choice

SampleBy = Literal["line", "paragraph", "document"]

BYTES_PER_READ = 1 << 20
ROWS_PER_BATCH = 1000


class Fault(Exception):  # noqa: N818 - it is a finding, which text_files.py turns into an error
    """Something is wrong with a file: where in it and what, and which option could put it right."""

    def __init__(self, message: str, *, option: str | None = None) -> None:
        self.option = option
        super().__init__(message)


def opened(file: Path, compression: str) -> IO[bytes]:
    """The bytes of a file, without its compression."""
    match compression:
        case ".gz":
            return cast(IO[bytes], gzip.open(file))
        case ".bz2":
            return cast(IO[bytes], bz2.open(file))
        case ".xz":
            return cast(IO[bytes], lzma.open(file))
        case ".zst":
            import pyarrow

            return cast(IO[bytes], pyarrow.input_stream(str(file), compression="zstd"))
        case _:
            return file.open("rb")


def first_bad_byte(file: Path, compression: str, encoding: str) -> int:
    """Where decoding stops, counted from 0 in the uncompressed file."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with opened(file, compression) as raw:
        while True:
            chunk = raw.read(BYTES_PER_READ)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return position - pending + error.start
            except UnicodeError:  # there is no byte order mark where utf-16 or utf-32 asks for one
                return 0
            if not chunk:
                return position
            position += len(chunk)


def samples(stream: IO[str], sample_by: SampleBy) -> Iterator[str]:
    """The documents of a text."""
    for sample in _cut(stream, sample_by):
        if "\0" in sample:
            raise Fault(
                "it holds NUL characters, so it is no text, or text in another encoding; encoding: utf-16, perhaps",
                option="encoding",
            )
        yield sample


def _cut(stream: IO[str], sample_by: SampleBy) -> Iterator[str]:
    match sample_by:
        case "document":
            yield stream.read()
        case "line":
            yield from (line.rstrip("\n") for line in stream)
        case "paragraph":
            lines: list[str] = []
            for line in stream:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines).rstrip("\n")
                    lines = []
            yield "".join(lines).rstrip("\n")


def json_lines(lines: Iterable[str], column: str) -> Iterator[str]:
    """The text of the object on each line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield from _value(_parsed(line, f"line {number} is not JSON"), column, f"line {number}")


def json_documents(stream: IO[str], column: str) -> Iterator[str]:
    """A list of objects, or (as many a .json file is) one object on each line."""
    head = stream.readline()
    if _is_object(head):
        yield from json_lines(itertools.chain([head], stream), column)
        return
    content = _parsed(head + stream.read(), "it is not JSON")
    for number, item in enumerate(content if isinstance(content, list) else [content], start=1):
        yield from _value(item, column, f"item {number}")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str, fault: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Fault(f"{fault}: {error}") from error


def _value(row: Any, column: str, place: str) -> Iterator[str]:
    """The text of a row; nothing for null."""
    if not isinstance(row, dict):
        raise Fault(f"{place} is a {type(row).__name__} where an object with the key {column!r} is needed")
    if column not in row:
        raise Fault(f"{place} has no key {column!r}; {choice(column, map(str, row))}", option="column")
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise Fault(f"{column!r} of {place} is a {type(value).__name__}, not a string", option="column")
    if value is not None:
        # JSON can escape half of a surrogate pair, as in a text that was cut inside an emoji; UTF-8 cannot hold it.
        yield (value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if _has_surrogate(value) else value)


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def table_column(stream: IO[str], column: str, delimiter: str) -> Iterator[str]:
    """The column of a table whose first row names the columns."""
    with _cells_of_any_size():
        rows = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            if column not in names:
                raise Fault(f"its first row names no column {column!r}; {choice(column, names)}", option="column")
            index = names.index(column)
            for row in rows:
                if len(row) not in (0, len(names)):
                    raise Fault(f"line {rows.line_num} has {len(row)} cells where the first row has {len(names)}")
                if row:
                    yield row[index]
        except csv.Error as error:
            raise Fault(f"line {rows.line_num}: {error}") from error


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    # The csv module refuses cells of more than 131,072 characters, and the limit is one for the whole process.
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def parquet_column(file: Path, column: str) -> Iterator[str]:
    """The column of a Parquet file, a few rows at a time."""
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        if column not in schema.names:
            raise Fault(f"it has no column {column!r}; {choice(column, schema.names)}", option="column")
        kind = schema.field(column).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise Fault(f"its column {column!r} holds {kind}, not strings", option="column")
        for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
