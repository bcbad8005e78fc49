r"""Reads documents of token ids from the files of Megatron, llm.c, nanoGPT and datatrove.

The formats are those of NVIDIA/Megatron-LM megatron/core/datasets/indexed_dataset.py, karpathy/llm.c
dev/data/data_common.py, karpathy/nanoGPT data/openwebtext/prepare.py, and huggingface/datatrove
src/datatrove/pipeline/tokens/tokenizer.py. All of them are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit_plugins.dataset.contents import FileError

if TYPE_CHECKING:
    import numpy

TokenFormat = Literal["megatron", "llm.c", "nanogpt", "datatrove"]
TokenType = Literal["uint16", "uint32"]
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_HEADER = struct.Struct("<9sQBQQ")
MEGATRON_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""By the code in the index; 6 and 7 are floating-point numbers."""
LLM_C_HEADER_BYTES = 4 * 256
LLM_C_TYPES: dict[int, TokenType] = {20240520: "uint16", 20240801: "uint32"}
LLM_C_EVALUATION = 20240522
IDS_AT_ONCE = 1 << 22
IDS_LOOKED_AT = 10_000
MAX_ZERO_SHARE = 0.9
"""Of every second number, if ids of 16 bits are read; in ids of 32 bits that are read so, nearly all are 0."""


@dataclass(frozen=True)
class TokenFile:
    """The ids in a file, and where its documents end."""

    path: Path
    ids: numpy.ndarray[Any, Any]
    """Memory-mapped, shape (ids,)."""
    ends: numpy.ndarray[Any, Any] | None
    """The index after each document's last id, ascending, shape (documents,); None if the format does not say."""

    def documents(self, end_token_id: int | None) -> Iterator[numpy.ndarray[Any, Any]]:
        """The ids of each document, without the end token; documents without any are left out."""
        for ids in _split(self.ids, self.ends) if self.ends is not None else self._cut(end_token_id):
            first = int(len(ids) > 0 and ids[0] == end_token_id)
            last = len(ids) - int(len(ids) > first and ids[-1] == end_token_id)
            if last > first:
                yield ids[first:last]

    def _cut(self, end_token_id: int | None) -> Iterator[numpy.ndarray[Any, Any]]:
        """The stretches that end in an end token, and the rest."""
        import numpy

        begin = 0
        for at in range(0, len(self.ids) if end_token_id is not None else 0, IDS_AT_ONCE):
            for end in (numpy.flatnonzero(self.ids[at : at + IDS_AT_ONCE] == end_token_id) + at + 1).tolist():
                yield self.ids[begin:end]
                begin = end
        yield self.ids[begin:]


def _split(ids: numpy.ndarray[Any, Any], ends: numpy.ndarray[Any, Any]) -> Iterator[numpy.ndarray[Any, Any]]:
    begin = 0
    for end in ends.tolist():
        yield ids[begin:end]
        begin = end


def opened(path: Path, format_: TokenFormat | None, token_type: TokenType | None) -> TokenFile:
    """Open a file of tokens; what is not given, its name, its neighbours and its first bytes say.

    Raises:
        FileError: it is none, damaged, or of another type than was said.
    """
    with path.open("rb") as file:
        head = file.read(16)
    magic = struct.unpack("<i", head[:4])[0] if len(head) >= 4 else 0
    match format_ or _format_of(path, magic):
        case "megatron":
            return _megatron(path)
        case "llm.c":
            return _llm_c(path, magic)
        case "datatrove":
            return _datatrove(path, token_type)
        case _:
            return TokenFile(path, _mapped(path, token_type or "uint16"), None)


def _format_of(path: Path, magic: int) -> TokenFormat:
    if path.suffix == ".ds":
        return "datatrove"
    if path.with_suffix(".idx").exists():
        return "megatron"
    return "llm.c" if magic in LLM_C_TYPES or magic == LLM_C_EVALUATION else "nanogpt"


def _megatron(path: Path) -> TokenFile:
    import numpy

    index = path.with_suffix(".idx")
    if not index.exists():
        raise FileError(
            f"there is no {index.name} beside it, which says where Megatron's documents are", option="files"
        )
    content = numpy.memmap(index, mode="r", dtype="uint8") if index.stat().st_size else b""
    if len(content) < MEGATRON_HEADER.size or bytes(content[:9]) != MEGATRON_MAGIC:
        raise FileError(f"{index.name} is not an index of Megatron's: it does not begin with MMIDIDX")
    _, version, code, sequences, indices = MEGATRON_HEADER.unpack(bytes(content[: MEGATRON_HEADER.size]))
    if version != 1 or code not in MEGATRON_TYPES:
        raise FileError(f"{index.name} has version {version} and type {code}; known are version 1 and whole numbers")
    needed = MEGATRON_HEADER.size + 12 * sequences + 8 * indices
    if len(content) not in (needed, needed + sequences):  # with a mode for each sequence, of several modalities
        raise FileError(f"{index.name} has {len(content):,} bytes in place of {needed:,}: it is cut off or damaged")
    at = MEGATRON_HEADER.size
    lengths = numpy.frombuffer(content, "<i4", sequences, at)
    pointers = numpy.frombuffer(content, "<i8", sequences, at + 4 * sequences)
    borders = numpy.frombuffer(content, "<i8", indices, at + 12 * sequences)
    ids = _mapped(path, MEGATRON_TYPES[code])
    ends = lengths.cumsum(dtype="int64")
    if sequences and (not numpy.array_equal(pointers, (ends - lengths) * ids.itemsize) or ends[-1] != len(ids)):
        raise FileError(f"it has not the {int(ends[-1]):,} ids, one after the other, that {index.name} says")
    # A document may consist of several sequences, such as sentences.
    after = borders[1:]
    return TokenFile(path, ids, ends[after[after > 0] - 1] if sequences else ends)


def _llm_c(path: Path, magic: int) -> TokenFile:
    import numpy

    if magic == LLM_C_EVALUATION:
        raise FileError("it holds questions of an evaluation (HellaSwag, MMLU), and no text to train on")
    if magic not in LLM_C_TYPES:
        raise FileError(
            f"it begins with {magic} and not with {' or '.join(map(str, LLM_C_TYPES))}, as llm.c's files do"
        )
    if path.stat().st_size < LLM_C_HEADER_BYTES:
        raise FileError("it is shorter than llm.c's header")
    count = int(numpy.fromfile(path, "<i4", 3)[2])
    ids = _mapped(path, LLM_C_TYPES[magic], LLM_C_HEADER_BYTES)
    if count != len(ids):
        raise FileError(f"its header says {count:,} ids, and there are {len(ids):,}: it is cut off or damaged")
    return TokenFile(path, ids, None)


def _datatrove(path: Path, token_type: TokenType | None) -> TokenFile:
    import numpy

    index = path.with_name(f"{path.name}.index")
    if not index.exists():
        raise FileError(f"there is no {index.name} beside it, which says where datatrove's documents end")
    ends = numpy.fromfile(index, "<u8").astype("int64")
    size, count = path.stat().st_size, int(ends[-1]) if len(ends) else 0
    fitting = [name for name in ("uint16", "uint32") if size == count * numpy.dtype(name).itemsize]
    if not fitting or (numpy.diff(ends) < 0).any():
        raise FileError(f"it has {size:,} bytes, and {index.name} says {count:,} ids: one of them is damaged")
    if token_type not in (None, fitting[0]) and size:
        raise FileError(f"it holds ids of type {fitting[0]}, by its size and its index", option="token_type")
    return TokenFile(path, _mapped(path, fitting[0]), ends)


def _mapped(path: Path, token_type: str, offset: int = 0) -> numpy.ndarray[Any, Any]:
    import numpy

    width, size = numpy.dtype(token_type).itemsize, path.stat().st_size - offset
    if not size:
        raise FileError("it holds no ids")
    if size % width:
        raise FileError(
            f"its {size:,} bytes are no whole number of {token_type}: another type, or cut off", option="token_type"
        )
    ids = numpy.memmap(path, mode="r", dtype=numpy.dtype(token_type).newbyteorder("<"), offset=offset)
    every_second = ids[1 : 2 * IDS_LOOKED_AT : 2]
    if width == 2 and len(every_second) > 8 and (every_second == 0).mean() > MAX_ZERO_SHARE:
        raise FileError("every second id is 0, as in a file of uint32 that is read as uint16", option="token_type")
    if (ids[:IDS_LOOKED_AT].astype("int64") < 0).any():
        raise FileError("there are negative ids in it: it holds another type, or no tokens")
    return ids
