"""The user's own files.

They are read here rather than by the loaders of `datasets`, so that formats can be mixed and every problem is reported
with its file and line or byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from toolkit.api import Dataset, OptionError, Peek, RunContext
from toolkit_plugins.dataset.arrow import dataset_of
from toolkit_plugins.dataset.contents import FileError, Format, format_of
from toolkit_plugins.dataset.files import FileReader
from toolkit_plugins.dataset.patterns import found
from toolkit_plugins.dataset.readers import SampleBy

if TYPE_CHECKING:
    import datasets

PEEKED_FILES = 1000
PEEKED_DOCUMENTS = 3
"""Documents of a file that are read to check that it is readable."""
PEEKED_CHARACTERS = 100_000
"""How much is read of a document that is a whole file."""


class TextFiles(Dataset):
    """Your own files: txt, md, or a column of jsonl, json, csv, tsv or parquet; also compressed (gz, bz2, xz, zst).

    A byte order mark in a file takes precedence over the option `encoding`.
    """

    local_paths: ClassVar[tuple[str, ...]] = ("files", "validation_files", "leave_out")

    files: str | list[str]
    """A file, a pattern such as `texts/**/*.txt`, or a list of these, from the current directory; `~` is your home."""
    validation_files: str | list[str] | None = None
    """Files to evaluate on, in the same form; those that `files` matches too are kept out of training."""
    leave_out: str | list[str] | None = None
    """Files to go on without, such as damaged ones, in the same form; the run says how many there are."""
    format: Format | None = None
    """Format of the files: text, jsonl, json, csv, tsv or parquet. If not given, each file's extension decides."""
    sample_by: SampleBy = "document"
    """What is a document in txt and md files: each line, each paragraph (between empty lines), or the whole file."""
    column: str = "text"
    """The column or key that holds the text in the other formats."""
    delimiter: str | None = None
    """Delimiter between the cells of csv and tsv files; if not given, a comma in csv and a tab in tsv."""
    quoting: bool | None = None
    """Whether cells of csv and tsv files may be in double quotes; if not given, they may in csv but not in tsv."""
    encoding: str = "utf-8"
    """Character encoding of the files, by its name in Python."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(
                f"{encoding!r} is not a text encoding that Python knows; try utf-8, utf-16 or cp1252"
            ) from None
        return encoding

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f'{delimiter!r} is not a single character; a delimiter is "," or ";" or "|" or "\\t"')
        return delimiter

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """Find the files and read them, sorted by path."""
        from datasets import DatasetDict

        if left_out := self._left_out():
            run.log.info("Left out, as the option leave_out says: %s file(s).", f"{len(left_out):,}")
        return DatasetDict({part: self._read(files, option, run) for part, files, option in self._parts()})

    def fingerprint(self, run: RunContext) -> str:
        """The path, size and time of each file."""
        stats = [_stats(files, option) for _, files, option in self._parts()]
        return hashlib.sha256(repr(stats).encode("utf-8", "surrogatepass")).hexdigest()

    def peek(self, run: RunContext) -> Peek:
        """Read the first documents of each file, for a thousand files at most."""
        first, sources = "", []
        for part, files, option in self._parts():
            looked_at = list(files.values())[:PEEKED_FILES]
            beginnings = [text for file in looked_at for text in self._beginning(file, option, len(files))]
            if not beginnings and len(looked_at) == len(files):
                raise _no_text(looked_at, option)
            first = first or next(iter(beginnings), "")
            some = "" if len(looked_at) == len(files) else f" (the first {PEEKED_FILES:,} looked at)"
            sources.append(f"{len(files):,} file{'s' * (len(files) != 1)} for {part}{some}")
        if left_out := self._left_out():
            sources.append(f"{len(left_out):,} left out")
        return Peek(", ".join(sources), first)

    def _beginning(self, file: Path, option: str, among: int) -> list[str]:
        with _faults_placed(file, option, among):
            documents = self._reader().documents(file, characters=PEEKED_CHARACTERS)
            return list(itertools.islice(documents, PEEKED_DOCUMENTS))

    def holds_end_tokens(self) -> bool:
        """Whether there are txt or md files, which may have no other way to mark where a document ends."""
        for _, files, option in self._parts():
            for file in files.values():
                with _faults_placed(file, option, len(files)):
                    if format_of(file, self.format)[0] == "text":
                        return True
        return False

    def _parts(self) -> list[tuple[str, dict[str, Path], str]]:
        """The splits, each with its files, by their resolved paths, and the option that names them."""
        held_out = found(self.validation_files, "validation_files") if self.validation_files is not None else {}
        left_out = self._left_out()
        held_out = {place: file for place, file in held_out.items() if place not in left_out}
        files = found(self.files, "files")
        files = {place: file for place, file in files.items() if place not in held_out and place not in left_out}
        if not files:
            why = "is a validation file too" if not left_out else "is left out or is a validation file"
            raise OptionError(f"every one of the files {why}; nothing is left to train on", option="files")
        return [("train", files, "files"), *([("validation", held_out, "validation_files")] if held_out else [])]

    def _left_out(self) -> dict[str, Path]:
        return found(self.leave_out, "leave_out") if self.leave_out is not None else {}

    def _reader(self) -> FileReader:
        return FileReader(self.format, self.sample_by, self.column, self.delimiter, self.quoting, self.encoding)

    def _read(self, files: dict[str, Path], option: str, run: RunContext) -> datasets.Dataset:
        """Read the files, or the cache if files of these paths, sizes and times have been read the same way before."""
        stats = _stats(files, option)
        how = (self.format, self.sample_by, self.column, self.delimiter, self.quoting, self.encoding)
        sizes = {file: size for file, (_, size, _) in zip(files.values(), stats, strict=True)}
        return dataset_of(self._documents(sizes, option, run), key=("text-files", 2, how, stats), cache=run.cache)

    def _documents(self, sizes: dict[Path, int], option: str, run: RunContext) -> Iterator[str]:
        """The documents of all files; reports progress and suspicious rows."""
        reader, empty = self._reader(), True
        before, total = 0, sum(sizes.values())

        def report(within: int) -> None:
            run.progress("reading", before + within, total, unit="bytes")

        for file, size in sizes.items():
            with _faults_placed(file, option, len(sizes)):
                for document in reader.documents(file, report=report):
                    empty = False
                    yield document
            before += size
            report(0)
        if empty:
            raise _no_text(list(sizes), option)
        if reader.longest_row:
            row, file = reader.longest_row
            run.log.info(
                "%s: the row that begins in line %s spans %s lines, more than any other. If a quotation mark has "
                "swallowed rows there, set quoting: false.",
                *(file, f"{row.first_line:,}", f"{row.lines:,}"),
            )


def _stats(files: dict[str, Path], option: str) -> list[tuple[str, int, int]]:
    """The path, size in bytes and time in nanoseconds of each file."""
    stats = []
    for place, file in files.items():
        with _faults_placed(file, option, len(files)):
            stat = file.stat()
            stats.append((place, stat.st_size, stat.st_mtime_ns))
    return stats


def _no_text(files: list[Path], option: str) -> OptionError:
    names = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} files more" if len(files) > 3 else "")
    return OptionError(f"there is no text in {names}", option=option)


@contextmanager
def _faults_placed(file: Path, option: str, among: int) -> Iterator[None]:
    """Turn a problem with one of so many files into an error of the option that names it, or that could fix it."""
    without = f"; mend it, or go on without it: leave_out: [{json.dumps(str(file), ensure_ascii=False)}]"
    try:
        yield
    except FileError as fault:
        cure = without * (among > 1 and not fault.option)
        raise OptionError(f"{file}: {str(fault).rstrip('.')}{cure}", option=fault.option or option) from fault
    except OSError as error:
        cure = without * (among > 1)
        raise OptionError(f"{file}: cannot be read: {error.strerror or error}{cure}", option=option) from error
