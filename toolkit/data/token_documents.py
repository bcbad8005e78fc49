"""Documents that come as token ids: read, and held against the tokenizer that is to have made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from toolkit.api import highest_id
from toolkit.errors import OptionError

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerBase

IDS_COMPARED = 300
"""Of each document that is decoded and encoded again."""
DOCUMENTS_COMPARED = 30
MIN_SHARE_AGAIN = 0.5
"""Share of the documents, by length, that come out the same. With the right tokenizer nearly all do; with another
vocabulary a decoded text is a jumble, in which pieces of words meet that its merges join."""
IDS_LEFT_OUT = 4
"""At the end of what is compared: it may be cut inside a character, or a word."""


def add_tokens(column: Any, digest: Any) -> None:
    """Add the ids of a column, and the borders of its documents, to a digest."""
    import numpy

    for ids in ids_of(column):
        digest.update(numpy.int64(len(ids)))
        digest.update(numpy.ascontiguousarray(ids))


def ids_of(column: Any) -> Iterator[numpy.ndarray[Any, Any]]:
    """The ids of each document in an Arrow column of lists."""
    import pyarrow as pa

    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        values = chunk.values.to_numpy()
        for start, stop in pairwise(chunk.offsets.to_pylist()):
            yield values[start:stop]


def check_known(documents: Sequence[Sequence[int]], rows: Sequence[int], highest: int) -> None:
    """Check that the ids of documents, of which these are the rows, are not above the highest of the vocabulary.

    Raises:
        OptionError: one is.
    """
    for row, ids in zip(rows, documents, strict=True):
        if (largest := max(ids, default=0)) > highest:
            raise OptionError(
                f"document {row:,} holds the token {largest:,}, and the highest of the tokenizer is {highest:,}: the "
                f"files were made with another tokenizer, or hold ids of another type (token_type)"
            )


def check_made_by(documents: Iterator[numpy.ndarray[Any, Any]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the tokenizer gives these ids for the texts that it decodes them to.

    Raises:
        OptionError: it gives others for most.
    """
    compared = same = 0
    for row, ids in enumerate(islice(documents, DOCUMENTS_COMPARED)):
        given = ids[:IDS_COMPARED].tolist()
        check_known([given], [row], highest_id(tokenizer))
        text = str(tokenizer.decode(given, clean_up_tokenization_spaces=False))
        again = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        certain = max(0, len(given) - IDS_LEFT_OUT)
        compared += certain
        same += certain * (again[:certain] == given[:certain])
    if same < MIN_SHARE_AGAIN * compared:
        raise OptionError(
            f"these are not the tokens of this tokenizer: decoded and encoded again, {same / compared:.0%} of them "
            f"come out the same; take the one that the files were made with"
        )
