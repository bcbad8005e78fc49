"""Reads a file in any supported format, compression and encoding: yields its documents, or raises a `FileError`."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from toolkit_plugins.dataset.contents import (
    BYTES_PER_READ,
    FileError,
    Format,
    check_signature,
    damaged,
    first_bad_byte,
    format_of,
    head_of,
    opened,
    text_encoding,
)
from toolkit_plugins.dataset.readers import SampleBy, json_documents, json_lines, parquet_column, samples
from toolkit_plugins.dataset.tables import Layout, LongRow, table_column

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass
class FileReader:
    """Reads files as the options of text-files say."""

    format: Format | None
    sample_by: SampleBy
    column: str
    delimiter: str | None
    quoting: bool | None
    encoding: str
    longest_row: tuple[LongRow, Path] | None = field(default=None, init=False)
    """The table row that spans the most lines so far, if those are many, and its file."""

    def documents(
        self, file: Path, *, characters: int = -1, report: Callable[[int], object] = lambda _: None
    ) -> Iterator[str]:
        """The non-empty documents of a file.

        Args:
            file: the file to read.
            characters: how much to read, at most, of a document that is a whole file; all of it if -1.
            report: called repeatedly with the number of bytes read so far.

        Raises:
            FileError: something is wrong with the file.
        """
        format_, compression = format_of(file, self.format)
        with _explained():
            head = head_of(file, compression)
            if format_ == "parquet":
                if not head.startswith(b"PAR1"):
                    check_signature(head)
                texts = parquet_column(file, self.column)
            else:
                texts = self._in_text(
                    file, format_, compression, text_encoding(head, self.encoding), characters, report
                )
            yield from (text for text in texts if text.strip())

    def _in_text(
        self,
        file: Path,
        format_: Format,
        compression: str,
        encoding: str,
        characters: int,
        report: Callable[[int], object],
    ) -> Iterator[str]:
        # The csv module needs line endings untranslated; the other readers get universal newlines.
        newline = "" if format_ in ("csv", "tsv") else None
        with (
            io.BufferedReader(_Watched(file, report), BYTES_PER_READ) as raw,
            opened(raw, compression) as content,
            io.TextIOWrapper(content, encoding, newline=newline) as stream,
        ):
            try:
                match format_:
                    case "text":
                        yield from samples(stream, self.sample_by, characters)
                    case "jsonl":
                        yield from json_lines(stream, self.column)
                    case "json":
                        yield from json_documents(stream, self.column)
                    case _:
                        yield from self._in_table(stream, file, format_)
            except UnicodeError as error:
                raise self._not_encoded(file, compression, encoding) from error

    def _in_table(self, stream: IO[str], file: Path, format_: Format) -> Iterator[str]:
        layout = Layout(
            delimiter=self.delimiter or ("\t" if format_ == "tsv" else ","),
            quoting=self.quoting if self.quoting is not None else format_ == "csv",
            certain=self.delimiter is not None,
        )
        longest = LongRow()
        yield from table_column(stream, self.column, layout, longest)
        if longest.is_long and (self.longest_row is None or longest.lines > self.longest_row[0].lines):
            self.longest_row = longest, file

    def _not_encoded(self, file: Path, compression: str, encoding: str) -> FileError:
        line, byte = first_bad_byte(file, compression, encoding)
        known_as = codecs.lookup(encoding).name
        if encoding != self.encoding:
            cure = "its byte order mark says that it is, so the file is damaged"
        elif known_as in ("utf-16", "utf-32") and not byte:
            cure = f"it has no byte order mark, so try encoding: {known_as}-le"
        elif known_as == "utf-8":
            cure = "convert the file, or name its encoding, for example encoding: cp1252 for an old Windows file"
        else:
            cure = "convert the file, or name its encoding, for example encoding: utf-8"
        return FileError(f"line {line:,}: byte {byte:,} is not {encoding}; {cure}", option="encoding")


class _Watched(io.FileIO):
    """A file that reports how many bytes have been read."""

    def __init__(self, file: Path, report: Callable[[int], object]) -> None:
        super().__init__(file)
        self._report = report

    def readinto(self, buffer: Buffer) -> int | None:
        size = super().readinto(buffer)
        self._report(self.tell())
        return size


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the libraries raise about a file into a `FileError`."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise damaged(error) from error
    except OSError as error:
        if "too much memory" in str(error):  # pyarrow reads windows of up to 128 MB
            raise FileError(
                "it is compressed with a window of more than 128 MB; decompress it with zstd -d --long=31 FILE, and "
                "name the file that this writes"
            ) from error
        if error.errno is None:  # raised by a library, about the content
            raise damaged(error) from error
        raise FileError(f"cannot be read: {error.strerror}") from error
