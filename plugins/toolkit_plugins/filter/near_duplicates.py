"""Documents that are nearly the same as an earlier one, found by MinHash and locality-sensitive hashing.

Broder 1997, "On the resemblance and containment of documents": of two documents, the fraction of hash functions whose
smallest value over the word n-grams is the same estimates their Jaccard similarity. Documents are compared if all
values of a band of them are equal (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4). The
library datasketch does this document by document, and needs scipy; here batches are hashed, and bands sorted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from toolkit.api import CorpusFilter, RunContext, WordNgrams
from toolkit_plugins.filter.equal_rows import groups

if TYPE_CHECKING:
    import numpy

HASHES = 128
"""The estimate of a similarity of 0.65 has a standard deviation of 0.04."""
HASHES_PER_BAND = 4
"""A pair with a similarity of 0.65 shares one of the 32 bands with a probability of 99.8 %."""
PAIRS_AT_ONCE = 1 << 14
NO_WORDS = (1 << 64) - 1


class NearDuplicates(CorpusFilter):
    """Keep the first of documents that share most of their word n-grams (MinHash)."""

    reason: ClassVar[str] = "nearly the same as an earlier one"

    similarity: float = Field(default=0.65, ge=0.5, le=1)
    """Drop a document if the Jaccard similarity of its n-grams with those of an earlier one is estimated to be at least
    this. One with 5 % of its words edited has about 0.75."""
    ngram: int = Field(default=3, ge=1)
    """Words in an n-gram, without case and punctuation. With more of them, an edit counts for more."""

    def signer(self, run: RunContext) -> Callable[[Sequence[str]], numpy.ndarray[Any, Any]]:
        import numpy

        ngrams = WordNgrams(self.ngram, fill=True)
        draw = random.Random(1997)  # numpy's generators may draw other numbers in another version
        factors = numpy.array([draw.getrandbits(64) | 1 for _ in range(HASHES)], dtype="uint64")
        terms = numpy.array([draw.getrandbits(64) for _ in range(HASHES)], dtype="uint64")

        def signed(documents: Sequence[str]) -> numpy.ndarray[Any, Any]:
            hashes, counts = ngrams(documents)
            smallest = numpy.full((len(documents), HASHES), NO_WORDS, dtype="uint64")
            there = counts > 0
            if there.any():
                begins = (numpy.cumsum(counts) - counts)[there]
                values = numpy.empty_like(hashes)
                for column, (factor, term) in enumerate(zip(factors, terms, strict=True)):
                    numpy.multiply(hashes, factor, out=values)
                    values += term
                    smallest[there, column] = numpy.minimum.reduceat(values, begins)
            return (smallest >> numpy.uint64(32)).astype("uint32").view("uint64")

        return signed

    def earlier(self, signatures: numpy.ndarray[Any, Any], run: RunContext) -> numpy.ndarray[Any, Any]:
        import numpy

        values = signatures.view("uint32")
        found = numpy.full(len(signatures), -1, dtype="int64")
        empty = (signatures[:, :2] == numpy.uint64(NO_WORDS)).all(axis=1)  # four values, which are never all so large
        width = HASHES_PER_BAND // 2
        bands = range(0, signatures.shape[1], width)
        for number, column in enumerate(bands):
            order, begins = groups(numpy.ascontiguousarray(signatures[:, column : column + width]))
            first = order[begins][numpy.cumsum(begins) - 1]
            # In a group each document is compared with the first and with the one before it: the work stays linear.
            for other in (first, numpy.roll(order, 1)):
                open_ = ~begins & (found[order] < 0) & ~empty[order]
                _compare(values, order[open_], other[open_], self.similarity, found)
            run.progress("comparing", number + 1, len(bands), unit="bands")
        return found


def _compare(
    values: numpy.ndarray[Any, Any],
    documents: numpy.ndarray[Any, Any],
    others: numpy.ndarray[Any, Any],
    similarity: float,
    found: numpy.ndarray[Any, Any],
) -> None:
    """Note in `found`, for each document, the other one that it is compared with if they are similar."""
    for start in range(0, len(documents), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        alike = (values[documents[some]] == values[others[some]]).mean(axis=1) >= similarity
        found[documents[some][alike]] = others[some][alike]
