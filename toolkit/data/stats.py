"""Data account of a run: where every document and every token went."""

from __future__ import annotations

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
    """Tokens of the last, partial block."""
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

    @property
    def padding(self) -> float:
        """Fraction of the positions in the blocks that are padding."""
        places = self.tokens_in_blocks + self.frame_tokens + self.padding_tokens
        return self.padding_tokens / places if places else 0.0


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

    @property
    def splits(self) -> dict[str, SplitAccount]:
        """The accounts of the existing splits, by name."""
        return {"train": self.train} | ({"validation": self.validation} if self.validation else {})

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for data.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataAccount:
        """The account that `as_dict` wrote."""
        validation = data["validation"] and SplitAccount(**data["validation"])
        return cls(**data | {"train": SplitAccount(**data["train"]), "validation": validation})
