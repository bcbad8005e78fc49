"""Writes documents to an Arrow file once, and memory-maps them from there.

It does not know where documents come from; the caller's key says whether they are the same as before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.api import entry_made

if TYPE_CHECKING:
    from datasets import Dataset

CHARACTERS_PER_BATCH = 1 << 24
"""Characters held before they are written: 16 million, or one document that is longer."""
DOCUMENTS_PER_BATCH = 10_000


def dataset_of(documents: Iterable[str], *, key: Iterable[object], cache: Path) -> Dataset:
    """Return a memory-mapped dataset with the column `text`; `documents` is read only if `key` is new to the cache.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    from datasets import Dataset

    name = hashlib.sha256(repr(tuple(key)).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    file = cache / "documents" / f"{name}.arrow"
    if not file.exists():
        with entry_made(file) as staging:
            _write(documents, staging)
    return Dataset.from_file(str(file))


def _write(documents: Iterable[str], file: Path) -> None:
    import pyarrow as pa

    # 64-bit offsets: a thousand documents of two megabytes overflow the 32-bit offsets of a string column.
    schema = pa.schema({"text": pa.large_string()})
    with file.open("xb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for texts in _batches(documents):
            writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=schema))


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= CHARACTERS_PER_BATCH or len(batch) >= DOCUMENTS_PER_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
