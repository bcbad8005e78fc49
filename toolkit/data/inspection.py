"""What is in a dataset, before anything is trained on it: a sample of its documents, counted, and some to look at.

A sample, so that it takes seconds however large the data is; it is everything, where the data is small. What the
numbers say about the recipe is in `suspicions`.
"""

from __future__ import annotations

import contextlib
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from toolkit.api import Objective, Progress, UnavailableError, highest_id, language_identifier
from toolkit.api.context import nobody_watches
from toolkit.api.languages import CERTAIN
from toolkit.data.block_writer import special_ids
from toolkit.data.characters import CharacterCounts
from toolkit.data.encoding import batches, encoder_of, texts_of
from toolkit.data.sample_blocks import BlockPart, sample_blocks

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MOST_DOCUMENTS = 10_000
MOST_CHARACTERS = 20_000_000
"""Of all documents looked at; 15 seconds of tokenizing on one core."""
MOST_CHARACTERS_OF_ONE = 1_000_000
"""Of a longer document the beginning is looked at, and its tokens are estimated from that."""
DOCUMENTS_AT_ONCE = 200
SHOWN_DOCUMENTS = 3
SHOWN_CHARACTERS = 300
SHOWN_BLOCKS = 2
MOST_WITH_LANGUAGE = 1000
"""Documents whose language is told, in half a second; a share of 5 % is then off by 1.4 % in 95 of 100 samples."""
UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class DocumentShown:
    """A document, or its beginning."""

    row: int
    """Its row in the training split."""
    tokens: int
    text: str


@dataclass(frozen=True)
class OddCharacters:
    """Characters of one kind that do not belong into text."""

    kind: str
    times: int
    documents: int
    """That hold any."""
    example: str


@dataclass(frozen=True)
class Inspection:
    """What a sample of the training documents shows. Counts are of the sample, except `documents` and `columns`."""

    documents: dict[str, int]
    """All documents, by split."""
    columns: dict[str, str]
    """Columns of the training split and their types."""
    looked_at: int
    """Documents in the sample."""
    empty: int
    characters: int
    bytes: int
    """In UTF-8."""
    tokens: int
    """Document ends included."""
    unknown_tokens: int
    special_tokens: dict[str, int]
    """Special tokens that are written in the texts and parsed as such."""
    vocabulary_size: int
    vocabulary_used: int
    """Tokens of the vocabulary that occur."""
    block_size: int
    packing: str
    tokens_by_length: dict[int, int]
    """Documents of at least so many tokens, and fewer than twice as many; keys are powers of two."""
    median_tokens: int
    longer_than_block: int
    """Documents."""
    duplicates: int
    """Documents that say the same as one before."""
    most_repeated: list[tuple[int, str]]
    """How often, and the beginning of the text."""
    held_out_in_training: int
    """Documents held out whose text is also in the training split, of those in both samples."""
    scripts: dict[str, float]
    """Shares of the letters by script, the most frequent first."""
    languages: dict[str, float] | None
    """Shares of the documents by language, ISO 639-1 or `UNCERTAIN`, the most frequent first; None where nothing is
    installed that tells them."""
    odd_characters: list[OddCharacters]
    shortest: list[DocumentShown]
    longest: list[DocumentShown]
    samples: list[DocumentShown]
    blocks: list[list[BlockPart]]
    """Some blocks as the documents shown here would be packed."""

    @property
    def is_everything(self) -> bool:
        """Whether the sample holds every training document."""
        return self.looked_at == self.documents["train"]

    @property
    def tokens_per_byte(self) -> float:
        """Without document ends, a good tokenizer has about 0.25 in English."""
        return self.tokens / self.bytes if self.bytes else 0.0

    @property
    def unknown_share(self) -> float:
        """Of the tokens."""
        return self.unknown_tokens / self.tokens if self.tokens else 0.0

    @property
    def special_share(self) -> float:
        """Of the tokens: special ones that are written in the texts."""
        return sum(self.special_tokens.values()) / self.tokens if self.tokens else 0.0

    @property
    def estimated_tokens(self) -> int:
        """Of all training documents."""
        return round(self.tokens * self.documents["train"] / self.looked_at) if self.looked_at else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        derived = ("is_everything", "tokens_per_byte", "unknown_share", "special_share", "estimated_tokens")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def inspect(
    data: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    *,
    documents: int = MOST_DOCUMENTS,
    characters: int = MOST_CHARACTERS,
    progress: Progress = nobody_watches,
) -> Inspection:
    """Look at so many documents and characters at most, drawn at random and the same each time.

    Raises:
        OptionError: the tokenizer refuses a text (option "tokenizer").
    """
    look = _Look(tokenizer, objective)
    for rows, texts in _drawn(data["train"], tokenizer, documents, characters):
        look.add(rows, texts)
        progress("inspecting", look.looked_at, min(documents, len(data["train"])), unit="documents")
    held_out = 0
    if "validation" in data:
        for _, texts in _drawn(data["validation"], tokenizer, documents, characters):
            held_out += sum(_digest(text) in look.digests for text in texts if text.strip())
    return look.result(data, held_out)


def sampled_rows(total: int, most: int) -> list[int]:
    """Rows in random order, the same each time: all of them, or so many."""
    return random.Random(0).sample(range(total), min(total, most))


def _drawn(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, documents: int, characters: int
) -> Iterator[tuple[list[int], list[str]]]:
    rows, read = sampled_rows(len(split), documents), 0
    for at in range(0, len(rows), DOCUMENTS_AT_ONCE):
        chosen = sorted(rows[at : at + DOCUMENTS_AT_ONCE])
        texts = texts_of(split.select(chosen), tokenizer)
        yield chosen, texts
        read += sum(min(len(text), MOST_CHARACTERS_OF_ONE) for text in texts)
        if read >= characters:
            return


def _digest(text: str) -> bytes:
    import xxhash

    return xxhash.xxh3_128_digest(text.encode())


@dataclass
class _Look:
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    looked_at: int = 0
    empty: int = 0
    characters: int = 0
    size_in_bytes: int = 0
    ids: Counter[int] = field(default_factory=Counter)
    sizes: array[int] = field(default_factory=lambda: array("q"))
    digests: Counter[bytes] = field(default_factory=Counter)
    beginnings: dict[bytes, str] = field(default_factory=dict)
    """Of the texts that occur more than once."""
    counts: CharacterCounts = field(default_factory=CharacterCounts)
    languages: Counter[str] = field(default_factory=Counter)
    """Documents by language."""
    shown: list[DocumentShown] = field(default_factory=list)
    shortest: list[DocumentShown] = field(default_factory=list)
    longest: list[DocumentShown] = field(default_factory=list)
    for_blocks: list[tuple[int, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.encode = encoder_of(self.tokenizer)
        self.identify: Callable[[str], tuple[str, float]] | None = None
        with contextlib.suppress(UnavailableError):
            self.identify = language_identifier()

    def add(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        from datasets import Dataset

        beginnings = [text[:MOST_CHARACTERS_OF_ONE] for text in texts]
        ids: list[list[int]] = [[] for _ in texts]
        for batch in batches(Dataset.from_dict({"text": beginnings})):
            shard = batch.shard(self.encode, highest_id(self.tokenizer))
            for row, some in shard.by_text():
                ids[row] += some.tolist()
        found = []
        for row, text, beginning, tokens in zip(rows, texts, beginnings, ids, strict=True):
            self.looked_at += 1
            if not tokens:
                self.empty += 1
                continue
            found.append(self._count(row, text, beginning, tokens))
        self.shown = (self.shown + found)[:SHOWN_DOCUMENTS]
        self.shortest = sorted([*self.shortest, *found], key=lambda one: one.tokens)[:SHOWN_DOCUMENTS]
        self.longest = sorted([*self.longest, *found], key=lambda one: -one.tokens)[:SHOWN_DOCUMENTS]

    def _count(self, row: int, text: str, beginning: str, tokens: list[int]) -> DocumentShown:
        end = self.objective.document_end(self.tokenizer)
        size = round(len(tokens) * len(text) / len(beginning)) + len(end)
        self.characters += len(text)
        self.size_in_bytes += len(text.encode())
        self.ids.update(tokens)
        self.sizes.append(size)
        self.counts.add(beginning)
        if self.identify and self.languages.total() < MOST_WITH_LANGUAGE:
            language, probability = self.identify(beginning)
            self.languages[language if probability >= CERTAIN else UNCERTAIN] += 1
        digest = _digest(text)
        self.digests[digest] += 1
        if self.digests[digest] > 1:
            self.beginnings.setdefault(digest, text[:SHOWN_CHARACTERS])
        if sum(len(ids) for _, ids in self.for_blocks) < (SHOWN_BLOCKS + 1) * self.objective.block_size:
            self.for_blocks.append((row, [*tokens, *end]))
        return DocumentShown(row, size, text[:SHOWN_CHARACTERS])

    def result(self, data: Mapping[str, Dataset], held_out_in_training: int) -> Inspection:
        sizes = sorted(self.sizes)
        letters = self.counts.letters.total() or 1
        unknown, parsed = self.tokenizer.unk_token_id, special_ids(self.tokenizer)
        special = {str(self.tokenizer.convert_ids_to_tokens(number)): self.ids[number] for number in parsed}
        repeated = (
            (times, self.beginnings[digest]) for digest, times in self.digests.most_common(SHOWN_DOCUMENTS) if times > 1
        )
        return Inspection(
            documents={str(name): len(split) for name, split in data.items()},
            columns={name: str(getattr(kind, "dtype", kind)) for name, kind in data["train"].features.items()},
            looked_at=self.looked_at,
            empty=self.empty,
            characters=self.characters,
            bytes=self.size_in_bytes,
            tokens=sum(sizes),
            unknown_tokens=self.ids[unknown] if unknown not in {None, *parsed} else 0,
            special_tokens={token: times for token, times in special.items() if times},
            vocabulary_size=len(self.tokenizer),
            vocabulary_used=len(self.ids),
            block_size=self.objective.block_size,
            packing=self.objective.packing,
            tokens_by_length=dict(sorted(Counter(1 << (size.bit_length() - 1) for size in sizes).items())),
            median_tokens=sizes[len(sizes) // 2] if sizes else 0,
            longer_than_block=sum(size > self.objective.block_size for size in sizes),
            duplicates=self.digests.total() - len(self.digests),
            most_repeated=list(repeated),
            held_out_in_training=held_out_in_training,
            scripts={script: times / letters for script, times in self.counts.letters.most_common()},
            languages={language: times / self.languages.total() for language, times in self.languages.most_common()}
            if self.identify
            else None,
            odd_characters=[
                OddCharacters(kind, times, self.counts.texts[kind], self.counts.examples[kind])
                for kind, times in self.counts.odd.most_common()
            ],
            shortest=self.shortest,
            longest=self.longest,
            samples=self.shown,
            blocks=sample_blocks(self.for_blocks, self.tokenizer, self.objective)[:SHOWN_BLOCKS],
        )
