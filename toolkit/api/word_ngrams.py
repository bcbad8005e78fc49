"""Hashes of the runs of n words in documents, by which near duplicates and copied passages are found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

HAN_AND_KANA = "぀-ヿ㐀-鿿"
WORD = re.compile(f"[{HAN_AND_KANA}]|[^\\W{HAN_AND_KANA}]+")
"""Letters and digits between anything else; where words are not separated, each character counts as one."""
MOST_WORDS_KNOWN = 1 << 20
TABLE_BITS = 24
FILLER = 0x9E3779B97F4A7C15
FACTOR = 0xD6E8FEB86659FD93
"""Odd, so that no bit of a word is lost as it is multiplied."""


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return WORD.findall(text.lower())


class WordNgrams:
    """Hashes the runs of `n` words in documents, the same in every process.

    Args:
        n: words in a run.
        fill: whether a document with fewer words has one run, of all its words, instead of none.
    """

    def __init__(self, n: int, *, fill: bool = False) -> None:
        self.n = n
        self.fill = fill
        self._known = _WordHashes()

    def __call__(self, texts: Sequence[str]) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
        """Return the hashes of all runs, uint64, shape (runs,), and how many each text has, int64, shape (texts,)."""
        import numpy

        if len(self._known) > MOST_WORDS_KNOWN:
            self._known.clear()
        hashes: list[int] = []
        counts = numpy.empty(len(texts), dtype="int64")
        for index, text in enumerate(texts):
            before = len(hashes)
            hashes += map(self._known.__getitem__, words(text))
            if self.fill and 0 < len(hashes) - before < self.n:
                hashes += [FILLER] * (self.n - (len(hashes) - before))
            counts[index] = len(hashes) - before
        runs = numpy.maximum(counts - self.n + 1, 0)
        if not runs.any():
            return numpy.empty(0, dtype="uint64"), runs
        by_word = numpy.array(hashes, dtype="uint64")
        mixed = by_word[: len(by_word) - self.n + 1].copy()
        for offset in range(1, self.n):
            mixed *= numpy.uint64(FACTOR)
            mixed += by_word[offset : len(mixed) + offset]
        ends = numpy.repeat(numpy.cumsum(counts), counts)[: len(mixed)]
        mixed = mixed[numpy.arange(len(mixed)) + self.n <= ends]  # the others reach into the next document
        mixed ^= mixed >> numpy.uint64(32)
        mixed *= numpy.uint64(FACTOR)
        mixed ^= mixed >> numpy.uint64(32)
        return mixed, runs


class KnownNgrams:
    """A set of hashes of word n-grams, `uint64`, to look others up in."""

    def __init__(self, hashes: numpy.ndarray[Any, Any]) -> None:
        import numpy

        self.hashes = numpy.unique(hashes)
        # Most of what is looked up is not there: a table of the lowest bits tells so at once.
        self._low = numpy.zeros(1 << TABLE_BITS, dtype=bool)
        self._low[self.hashes & numpy.uint64((1 << TABLE_BITS) - 1)] = True

    def found(self, hashes: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """Whether each of these hashes is in the set: bool, shape (runs,)."""
        import numpy

        there: numpy.ndarray[Any, Any] = self._low[hashes & numpy.uint64((1 << TABLE_BITS) - 1)]
        if there.any():
            at = numpy.flatnonzero(there)
            place = numpy.minimum(numpy.searchsorted(self.hashes, hashes[at]), len(self.hashes) - 1)
            there[at] = self.hashes[place] == hashes[at]
        return there


class _WordHashes(dict[str, int]):
    """The hashes of words, computed once: a language repeats its words."""

    def __missing__(self, word: str) -> int:
        import xxhash

        self[word] = digest = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return digest
