"""Whether passages of the held-out documents stand in the training documents: the held-out loss is too low then.

A passage is 13 words in a row, as in Brown et al. 2020 (https://arxiv.org/abs/2005.14165), appendix C. The check is
bounded, so that it costs seconds: of more held-out or training text than that, evenly spaced documents are looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from toolkit.api import KnownNgrams, RunContext, WordNgrams, words
from toolkit.data.documents import Contents
from toolkit.data.stats import SharedText
from toolkit.data.text_pieces import texts_in_pieces
from toolkit.system.cache import text_kept

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset as Split

FORMAT = 2
"""Raise this when the same documents give another result."""
WORDS = 13
HELD_OUT_CHARACTERS = 10_000_000
"""Of held-out text that is looked at."""
TRAINING_CHARACTERS = 200_000_000
"""Of training text that is searched."""
CHARACTERS_PER_DOCUMENT = 100_000
"""Of a document that is looked at."""
EXAMPLES = 3
MOSTLY = 0.5
"""Share of the passages of a document from which it counts as copied."""


def shared_text(data: Mapping[str, Split], contents: Mapping[str, Contents], run: RunContext) -> SharedText | None:
    """What the held-out documents share with the training documents; None if none are held out.

    Cached by the documents' digests, in `contents`.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    return _found_in(data, contents, {"": (data, contents)}, run).get("")


def shared_with_others(
    sources: Mapping[str, tuple[Mapping[str, Split], Mapping[str, Contents]]], run: RunContext
) -> dict[str, dict[str, SharedText]]:
    """What the held-out documents of each source of a mixture share with the training documents of each other one.

    Args:
        sources: the splits of each, and what identifies them, by name.
        run: the context of the run.

    Returns:
        By the name of the source that holds out, and of the one that trains.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    shared: dict[str, dict[str, SharedText]] = {name: {} for name in sources}
    for name, (data, contents) in sources.items():
        others = {other: source for other, source in sources.items() if other != name}
        for other, found in _found_in(data, contents, others, run).items():
            shared[other][name] = found
    return shared


def _found_in(
    data: Mapping[str, Split],
    contents: Mapping[str, Contents],
    held_out: Mapping[str, tuple[Mapping[str, Split], Mapping[str, Contents]]],
    run: RunContext,
) -> dict[str, SharedText]:
    """What the held-out documents of several datasets share with the training documents of one, which is read once."""
    compared = {
        name: (splits, known)
        for name, (splits, known) in held_out.items()
        if "validation" in known and known["validation"].characters and contents["train"].characters  # or tokens
    }
    if not compared:
        return {}
    limits = [FORMAT, WORDS, HELD_OUT_CHARACTERS, TRAINING_CHARACTERS, CHARACTERS_PER_DOCUMENT, MOSTLY]
    digests = [contents["train"].digest, *(known["validation"].digest for _, known in compared.values())]
    key = hashlib.sha256(json.dumps([limits, digests]).encode()).hexdigest()[:32]

    def check() -> str:
        passages = {
            name: _Passages.of(splits["validation"], known["validation"]) for name, (splits, known) in compared.items()
        }
        found = _checked(data["train"], contents["train"], passages.values(), run)
        return json.dumps([asdict(one) for one in found])

    kept = json.loads(text_kept(run.cache / "shared-text" / key, check))
    return {name: SharedText.from_dict(one) for name, one in zip(compared, kept, strict=True)}


@dataclass(frozen=True)
class _Passages:
    """The passages of held-out documents."""

    split: Split
    """As far as it is looked at."""
    hashes: numpy.ndarray[Any, Any]
    """Of all passages, uint64, shape (passages,)."""
    owners: numpy.ndarray[Any, Any]
    """The row of each one's document, shape (passages,)."""

    @classmethod
    def of(cls, split: Split, contents: Contents) -> Self:
        import numpy

        looked_at, _ = _spaced(split, contents.characters, HELD_OUT_CHARACTERS)
        hashed = WordNgrams(WORDS)
        hashes, counts = [numpy.empty(0, dtype="uint64")], [numpy.empty(0, dtype="int64")]
        for texts in _beginnings(looked_at):
            here, count = hashed(texts)
            hashes.append(here)
            counts.append(count)
        every = numpy.concatenate(counts)
        return cls(looked_at, numpy.concatenate(hashes), numpy.repeat(numpy.arange(len(every)), every))

    def shared(self, common: numpy.ndarray[Any, Any], fraction: float) -> SharedText:
        """What these share with training documents in which `common` was found."""
        import numpy

        found = numpy.isin(self.hashes, common)
        passages = numpy.bincount(self.owners, minlength=len(self.split))
        in_training = numpy.bincount(self.owners[found], minlength=len(self.split))
        rows = numpy.flatnonzero(in_training)
        return SharedText(
            words=WORDS,
            checked=int((passages > 0).sum()),
            documents=len(rows),
            training_checked=fraction,
            examples=tuple(_first_passage(self.split, int(row), self.hashes[found]) for row in rows[:EXAMPLES]),
            share=float(found.mean()) if len(found) else 0.0,
            copied=int((in_training[rows] >= MOSTLY * passages[rows]).sum()),
        )


def _checked(train: Split, contents: Contents, held_out: Collection[_Passages], run: RunContext) -> list[SharedText]:
    import numpy

    hashed = WordNgrams(WORDS)
    searched, fraction = _spaced(train, contents.characters, TRAINING_CHARACTERS)
    known = [KnownNgrams(passages.hashes) for passages in held_out]
    common = [[passages.hashes[:0]] for passages in held_out]
    done = 0
    for texts in _beginnings(searched):
        here, _ = hashed(texts)
        for of_one, found in zip(known, common, strict=True):
            found.append(numpy.unique(here[of_one.found(here)]))
        done += len(texts)
        run.progress("comparing with held-out text", done, len(searched), unit="documents")
    return [
        passages.shared(numpy.concatenate(found), fraction) for passages, found in zip(held_out, common, strict=True)
    ]


def _spaced(split: Split, characters: int, most: int) -> tuple[Split, float]:
    """Evenly spaced documents of about so many characters together, and the fraction that they are of all."""
    step = max(1, -(-characters // most))
    return (split if step == 1 else split.select(range(0, len(split), step))), 1 / step


def _beginnings(split: Split) -> Iterator[list[str]]:
    for texts in texts_in_pieces(split):
        yield [text[:CHARACTERS_PER_DOCUMENT] for text in texts]


def _first_passage(split: Split, row: int, found: numpy.ndarray[Any, Any]) -> str:
    """The first words of a document that stand in the training documents."""
    import numpy

    text = split[row]["text"][:CHARACTERS_PER_DOCUMENT]
    at = int(numpy.isin(WordNgrams(WORDS)([text])[0], found).argmax())
    return " ".join(words(text)[at : at + WORDS])
