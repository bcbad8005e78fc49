"""Writes documents to an Arrow file once, and memory-maps them from there.

It does not know where documents come from; the caller's key says whether they are the same as before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.api import entry_made

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset

D = TypeVar("D", bound=Sized)

CHARACTERS_PER_BATCH = 1 << 24
"""Characters or ids held before they are written: 16 million, or one document that is longer."""
DOCUMENTS_PER_BATCH = 10_000


def dataset_of(documents: Iterable[str], *, key: Iterable[object], cache: Path) -> Dataset:
    """Return a memory-mapped dataset with the column `text`; `documents` is read only if `key` is new to the cache.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    return _kept(lambda file: _write(documents, file), key=key, cache=cache)


def dataset_of_tokens(documents: Iterable[numpy.ndarray[Any, Any]], *, key: Iterable[object], cache: Path) -> Dataset:
    """The same for documents of token ids, with the column `input_ids`, uint32.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    return _kept(lambda file: _write_tokens(documents, file), key=key, cache=cache)


def _kept(write: Callable[[Path], None], *, key: Iterable[object], cache: Path) -> Dataset:
    from datasets import Dataset

    name = hashlib.sha256(repr(tuple(key)).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    file = cache / "documents" / f"{name}.arrow"
    if not file.exists():
        with entry_made(file) as staging:
            write(staging)
    return Dataset.from_file(str(file))


def _write(documents: Iterable[str], file: Path) -> None:
    import pyarrow as pa

    # 64-bit offsets: a thousand documents of two megabytes overflow the 32-bit offsets of a string column.
    schema = pa.schema({"text": pa.large_string()})
    with file.open("xb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for texts in _batches(documents):
            writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=schema))


def _write_tokens(documents: Iterable[numpy.ndarray[Any, Any]], file: Path) -> None:
    import numpy
    import pyarrow as pa

    schema = pa.schema({"input_ids": pa.large_list(pa.uint32())})
    with file.open("xb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _batches(documents):
            offsets = numpy.cumsum([0, *map(len, batch)])
            values = pa.array(numpy.concatenate(batch).astype("uint32"))
            column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
            writer.write_batch(pa.record_batch([column], schema=schema))


def _batches(documents: Iterable[D]) -> Iterator[list[D]]:
    batch: list[D] = []
    length = 0
    for document in documents:
        batch.append(document)
        length += len(document)
        if length >= CHARACTERS_PER_BATCH or len(batch) >= DOCUMENTS_PER_BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
