"""The contents of a file: its decompressed bytes, its encoding, and what its first bytes reveal about the format."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ENDINGS: dict[str, Format] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

BYTES_PER_READ = 1 << 20
HEAD_BYTES = 4096
"""How much of a file is read to tell what it is."""

BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

SIGNATURES = {
    b"\x1f\x8b": "is compressed with gzip, and its name has to end in .gz",
    b"BZh91AY&SY": "is compressed with bzip2, and its name has to end in .bz2",
    b"\xfd7zXZ\0": "is compressed with xz, and its name has to end in .xz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd, and its name has to end in .zst",
    b"PK\x03\x04": "is a zip archive (or a document of an office program, which is one); unpack it, or export its text",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it",
    b"Rar!\x1a\x07": "is a RAR archive; unpack it",
    b"PAR1": "is a Parquet file; rename it to end in .parquet, or set format: parquet",
    b"ARROW1": "is an Arrow file; write it as Parquet, which pandas, polars and datasets do with to_parquet",
    b"%PDF-": "is a PDF document; extract its text",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "is a document of an office program; export its text",
    b"SQLite format 3\0": "is an SQLite database; export a table as CSV",
    b"version https://git-lfs": "is a Git LFS pointer in place of the file; fetch it with git lfs pull",
}
TAR_SIGNATURE = slice(257, 262)


class FileError(Exception):
    """Something is wrong with a file: what and where, and which option could fix it."""

    def __init__(self, message: str, *, option: str | None = None) -> None:
        self.option = option
        super().__init__(message)


def damaged(error: Exception) -> FileError:
    """The fault for a file that a library cannot parse."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return FileError(f"damaged, cut off, or not what its ending says: {reason}")


def format_of(file: Path, given: Format | None) -> tuple[Format, str]:
    """The format of a file, and its compression.

    Raises:
        FileError: neither `given` nor its name says the format, or it is compressed Parquet.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    ending = suffixes[-1] if suffixes else ""
    format_ = given or ENDINGS.get(ending)
    if format_ is None:
        raise FileError(
            f"{ending + compression or 'a name without an ending'} does not say how to read it; set format (text, "
            f"jsonl, json, csv, tsv or parquet), or rename it to end in {', '.join(ENDINGS)}; "
            f"{', '.join(COMPRESSIONS)} may follow",
            option="format",
        )
    if format_ == "parquet" and compression:
        raise FileError(f"{compression} around Parquet is not read, which compresses itself; decompress it")
    return format_, compression


def opened(file: BinaryIO, compression: str) -> IO[bytes]:
    """The decompressed bytes of an open file."""
    return cast(IO[bytes], DECOMPRESSED[compression](file))


def _from_zstd(file: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.input_stream(file, compression="zstd")


DECOMPRESSED: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _from_zstd,
    "": lambda file: file,
}


def head_of(file: Path, compression: str) -> bytes:
    """The first decompressed bytes of a file."""
    with file.open("rb") as raw, opened(raw, compression) as stream:
        return stream.read(HEAD_BYTES)


def text_encoding(head: bytes, encoding: str) -> str:
    """The encoding of a text with these first bytes: that of its byte order mark, or else the given one.

    Raises:
        FileError: these are not the first bytes of a text in that encoding.
    """
    check_signature(head)
    for mark, marked in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return marked
    if b"\0" in head and not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        raise binary_fault(head)
    return encoding


def check_signature(head: bytes) -> None:
    """Refuse what is not text, whatever the file's name says.

    Raises:
        FileError: the signature is that of an archive, say.
    """
    for signature, what in SIGNATURES.items():
        if head.startswith(signature):
            raise FileError(f"it {what}")
    if head[TAR_SIGNATURE] == b"ustar":
        raise FileError("it is a tar archive; unpack it")


def binary_fault(head: bytes) -> FileError:
    """The fault for NUL characters; in most UTF-16 texts every other byte is one."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) / 4 > 8 * min(even, odd):
        order = "le" if odd > even else "be"
        return FileError(
            f"it looks like UTF-16 without a byte order mark; set encoding: utf-16-{order}", option="encoding"
        )
    return FileError("it holds NUL characters, so it is not text, or it is in another encoding", option="encoding")


def first_bad_byte(file: Path, compression: str, encoding: str) -> tuple[int, int]:
    """The line (from 1) and the byte (from 0, in the uncompressed file) at which decoding stops."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position, line = 0, 1
    with file.open("rb") as raw, opened(raw, compression) as stream:
        while True:
            chunk = stream.read(BYTES_PER_READ)
            pending, _ = decoder.getstate()
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                good = (pending + chunk)[: error.start].decode(encoding, errors="replace")
                return line + good.count("\n"), position - len(pending) + error.start
            except UnicodeError:  # utf-16 or utf-32 without the byte order mark that it requires
                return 1, 0
            if not chunk:
                return line, position
            position += len(chunk)
