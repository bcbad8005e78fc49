r"""Writes documents of token ids in the formats of other trainers: Megatron, llm.c, nanoGPT, datatrove.

What each looks like, byte by byte, all little-endian:

    megatron    NAME.bin: ids, one document after the other.
                NAME.idx: b"MMIDIDX\x00\x00", version 1 (uint64), code of the ids' type (uint8), number of sequences n
                (uint64), number of document indices n + 1 (uint64), lengths (int32, n), byte offsets (int64, n),
                document indices 0, 1, ... n (int64, n + 1).
                NVIDIA/Megatron-LM megatron/core/datasets/indexed_dataset.py
    llm.c       NAME_000000.bin, ...: 256 int32, of which the first are magic, version and number of ids; then the ids.
                20240520, 1, uint16 for GPT-2; 20240801, 7, uint32 for Llama 3. karpathy/llm.c dev/data/data_common.py
    nanogpt     NAME.bin: ids as uint16. karpathy/nanoGPT data/openwebtext/prepare.py
    datatrove   NAME.ds: ids, as uint16 or uint32. NAME.ds.index: where each document ends, in ids (uint64).
                huggingface/datatrove src/datatrove/pipeline/tokens/tokenizer.py

Documents end with the objective's end token, as with Megatron's --append-eod; in llm.c they begin with it, as its own
files do. Plugin `tokens` reads all of them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from toolkit.errors import OptionError
from toolkit.system.files import force

if TYPE_CHECKING:
    import numpy

TokenFormat = Literal["megatron", "llm.c", "nanogpt", "datatrove"]
TOKEN_FORMATS: tuple[TokenFormat, ...] = ("megatron", "llm.c", "nanogpt", "datatrove")
MEGATRON_CODES = {"uint16": 8, "int32": 4}
MEGATRON_MAX_UINT16 = 65_500
"""Vocabularies smaller than this are stored as uint16."""
LLM_C_HEADERS = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
LLM_C_IDS_PER_FILE = 10**8
"""As in llm.c's fineweb.py; a header counts up to 2**31."""
VALIDATION_NAMES = {"megatron": "validation", "llm.c": "val", "nanogpt": "val", "datatrove": "validation"}


@dataclass(frozen=True)
class WrittenTokens:
    """What was written of a split."""

    files: list[Path]
    documents: int
    tokens: int
    """Document ends included."""
    token_type: str
    """By numpy's name."""


def stored_type(format_: TokenFormat, highest_id: int) -> str:
    """The type that the format stores ids up to this one as, by numpy's name.

    Raises:
        OptionError: it stores none as large (option "tokenizer").
    """
    if format_ == "megatron":
        return "uint16" if highest_id + 1 < MEGATRON_MAX_UINT16 else "int32"
    if highest_id < 2**16:
        return "uint16"
    if format_ == "nanogpt":
        raise OptionError(
            f"nanoGPT stores tokens as uint16, and the tokenizer has ids up to {highest_id:,}; take another format, or "
            f"a tokenizer of at most 65,536 tokens",
            option="tokenizer",
        )
    return "uint32"


@dataclass
class TokenFileWriter:
    """Writes the documents of a split; a context, whose files are complete and on disk when it ends."""

    folder: Path
    name: str
    format: TokenFormat
    highest_id: int
    end: Sequence[int]
    """The ids that end a document."""
    files: list[Path] = field(default_factory=list, init=False)
    sizes: array[int] = field(default_factory=lambda: array("q"), init=False)
    """Ids of each document."""

    def __post_init__(self) -> None:
        self.token_type = stored_type(self.format, self.highest_id)
        self._in_file = 0

    def __enter__(self) -> Self:
        self._file = self._opened()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        with self._file:
            if kind is None:
                self._finish_file()
        if kind is None and self.format in ("megatron", "datatrove"):
            self._write_index()

    def write(self, ids: Iterable[int]) -> None:
        """Write a document, given without its end."""
        import numpy

        parts = (*self.end, *ids) if self.format == "llm.c" else (*ids, *self.end)
        content = numpy.array(parts, dtype=self.token_type)
        if self.format == "llm.c" and self._in_file and self._in_file + len(content) > LLM_C_IDS_PER_FILE:
            with self._file:
                self._finish_file()
            self._file = self._opened()
        self._file.write(content.tobytes())
        self.sizes.append(len(content))
        self._in_file += len(content)

    def written(self) -> WrittenTokens:
        """What was written, once the context has ended."""
        return WrittenTokens(self.files, len(self.sizes), sum(self.sizes), self.token_type)

    def _opened(self) -> IO[bytes]:
        ending = {"llm.c": f"_{len(self.files):06}.bin", "datatrove": ".ds"}.get(self.format, ".bin")
        self._in_file = 0
        self.files.append(self.folder / f"{self.name}{ending}")
        file = self.files[-1].open("xb")
        if self.format == "llm.c":
            file.write(bytes(4 * 256))
        return file

    def _finish_file(self) -> None:
        if self.format == "llm.c":
            self._file.seek(0)
            self._file.write(struct.pack("<3i", *LLM_C_HEADERS[self.token_type], self._in_file))
        self._file.flush()
        force(self._file.fileno())

    def _write_index(self) -> None:
        import numpy

        sizes = numpy.frombuffer(self.sizes, "int64") if self.sizes else numpy.empty(0, "int64")
        ends = sizes.cumsum()
        content = ends.astype("<u8").tobytes() if self.format == "datatrove" else self._megatron_index(sizes, ends)
        ending = ".ds.index" if self.format == "datatrove" else ".idx"
        self.files.append(self.folder / f"{self.name}{ending}")
        with self.files[-1].open("xb") as file:
            file.write(content)
            file.flush()
            force(file.fileno())

    def _megatron_index(self, sizes: numpy.ndarray[Any, Any], ends: numpy.ndarray[Any, Any]) -> bytes:
        import numpy

        code, width = MEGATRON_CODES[self.token_type], numpy.dtype(self.token_type).itemsize
        header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(sizes) + 1)
        pointers, indices = (ends - sizes) * width, numpy.arange(len(sizes) + 1)
        parts = (sizes.astype("<i4"), pointers.astype("<i8"), indices.astype("<i8"))
        return b"".join([header, *(part.tobytes() for part in parts)])
