"""Writes documents into an Arrow file, once, and reads them back from there without holding them in memory.

It does not know where documents come from; whoever calls it says, with a key, when they are the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.api import UnavailableError

if TYPE_CHECKING:
    from datasets import Dataset

CHARACTERS_PER_BATCH = 1 << 24
"""Characters that are held before they are written: 16 million, or one document that is longer."""
DOCUMENTS_PER_BATCH = 10_000

UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
)


def dataset_of(documents: Iterable[str], *, key: Iterable[object], cache: Path) -> Dataset:
    """Return a memory-mapped dataset with the column `text`; `documents` is read only if `key` is new to the cache.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    from datasets import Dataset

    name = hashlib.sha256(repr(tuple(key)).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    file = cache / "documents" / f"{name}.arrow"
    if not file.exists():
        with _cache_errors(cache):
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(documents, file)
    return Dataset.from_file(str(file))


def _write(documents: Iterable[str], file: Path) -> None:
    """Write all documents or nothing: a file that exists is complete."""
    import pyarrow as pa

    # 64-bit offsets: a thousand files of two megabytes are more than a string column of 32 bits can hold.
    schema = pa.schema({"text": pa.large_string()})
    unfinished = file.with_name(f"{file.stem}-{uuid.uuid4().hex}.unfinished")
    try:
        with unfinished.open("xb") as sink:
            with pa.ipc.new_stream(sink, schema) as writer:
                for texts in _batches(documents):
                    writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=schema))
            sink.flush()
            os.fsync(sink.fileno())  # or a power cut leaves the name with nothing behind it, for every later run
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


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


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise UnavailableError(f"the documents cannot be written to {cache}: {error.strerror}") from error
        raise
