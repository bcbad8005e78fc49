"""Reads a column of a CSV or TSV file, and says in which line something is wrong with it."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO

from toolkit_plugins.dataset.contents import FileError
from toolkit_plugins.hub_errors import choice

DELIMITERS = {",": "','", "\t": "a tab", ";": "';'", "|": "'|'"}
"""Common delimiters, and their names in a sentence."""
NO_DELIMITER = re.compile(r"[\w\s\"'.-]")
"""Characters that may be part of a column's name, and so are not taken for delimiters."""
NOTE_TO_EXCEL = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""A first line that tells Excel the delimiter; some web applications write one."""
LONG_ROW_LINES = 10
"""A row that spans more lines than this is reported."""


@dataclass(frozen=True)
class Layout:
    """The format of a table."""

    delimiter: str
    quoting: bool
    """Whether a cell may be in double quotes."""
    certain: bool
    """Whether the delimiter was given explicitly, as opposed to a default."""


@dataclass
class LongRow:
    """The row that spans the most lines."""

    lines: int = 0
    first_line: int = 0

    @property
    def is_long(self) -> bool:
        """Whether a quoted cell in it may have swallowed other rows."""
        return self.lines > LONG_ROW_LINES


class _Lines:
    """Passes lines to a csv reader, and tracks in which of them the latest quoted cell of the current row opens."""

    def __init__(self, stream: Iterable[str], delimiter: str, *, read_before: int) -> None:
        self._stream = stream
        self._opening = re.compile(rf'(?:^|{re.escape(delimiter)})"')
        self._ends_cell = (delimiter, "\r", "\n", "")
        self._row: int | None = None
        """The first line of the current row."""
        self._line = ""
        self.number = read_before
        self.opens_at = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            self._line = line
            self.number += 1
            if self._row is None:
                self._row = self.opens_at = self.number
            yield line
            if self._row is not None:  # the reader wants another line of the same row
                self.look()

    def row_is_read(self) -> int:
        """Return the first line of the row just read, and get ready for the next."""
        first, self._row = self._row or self.number, None
        return first

    def look(self) -> None:
        """Find out whether the latest line opens a quoted cell that continues on the next line, or is malformed."""
        text = self._line.replace('""', "")
        at = 0
        if self.number != self._row:  # the line begins inside quotes
            at = text.find('"') + 1
            if not at or text[at : at + 1] not in self._ends_cell:
                return
        while opening := self._opening.search(text, at):
            self.opens_at = self.number
            at = text.find('"', opening.end()) + 1
            if not at or text[at : at + 1] not in self._ends_cell:
                return


def table_column(stream: IO[str], column: str, layout: Layout, longest: LongRow) -> Iterator[str]:
    """The column of a table whose first row names the columns; `longest` records the row that spans the most lines."""
    header, read_before = stream.readline(), 0
    if note := NOTE_TO_EXCEL.fullmatch(header):
        layout = layout if layout.certain else replace(layout, delimiter=note[1], certain=True)
        header, read_before = stream.readline(), 1
    if not layout.certain:
        _check_delimiter(header, column, layout)
    lines = _Lines(itertools.chain([header] if header else [], stream), layout.delimiter, read_before=read_before)
    with _cells_of_any_size():
        rows = csv.reader(
            iter(lines),
            delimiter=layout.delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if layout.quoting else csv.QUOTE_NONE,
        )
        try:
            names = next(rows, [])
            index = _index(names, column)
            lines.row_is_read()
            for row in rows:
                first = lines.row_is_read()
                if (spanned := lines.number - first + 1) > longest.lines:
                    longest.lines, longest.first_line = spanned, first
                if len(row) not in (0, len(names)):
                    raise FileError(_other_width(row, names, first, layout))
                if row:
                    yield row[index]
        except csv.Error as error:
            lines.look()
            raise FileError(
                f"line {lines.number:,}: {error}; the quoted cell there opens in line {lines.opens_at:,}. A quotation "
                f"mark within a quoted cell is written twice; if quotation marks are just text, set quoting: false",
                option="quoting",
            ) from error


def _check_delimiter(header: str, column: str, layout: Layout) -> None:
    """Refuse a delimiter that does not split the header, if another one does."""
    if len(next(csv.reader([header], delimiter=layout.delimiter), [])) != 1:
        return
    rare = dict.fromkeys(mark for mark in header if not NO_DELIMITER.match(mark) and mark not in DELIMITERS)
    for other in (*DELIMITERS, *rare):
        names = next(csv.reader([header], delimiter=other))
        if len(names) > 1 and (other in DELIMITERS or column in names):
            known = "" if column in names else f" and column to one of {', '.join(names)}"
            raise FileError(
                f"its cells are separated by {_named(other)} and not by {_named(layout.delimiter)}; set "
                f"delimiter: {json.dumps(other)}{known}",
                option="delimiter",
            )


def _index(names: list[str], column: str) -> int:
    """The position of the column in a row."""
    if column not in names:
        raise FileError(f"its first row names no column {column!r}; {choice(column, names)}", option="column")
    if names.count(column) > 1:
        raise FileError(
            f"its first row names {names.count(column)} columns {column!r}; rename all but one", option="column"
        )
    return names.index(column)


def _other_width(row: list[str], names: list[str], line: int, layout: Layout) -> str:
    delimiter = _named(layout.delimiter)
    cure = f"a cell that holds {delimiter} has to stand in double quotes"
    if not layout.quoting:
        cure = f"a cell cannot hold {delimiter}, except in double quotes with quoting: true"
    cells = f"{len(row)} cell{'s' * (len(row) != 1)}"
    return f"line {line:,} has {cells} where the first row has {len(names)}" + f"; {cure}" * (len(row) > len(names))


def _named(delimiter: str) -> str:
    return DELIMITERS.get(delimiter, repr(delimiter))


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    # The csv module refuses cells of more than 131,072 characters, and its limit is global to the process.
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
