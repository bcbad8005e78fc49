"""Documents that are the same as an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from toolkit.api import CorpusFilter, RunContext, words
from toolkit_plugins.filter.equal_rows import first_equal

if TYPE_CHECKING:
    import numpy


class ExactDuplicates(CorpusFilter):
    """Keep the first of documents with the same text."""

    reason: ClassVar[str] = "the same as an earlier one"

    normalize: bool = False
    """Whether documents are the same that differ only in case, punctuation and white space."""

    def signer(self, run: RunContext) -> Callable[[Sequence[str]], numpy.ndarray[Any, Any]]:
        import numpy
        import xxhash

        def signed(documents: Sequence[str]) -> numpy.ndarray[Any, Any]:
            texts = (" ".join(words(one)) or one for one in documents) if self.normalize else documents
            digests = b"".join(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts)
            return numpy.frombuffer(digests, dtype="uint64").reshape(-1, 2)

        return signed

    def earlier(self, signatures: numpy.ndarray[Any, Any], run: RunContext) -> numpy.ndarray[Any, Any]:
        return first_equal(signatures)
