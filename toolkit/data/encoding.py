"""Documents -> token ids, streamed: neither many documents nor a huge one have to be in memory at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.data import documents
from toolkit.errors import OptionError, ToolkitError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_PIECE = 200_000
"""Longer documents are encoded in pieces, so that a huge one costs time and not memory."""
CHARACTERS_PER_BATCH = 2_000_000
PIECES_PER_BATCH = 10_000


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a very long one."""

    row: int
    """The document's row in its split."""
    text: str
    is_last: bool
    """Whether the document ends here."""


def encoded(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, *, characters_per_batch: int = CHARACTERS_PER_BATCH
) -> Iterator[list[tuple[Piece, list[int]]]]:
    """Batches of pieces with their token ids, without added special tokens.

    Raises:
        OptionError: the tokenizer refuses a text (option "tokenizer"), or a text is not UTF-8.
    """
    for batch in _batches(split, characters_per_batch):
        yield list(zip(batch, _ids([piece.text for piece in batch], tokenizer, batch[0].row), strict=True))


def _batches(split: Dataset, most_characters: int) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in _pieces_of(split):
        batch.append(piece)
        characters += len(piece.text)
        if characters >= most_characters or len(batch) >= PIECES_PER_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pieces_of(split: Dataset) -> Iterator[Piece]:
    rows = (text for batch in documents.texts(split) for text in batch)
    for row, text in enumerate(rows):
        if len(text) <= CHARACTERS_PER_PIECE:
            yield Piece(row, text, is_last=True)
        else:
            *parts, last = pieces(text)
            yield from (Piece(row, part, is_last=False) for part in parts)
            yield Piece(row, last, is_last=True)


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, row: int) -> list[list[int]]:
    try:
        # verbose=False: transformers warns about texts longer than the model, but these are packed into blocks.
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    except ToolkitError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise OptionError(
            f"the tokenizer cannot encode a text in the batch of documents from number {row + 1:,} on: {error}",
            option="tokenizer",
        ) from error
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def pieces(text: str, size: int = CHARACTERS_PER_PIECE) -> Iterable[str]:
    """Cut a long text before a space between two letters or digits, where pre-tokenizers split as well."""
    start = 0
    while len(text) - start > size:
        stop = start + size
        cut = next(
            (
                at
                for at in range(stop, start + size // 2, -1)
                if text[at] == " " and text[at - 1].isalnum() and text[at + 1 : at + 2].isalnum()
            ),
            stop,
        )
        yield text[start:cut]
        start = cut
    yield text[start:]
