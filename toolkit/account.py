"""The account of a run's data: where every document and every token went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SplitAccount:
    """Where the documents of one split went. tokens = in blocks + dropped."""

    documents: int
    empty_documents: int
    """Documents without a token, which are left out."""
    characters: int
    tokens: int
    """Tokens of the documents, each one's end included."""
    blocks: int
    tokens_in_blocks: int
    tokens_dropped: int
    """Tokens of the last, partial block."""
    frame_tokens: int
    """Tokens that the objective puts around each block (BERT's CLS and SEP)."""
    ends_learned: int
    """Documents whose end is a label that the model is trained to predict."""
    padding_tokens: int = 0
    """Places in the written blocks that neither the documents nor the frame fill."""
    documents_cut: int = 0
    """Documents that begin at an end token within a text."""
    special_tokens: dict[str, int] = field(default_factory=dict)
    """How often special tokens stand in the texts themselves; the tokenizer reads them as such."""

    @property
    def padding(self) -> float:
        """Share of the places in the blocks that are padding."""
        places = self.tokens_in_blocks + self.frame_tokens + self.padding_tokens
        return self.padding_tokens / places if places else 0.0


@dataclass(frozen=True)
class DataAccount:
    """Where the data went, before the first step."""

    train: SplitAccount
    validation: SplitAccount | None
    block_size: int
    vocabulary_size: int
    token_type: str
    """The type of the stored token ids, by numpy's name."""
    excerpt: str
    """A decoded piece of one packed block, with its document borders."""
    key: str
    """Digest of documents, tokenizer and objective: what the cache entry is named."""

    @property
    def splits(self) -> dict[str, SplitAccount]:
        """The account of each split that there is, by its name."""
        return {"train": self.train} | ({"validation": self.validation} if self.validation else {})

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for data.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataAccount:
        """The account that `as_dict` wrote."""
        validation = data["validation"] and SplitAccount(**data["validation"])
        return cls(**data | {"train": SplitAccount(**data["train"]), "validation": validation})
