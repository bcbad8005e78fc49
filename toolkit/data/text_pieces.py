"""The texts of a split, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.data.documents import DOCUMENTS_PER_BATCH

if TYPE_CHECKING:
    from datasets import Dataset as Split

BYTES_PER_PIECE = 1 << 22
"""Of text, unless a single document has more."""


def texts_in_pieces(split: Split, begin: int = 0) -> Iterator[list[str]]:
    """The texts from this row on, in pieces small enough to be copied in memory, or of a single text.

    From the row where a piece begins, the same pieces follow: so work that was interrupted goes on with them.
    """
    import numpy
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = split.select_columns("text").with_format("arrow")
    while begin < len(split):
        end = min(len(split), begin - begin % DOCUMENTS_PER_BATCH + DOCUMENTS_PER_BATCH)
        column = texts[begin:end]["text"].cast(pa.large_string())
        sizes = numpy.cumsum(pc.fill_null(pc.binary_length(column), 0).to_numpy())
        at = 0
        while at < len(column):
            before = sizes[at - 1] if at else 0
            stop = max(at + 1, int(numpy.searchsorted(sizes, before + BYTES_PER_PIECE, side="right")))
            yield [text or "" for text in column[at:stop].to_pylist()]
            at = stop
        begin = end
