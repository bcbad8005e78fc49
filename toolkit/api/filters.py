"""The contract of filters: which documents are trained on, and what is changed in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from toolkit.api.context import RunContext
from toolkit.api.plugins import Plugin

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class Dropped:
    """A filter's verdict on a document that is not to be trained on."""

    reason: str
    """In a few words, the same for all documents of its sort: "too few words". Documents are counted by it."""
    found: str = ""
    """What was found in this document: "12 words". Shown beside the examples."""


class Filter(Plugin):
    """Which documents are trained on, and what is changed in them.

    Filters are listed under `filters` in a dataset's section, and get its training documents in that order, before
    `max_samples` and `eval_fraction` are applied. What they make of the documents is cached by content.
    """

    kind: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    """Raise this when the same options give other documents, so that what is cached is not used."""

    @abstractmethod
    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        """Return the function that judges a document: the text itself, a changed one, or `Dropped`.

        What takes time, such as reading a list, is done before it is returned. Each of several processes has its own
        and gives it some of the documents, so a verdict may depend on the document alone.
        """

    def needs_held_out(self) -> bool:
        """Whether it compares the training documents with those held out, which `judge` finds in `run.held_out`.

        It then comes after `max_samples` and `eval_fraction`, and after the filters that do not.
        """
        return False

    def fingerprint(self, run: RunContext) -> str:
        """Return what the verdicts depend on besides the options, such as a digest of a file; by default, nothing."""
        return ""


class CorpusFilter(Filter):
    """A filter that compares documents with one another, such as one that finds duplicates."""

    reason: ClassVar[str] = "like an earlier one"
    """Why it drops documents, in a few words."""

    @final
    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        """Keep every document: none is judged alone."""
        return lambda document: document

    @abstractmethod
    def signer(self, run: RunContext) -> Callable[[Sequence[str]], numpy.ndarray[Any, Any]]:
        """Return the function that computes the signatures of documents: uint64, shape (documents, width).

        Each of several processes has its own, and a signature depends on its document alone.
        """

    @abstractmethod
    def earlier(self, signatures: numpy.ndarray[Any, Any], run: RunContext) -> numpy.ndarray[Any, Any]:
        """Return for each document an earlier one because of which it is dropped, or -1: int64, shape (documents,).

        Args:
            signatures: of all documents in their order, shape (documents, width), in a memory-mapped file that may be
                larger than memory.
            run: the context of the run.
        """
