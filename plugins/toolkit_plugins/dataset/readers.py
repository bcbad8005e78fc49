"""Reads the documents of one file, or raises a `FileError` that says what is wrong, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from toolkit_plugins.dataset.contents import FileError, damaged
from toolkit_plugins.hub_errors import choice

if TYPE_CHECKING:
    import pyarrow

SampleBy = Literal["line", "paragraph", "document"]

CHARACTERS_PER_READ = 1 << 20
ROWS_PER_BATCH = 1000
LONGEST_ESCAPE = 12
"""Characters of a surrogate pair in JSON: an error closer to the end may only mean that more has to be read."""
UNTERMINATED = "Unterminated string"
JSON_SPACE = re.compile(r"[ \t\r\n]*")
JSON_NAMES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def samples(stream: IO[str], sample_by: SampleBy, characters: int = -1) -> Iterator[str]:
    """The documents of a text; where one is the whole file, at most `characters` of it."""
    for sample in _cut(stream, sample_by, characters):
        if "\0" in sample:
            raise FileError(
                "it holds NUL characters, so it is not text, or it is in another encoding", option="encoding"
            )
        yield sample


def _cut(stream: IO[str], sample_by: SampleBy, characters: int) -> Iterator[str]:
    match sample_by:
        case "document":
            yield stream.read(characters)
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
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _not_json_lines(line, number, error) from error
            yield from _value(row, column, f"line {number:,}")


def _not_json_lines(line: str, number: int, error: Exception) -> FileError:
    if isinstance(error, JSONDecodeError):
        if error.msg == "Extra data" and line[error.pos :].strip() == ",":
            return FileError(f"line {number:,} ends with a comma; write one object a line, and nothing between them")
        if error.pos >= len(line.rstrip()) or error.msg.startswith(UNTERMINATED):
            return FileError(
                f"line {number:,} is not a whole JSON value: the file is cut off there, or its objects span several "
                f"lines, as in a .json file (format: json)"
            )
        return FileError(f"line {number:,} is not JSON: {error.msg} in column {error.colno:,}")
    return FileError(f"line {number:,} is not JSON: {error}")


def json_documents(stream: IO[str], column: str) -> Iterator[str]:
    """The texts of a list of objects, or of concatenated objects."""
    for number, (line, item) in enumerate(_json_items(stream), start=1):
        yield from _value(item, column, f"item {number:,} (line {line:,})")


def _json_items(stream: IO[str]) -> Iterator[tuple[int, Any]]:
    """The items of a list, or concatenated values, each with its line; read lazily."""
    source = _JSONSource(stream)
    in_list = source.skip("[")
    if in_list and source.skip("]"):
        return
    while source.has_more():
        yield source.line, source.value()
        if in_list and source.skip("]"):
            break
        if not source.skip(",") and in_list:
            raise source.fault("',' or ']' expected")
    else:
        if in_list:
            raise source.fault("the file ends within its list")
    if source.has_more():
        raise source.fault("something follows the end of the list")


class _JSONSource:
    """JSON values from a stream, with no more than one in memory at a time."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._text = ""
        self._at = 0
        self._ended = False
        self._decoder = JSONDecoder()
        self.line = 1

    def has_more(self) -> bool:
        """Skip white space; whether anything follows."""
        while True:
            self._advance(JSON_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr] # it matches "" too
            if self._at < len(self._text) or not self._read():
                return self._at < len(self._text)

    def skip(self, mark: str) -> bool:
        """Skip this mark if it comes next; whether it did."""
        if found := self.has_more() and self._text[self._at] == mark:
            self._advance(self._at + 1)
        return found

    def value(self) -> Any:
        """The next value."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                cut_off = error.pos > len(self._text) - LONGEST_ESCAPE or error.msg.startswith(UNTERMINATED)
                if not (cut_off and self._read()):
                    self._advance(error.pos)
                    raise self.fault(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self.fault(str(error)) from error
            else:
                # A number at the end of what was read so far may continue.
                if end < len(self._text) or not self._read():
                    self._advance(end)
                    return value

    def fault(self, what: str) -> FileError:
        """The fault for what is wrong at this position."""
        return FileError(f"it is not JSON: {what} in line {self.line:,}")

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _read(self) -> bool:
        """Double what is held, so that even a large value is parsed only a few times; whether there was more."""
        held = len(self._text) - self._at
        if not self._ended:
            more = self._stream.read(max(CHARACTERS_PER_READ, held))
            self._text, self._at, self._ended = self._text[self._at :] + more, 0, not more
        return not self._ended


def _value(row: Any, column: str, place: str) -> Iterator[str]:
    """The text of a row; no text for null."""
    if not isinstance(row, dict):
        what = JSON_NAMES.get(type(row), "null" if row is None else "a string")
        raise FileError(f"{place} is {what} where an object with the key {column!r} is needed")
    if column not in row:
        raise FileError(f"{place} has no key {column!r}; {choice(column, row)}{_nested(row, column)}", option="column")
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise FileError(
            f"{column!r} of {place} is {JSON_NAMES[type(value)]}, not a string{_nested({column: value}, column)}",
            option="column",
        )
    if value is not None:
        # JSON can escape half of a surrogate pair, as in a text cut inside an emoji; UTF-8 cannot encode it.
        yield (value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if _has_surrogate(value) else value)


def _nested(row: dict[str, Any], column: str) -> str:
    """How to extract the documents from a list inside an object."""
    for key, value in row.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, str) or (isinstance(first, dict) and (column in first or key == column)):
            item = f" | {{{column}: .}}" if isinstance(first, str) else ""
            return f". For the items of its list {key!r}: jq -c '.{key}[]{item}' FILE > NEW.jsonl"
    return ""


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def parquet_column(file: Path, column: str) -> Iterator[str]:
    """The column of a Parquet file, read in batches of rows."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            _check_schema(table.schema_arrow, column)
            row = 1
            for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=[column]):
                texts = batch.column(column)
                yield from _decoded(texts, column, row)
                row += len(texts)
    except pyarrow.ArrowException as error:
        raise damaged(error) from error


def _check_schema(schema: pyarrow.Schema, column: str) -> None:
    if column not in schema.names:
        raise FileError(f"it has no column {column!r}; {choice(column, schema.names)}", option="column")
    if (times := schema.names.count(column)) > 1:
        raise FileError(f"it has {times} columns {column!r}; rename all but one", option="column")
    if not _is_text(kind := schema.field(column).type):
        raise FileError(f"its column {column!r} holds {kind}, not strings", option="column")


def _decoded(texts: pyarrow.Array, column: str, row: int) -> Iterator[str]:
    """The texts that are not null; `row` is the file's row of the first value."""
    try:
        values = texts.to_pylist()
    except UnicodeDecodeError as error:
        raise FileError(
            f"{column!r} of row {row + _first_undecodable(texts):,} is not UTF-8, as text in Parquet has to be "
            f"({error.reason}); write the file again with that row mended or left out"
        ) from error
    yield from (text for text in values if text is not None)


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _first_undecodable(texts: pyarrow.Array) -> int:
    for number, text in enumerate(texts):
        try:
            text.as_py()
        except UnicodeDecodeError:
            return number
    raise AssertionError("every text is UTF-8")
