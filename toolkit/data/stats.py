"""Data account of a run: where every document and every token went."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SplitAccount:
    """Where the documents of one split went; tokens = tokens_in_blocks + tokens_dropped."""

    documents: int
    empty_documents: int
    """Documents without a single token; they are left out."""
    characters: int
    tokens: int
    """Tokens of the documents, end tokens included."""
    blocks: int
    tokens_in_blocks: int
    tokens_dropped: int
    """Tokens of the last, partial block; with best-fit packing it is padded, and nothing is dropped."""
    frame_tokens: int
    """Tokens that the objective puts around each block (BERT's CLS and SEP)."""
    ends_learned: int
    """Documents whose end token is a label that the model is trained to predict."""
    padding_tokens: int = 0
    """Positions in the blocks that neither documents nor the frame fill."""
    documents_cut: int = 0
    """Documents split off at an end token inside a text."""
    special_tokens: dict[str, int] = field(default_factory=dict)
    """Counts of special tokens that occur in the texts themselves, where the tokenizer parses them as special."""
    documents_in_several_blocks: int | None = None
    """Documents that a block's border cuts; None in the account of an earlier version."""

    @property
    def padding(self) -> float:
        """Fraction of the positions in the blocks that are padding."""
        places = self.tokens_in_blocks + self.frame_tokens + self.padding_tokens
        return self.padding_tokens / places if places else 0.0


@dataclass(frozen=True)
class FilterExample:
    """A document that a filter dropped or changed."""

    reason: str
    """Why it was dropped; "changed" if it was not."""
    text: str
    """The beginning of the document, or what surrounds the first change."""
    found: str = ""
    """What the filter found in it: "12 words"; the beginning of the document that it repeats; or the changed text."""


@dataclass(frozen=True)
class FilterAccount:
    """What a filter of the training documents made of those that reached it."""

    name: str
    documents: int
    """That reached it."""
    characters: int
    """In these."""
    dropped_documents: int
    dropped_characters: int
    changed_documents: int
    changed_characters: int
    """By which the changed documents became shorter; negative if they became longer."""
    reasons: dict[str, int]
    """Dropped documents by reason, the most frequent first."""
    examples: tuple[FilterExample, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FilterAccount:
        """The account that `dataclasses.asdict` made plain."""
        return cls(**data | {"examples": tuple(FilterExample(**example) for example in data["examples"])})


@dataclass(frozen=True)
class SharedText:
    """Held-out documents of which a passage stands in the training documents as well."""

    words: int
    """Words in a passage."""
    checked: int
    """Held-out documents that were looked at: those with so many words, as far as the check goes."""
    documents: int
    """Those among them that share a passage."""
    training_checked: float
    """Fraction of the training documents that was searched."""
    examples: tuple[str, ...] = ()
    """Shared passages."""
    share: float | None = None
    """Fraction of the passages of the held-out documents; None in the account of an earlier version."""
    copied: int | None = None
    """Documents that share half of their passages or more; likewise."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SharedText:
        """The account that `dataclasses.asdict` made plain."""
        return cls(**data | {"examples": tuple(data["examples"])})


@dataclass(frozen=True)
class StreamAccount:
    """How much of a stream is prepared."""

    files: int
    files_begun: int
    tokens: int
    """In blocks, and prepared."""
    total_tokens: int
    """In all blocks of the stream."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """The files that could not be read to their end, each with the reason."""

    @property
    def is_complete(self) -> bool:
        """Whether all of it is prepared."""
        return self.tokens >= self.total_tokens


@dataclass(frozen=True)
class DataAccount:
    """The data account of a run, made before the first step."""

    train: SplitAccount
    validation: SplitAccount | None
    block_size: int
    vocabulary_size: int
    token_type: str
    """The dtype of the stored token ids, by numpy's name."""
    excerpt: str
    """Decoded excerpt of a packed block, around a document boundary where there is one."""
    key: str
    """Name of the cache entry: packing format, and digest of documents, tokenizer and objective."""
    filters: tuple[FilterAccount, ...] = ()
    """What the dataset's filters made of the documents before they came here."""
    shared_text: SharedText | None = None
    """What held-out and training documents have in common; None without held-out documents."""
    shared_with: dict[str, SharedText] = field(default_factory=dict)
    """Of a source of a mixture: the same for the training documents of each other source, by its name."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of a mixture: the account of each source, by its name."""
    packing: str = "concatenate"
    """How documents became blocks: the objective's option."""
    stream: StreamAccount | None = None
    """Of a stream: how much of it is read, which is what the other counts are about, except the number of blocks."""

    @property
    def splits(self) -> dict[str, SplitAccount]:
        """The accounts of the existing splits, by name."""
        return {"train": self.train} | ({"validation": self.validation} if self.validation else {})

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as data.json has it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # a list for each tuple
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataAccount:
        """The account that `as_dict` wrote."""
        validation = data["validation"] and SplitAccount(**data["validation"])
        nested = {
            "train": SplitAccount(**data["train"]),
            "validation": validation,
            "filters": tuple(map(FilterAccount.from_dict, data.get("filters", ()))),
            "shared_text": (shared := data.get("shared_text")) and SharedText.from_dict(shared),
            "shared_with": {name: SharedText.from_dict(one) for name, one in data.get("shared_with", {}).items()},
            "stream": (stream := data.get("stream")) and StreamAccount(**stream),
        }
        return cls(**data | nested)
