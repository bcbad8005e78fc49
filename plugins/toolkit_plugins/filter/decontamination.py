"""Documents in which passages of given test texts stand.

Brown et al. 2020, "Language Models are Few-Shot Learners" (https://arxiv.org/abs/2005.14165), appendix C: a document
and a test text overlap if they share 13 words in a row, without case and punctuation. There the passage and 200
characters around it are cut out; here the document is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from toolkit.api import Dropped, Filter, KnownNgrams, OptionError, RunContext, WordNgrams, words

if TYPE_CHECKING:
    import numpy


class Decontamination(Filter):
    """Drop documents that share 13 words in a row with test texts: given ones, or the dataset's own held-out texts."""

    local_paths: ClassVar[tuple[str, ...]] = ("files",)

    files: str | list[str] | None = None
    """Files of test texts, as those of the dataset text-files: "tests/*.jsonl". If not given, the test texts are the
    documents that the dataset holds out, by `eval_fraction` or as its validation split."""
    column: str = "text"
    """The column of the texts, in files that have columns."""
    words: int = Field(default=13, ge=5)
    """Words in a row."""

    def needs_held_out(self) -> bool:
        """If no other test texts are given."""
        return self.files is None

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        if self.files is None and run.held_out is None:
            return lambda document: document  # of a recipe that is being validated
        ngrams = WordNgrams(self.words)
        known = KnownNgrams(self._ngrams(ngrams, run))

        def judged(document: str) -> str | Dropped:
            found = known.found(ngrams([document])[0])
            if not found.any():
                return document
            at = int(found.argmax())
            return Dropped("overlaps a test text", " ".join(words(document)[at : at + self.words]))

        return judged

    def fingerprint(self, run: RunContext) -> str:
        import xxhash

        digest = xxhash.xxh3_128()
        for texts in self._texts(run):
            for text in texts:
                digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _ngrams(self, ngrams: WordNgrams, run: RunContext) -> numpy.ndarray[Any, Any]:
        import numpy

        hashes: list[numpy.ndarray[Any, Any]] = []
        texts = short = 0
        for some in self._texts(run):
            here, counts = ngrams(some)
            hashes.append(here)
            texts += len(counts)
            short += int((counts == 0).sum())
        if short == texts:
            raise OptionError(
                f"none of the {texts:,} test texts has {self.words} words, so that nothing can be found; set words",
                option="words",
            )
        if short:
            unseen = f"{short:,} of {texts:,}"
            run.log.info("decontamination: %s test texts have fewer than %s words: not found", unseen, self.words)
        return numpy.concatenate(hashes)

    def _texts(self, run: RunContext) -> Iterator[list[str]]:
        from toolkit_plugins.dataset.text_files import TextFiles

        if self.files is not None:
            source = TextFiles(files=self.files, column=self.column)
        elif run.held_out:
            source = TextFiles(files=str(run.held_out))
        else:
            return
        for batch in source.load(run)["train"].iter(1000):
            yield [text or "" for text in batch["text"]]
