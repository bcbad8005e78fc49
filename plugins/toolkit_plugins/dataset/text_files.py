"""Files of one's own.

Read here rather than by the loaders of the library datasets, so that files of several formats can be mixed and
everything that is wrong with one is told with its name, line or byte.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import field_validator

from toolkit.api import Dataset, OptionError, RunContext
from toolkit_plugins.dataset.arrow import dataset_of
from toolkit_plugins.dataset.readers import (
    Fault,
    SampleBy,
    first_bad_byte,
    json_documents,
    json_lines,
    opened,
    parquet_column,
    samples,
    table_column,
)

if TYPE_CHECKING:
    import datasets

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
            "".encode(encoding)
        except LookupError:
            raise ValueError(
                f"{encoding!r} is no encoding of text that Python knows; try utf-8, utf-16 or cp1252"
            ) from None
        return encoding

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """Find the files and read them in the order of their names."""
        from datasets import DatasetDict

        held_out = _found(self.validation_files, "validation_files") if self.validation_files is not None else []
        kept_out = {file.resolve() for file in held_out}
        files = [file for file in _found(self.files, "files") if file.resolve() not in kept_out]
        if not files:
            raise OptionError(
                "every one of the files is a validation file too; nothing is left to train on", option="files"
            )
        parts = {"train": (files, "files")} | ({"validation": (held_out, "validation_files")} if held_out else {})
        return DatasetDict({part: self._read(*of, cache=run.cache) for part, of in parts.items()})

    def holds_end_tokens(self) -> bool:
        """Whether there are txt or md files, which may have no other way to say where a document ends."""
        patterns = [self.files, *([self.validation_files] if self.validation_files is not None else [])]
        return any(_format(file, "files")[0] == "text" for pattern in patterns for file in _found(pattern, "files"))

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
            yield from parquet_column(file, self.column)
            return
        encoding = "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding
        # The csv module wants to see line ends as they are; the other readers get plain ones.
        newline = "" if kind in ("csv", "tsv") else None
        with opened(file, compression) as raw, io.TextIOWrapper(raw, encoding, newline=newline) as stream:
            match kind:
                case "text":
                    yield from samples(stream, self.sample_by)
                case "json lines":
                    yield from json_lines(stream, self.column)
                case "json":
                    yield from json_documents(stream, self.column)
                case _:
                    yield from table_column(stream, self.column, "," if kind == "csv" else "\t")


def _found(patterns: str | list[str], option: str) -> list[Path]:
    """The files that the patterns match, each once, in the order of their names."""
    files: dict[Path, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        place = Path(pattern).expanduser()
        if place.is_dir():
            raise OptionError(f"{pattern} is a folder; name its files, as in {place / '**' / '*.txt'}", option=option)
        # Path.glob takes no absolute patterns. A name that exists is taken at its word, even with a [ in it.
        matched = [place] if place.exists() else map(Path, glob.glob(str(place), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        matches = {file for file in matched if file.is_file()}
        if not matches:
            raise OptionError(f"no file matches {pattern!r} (looked in {Path.cwd()})", option=option)
        files |= {file.resolve(): file for file in matches}
    return sorted(files.values())


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


@contextmanager
def _faults_placed(file: Path, compression: str, encoding: str, option: str) -> Iterator[None]:
    """Turn what readers raise into a refusal of the option, with the file's name."""
    from pyarrow import ArrowInvalid

    try:
        yield
    except Fault as fault:
        raise OptionError(f"{file}: {fault}", option=fault.option or option) from fault
    except UnicodeError as error:
        raise OptionError(
            f"{file}: byte {first_bad_byte(file, compression, encoding):,} is not {encoding}; convert the file, or "
            f"name its encoding, for example encoding: cp1252 for an old Windows file",
            option="encoding",
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ArrowInvalid) as error:
        raise OptionError(f"{file}: damaged, or not what its ending says: {error}", option=option) from error
    except OSError as error:
        raise OptionError(f"{file}: cannot be read: {error.strerror or error}", option=option) from error
