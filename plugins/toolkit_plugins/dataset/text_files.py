"""Files of one's own.

Read here rather than by the loaders of the library datasets, so that files of several formats can be mixed and
everything that is wrong with one is told with its name, line or byte.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import glob
import gzip
import io
import itertools
import json
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from pydantic import field_validator

from toolkit.api import Dataset, OptionError, RunContext
from toolkit_plugins.dataset.arrow import dataset_of
from toolkit_plugins.hub_errors import choice

if TYPE_CHECKING:
    import datasets

SampleBy = Literal["line", "paragraph", "document"]

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ENDINGS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

BYTES_PER_READ = 1 << 20
ROWS_PER_BATCH = 1000


class TextFiles(Dataset):
    """Files of your own: txt and md, and a column of jsonl, json, csv, tsv and parquet; gz, bz2, xz, zst as well."""

    files: str | list[str]
    """One file, a pattern such as `texts/**/*.txt`, or a list of them, from the current directory; `~` is your home."""
    validation_files: str | list[str] | None = None
    """Files to evaluate on, in the same way; those that `files` matches too are kept out of training."""
    sample_by: SampleBy = "document"
    """What becomes a document in txt and md files: each line, each paragraph (between empty lines), or the file."""
    column: str = "text"
    """The column, or key, that holds the text in the other formats."""
    encoding: str = "utf-8"
    """How the files' characters are encoded, by Python's name for it."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(f"{encoding!r} is no encoding that Python knows; try utf-8, utf-16 or cp1252") from None
        return encoding

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """Find the files and read them in the order of their names."""
        from datasets import DatasetDict

        held_out = _found(self.validation_files, "validation_files") if self.validation_files is not None else []
        files = [file for file in _found(self.files, "files") if file not in held_out]
        if not files:
            raise OptionError(
                "every one of the files is a validation file too; nothing is left to train on", option="files"
            )
        parts = {"train": (files, "files")} | ({"validation": (held_out, "validation_files")} if held_out else {})
        return DatasetDict({part: self._read(*of, cache=run.cache) for part, of in parts.items()})

    def _read(self, files: list[Path], option: str, *, cache: Path) -> datasets.Dataset:
        """Read the files, unless files of these names, sizes and times have been read in this way before."""
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        how = (self.sample_by, self.column, self.encoding)
        return dataset_of(self._documents(files, option), key=("text-files", 1, how, stats), cache=cache)

    def _documents(self, files: Iterable[Path], option: str) -> Iterator[str]:
        empty = True
        for file in files:
            kind, compression = _format(file, option)
            with _faults_placed(file, compression, self.encoding, option):
                for document in self._documents_in(file, kind, compression):
                    if document.strip():
                        empty = False
                        yield document
        if empty:
            raise OptionError(f"there is no text in {_shown(files)}", option=option)

    def _documents_in(self, file: Path, kind: str, compression: str) -> Iterator[str]:
        if kind == "parquet":
            yield from _parquet(file, self.column)
            return
        encoding = "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding
        # The csv module wants to see line ends as they are; the other readers get plain ones.
        newline = "" if kind in ("csv", "tsv") else None
        with _opened(file, compression) as raw, io.TextIOWrapper(raw, encoding, newline=newline) as stream:
            match kind:
                case "text":
                    yield from _samples(stream, self.sample_by)
                case "json lines":
                    yield from _json_lines(stream, self.column)
                case "json":
                    yield from _json(stream, self.column)
                case _:
                    yield from _csv(stream, self.column, "," if kind == "csv" else "\t")


class _Fault(Exception):  # noqa: N818 - never leaves this module
    """Something is wrong with a file: where in it and what, and which option could put it right."""

    def __init__(self, message: str, *, option: str | None = None) -> None:
        self.option = option
        super().__init__(message)


def _found(patterns: str | list[str], option: str) -> list[Path]:
    """The files that the patterns match, each once, in the order of their names."""
    files: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        place = Path(pattern).expanduser()
        if place.is_dir():
            raise OptionError(f"{pattern} is a folder; name its files, as in {place / '**' / '*.txt'}", option=option)
        # Path.glob takes no absolute patterns. A name that exists is taken at its word, even with a [ in it.
        matched = [place] if place.exists() else map(Path, glob.glob(str(place), recursive=True))  # noqa: PTH207
        matches = {file for file in matched if file.is_file()}
        if not matches:
            raise OptionError(f"no file matches {pattern!r} (looked in {Path.cwd()})", option=option)
        files |= matches
    return sorted(files)


def _shown(files: Iterable[Path]) -> str:
    names = [str(file) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} files more" if len(names) > 3 else "")


def _format(file: Path, option: str) -> tuple[str, str]:
    """What a file's name says about its content and its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    ending = suffixes[-1] if suffixes else ""
    if ending not in ENDINGS or (ending == ".parquet" and compression):
        raise OptionError(
            f"{file}: {ending + compression or 'a name without an ending'} does not say how to read it; known: "
            f"{', '.join(ENDINGS)}, and all but the last with {', '.join(COMPRESSIONS)} behind",
            option=option,
        )
    return ENDINGS[ending], compression


def _opened(file: Path, compression: str) -> IO[bytes]:
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


@contextmanager
def _faults_placed(file: Path, compression: str, encoding: str, option: str) -> Iterator[None]:
    """Turn what readers raise into a refusal of the option, with the file's name."""
    from pyarrow import ArrowInvalid

    try:
        yield
    except _Fault as fault:
        raise OptionError(f"{file}: {fault}", option=fault.option or option) from fault
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{file}: byte {_first_bad_byte(file, compression, encoding):,} is not {encoding}; convert the file, or "
            f"name its encoding, for example encoding: cp1252 for an old Windows file",
            option="encoding",
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ArrowInvalid) as error:
        raise OptionError(f"{file}: damaged, or not what its ending says: {error}", option=option) from error
    except OSError as error:
        raise OptionError(f"{file}: cannot be read: {error.strerror or error}", option=option) from error


def _first_bad_byte(file: Path, compression: str, encoding: str) -> int:
    """Where decoding stops, counted from 0 in the uncompressed file."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with _opened(file, compression) as raw:
        while True:
            chunk = raw.read(BYTES_PER_READ)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return position - pending + error.start
            if not chunk:
                return position
            position += len(chunk)


def _samples(stream: IO[str], sample_by: SampleBy) -> Iterator[str]:
    for sample in _cut(stream, sample_by):
        if "\0" in sample:
            raise _Fault(
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


def _json_lines(lines: Iterable[str], column: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield from _value(_parsed(line, f"line {number} is not JSON"), column, f"line {number}")


def _json(stream: IO[str], column: str) -> Iterator[str]:
    """A list of objects, or (as many a .json file is) one object on each line."""
    head = stream.readline()
    if _is_object(head):
        yield from _json_lines(itertools.chain([head], stream), column)
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
        raise _Fault(f"{fault}: {error}") from error


def _value(row: Any, column: str, place: str) -> Iterator[str]:
    """The text of a row; nothing for null."""
    if not isinstance(row, dict):
        raise _Fault(f"{place} is a {type(row).__name__} where an object with the key {column!r} is needed")
    if column not in row:
        raise _Fault(f"{place} has no key {column!r}; {choice(column, map(str, row))}", option="column")
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise _Fault(f"{column!r} of {place} is a {type(value).__name__}, not a string", option="column")
    if value is not None:
        # JSON can escape half of a surrogate pair, as in a text that was cut inside an emoji; UTF-8 cannot hold it.
        yield (value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if _has_surrogate(value) else value)


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _csv(stream: IO[str], column: str, delimiter: str) -> Iterator[str]:
    """The column of a table whose first row names the columns."""
    with _cells_of_any_size():
        rows = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            if column not in names:
                raise _Fault(f"its first row names no column {column!r}; {choice(column, names)}", option="column")
            index = names.index(column)
            for row in rows:
                if len(row) not in (0, len(names)):
                    raise _Fault(f"line {rows.line_num} has {len(row)} cells where the first row has {len(names)}")
                if row:
                    yield row[index]
        except csv.Error as error:
            raise _Fault(f"line {rows.line_num}: {error}") from error


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    # The csv module refuses cells of more than 131,072 characters, and the limit is one for the whole process.
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path, column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        if column not in schema.names:
            raise _Fault(f"it has no column {column!r}; {choice(column, schema.names)}", option="column")
        kind = schema.field(column).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise _Fault(f"its column {column!r} holds {kind}, not strings", option="column")
        for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
