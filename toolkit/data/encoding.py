"""Documents -> batches of texts -> token ids, streamed: neither many documents nor a huge one are in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toolkit.data import documents
from toolkit.data.shards import Position, Shard
from toolkit.data.token_documents import check_known, check_made_by, ids_of
from toolkit.errors import OptionError, ToolkitError

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_PIECE = 200_000
"""Longer documents are encoded in pieces, so that a huge one costs time and not memory."""
CHARACTERS_PER_BATCH = 4_000_000
PIECES_PER_BATCH = 50_000
CHARACTERS_AT_ONCE = 1_000_000
"""Characters that the tokenizer is given at once: what it returns takes a hundred bytes for each token."""
IDS_PER_BATCH = 1_000_000
"""Of documents that come as token ids; longer ones are taken in parts."""

Encoder = Callable[[list[str]], list[list[int]]]
"""Returns the token ids of each text, without added special tokens. It can be pickled."""


@dataclass
class Batch:
    """Consecutive documents of a split, or parts of very long ones: what becomes a shard."""

    begin: Position
    end: Position = (0, 0)
    texts: list[Any] = field(default_factory=list)
    """Each a string; or the list of token ids of a document that comes as these."""
    rows: list[int] = field(default_factory=list)
    """The row in the split of each text's document."""
    is_last: list[bool] = field(default_factory=list)
    """Whether the document ends with the text."""
    characters: int = 0
    """Of the texts, or token ids."""

    def add(self, text: str | list[int], row: int, start: int, *, is_last: bool) -> None:
        """Append a text that begins at this character or token of its document."""
        self.texts.append(text)
        self.rows.append(row)
        self.is_last.append(is_last)
        self.characters += len(text)
        self.end = (row + 1, 0) if is_last else (row, start + len(text))

    def shard(self, encode: Encoder, most: int) -> Shard:
        """Encode the texts; no id may be above `most`.

        Raises:
            OptionError: the tokenizer refuses a text, or returns an id that does not exist (option "tokenizer"); or a
                document comes as tokens, and with one that does not exist.
        """
        given = isinstance(self.texts[0], list)
        if given:
            check_known(self.texts, self.rows, most)
        ids = (
            self.texts
            if given
            else [own for part in _at_once(self.texts) for own in _encoded(part, encode, self.rows[0])]
        )
        return Shard.of(
            ids,
            rows=self.rows,
            is_last=self.is_last,
            characters=0 if given else self.characters,
            span=(self.begin, self.end),
            most=most,
        )


def batches(split: Dataset, *, begin: Position = (0, 0), most_characters: int | None = None) -> Iterator[Batch]:
    """Cut a split into batches from a position on; where they end depends on the texts alone.

    Raises:
        OptionError: a text is not UTF-8.
    """
    given = documents.holds_tokens(split)
    most = most_characters or (IDS_PER_BATCH if given else CHARACTERS_PER_BATCH)
    first_row = begin[0]
    rest = split.select(range(first_row, len(split))) if first_row else split
    rows: Iterable[Any] = given_ids(rest) if given else (text for some in documents.texts(rest) for text in some)
    yield from cut(rows, begin, most, _id_pieces if given else pieces)


def cut(rows: Iterable[Any], begin: Position, most: int, in_pieces: Callable[[Any], Iterable[Any]]) -> Iterator[Batch]:
    """Cut documents into batches of at least `most` characters or tokens; `rows` begin with the document at `begin`."""
    first_row, start = begin
    batch = Batch(begin, begin)
    for row, text in enumerate(rows, first_row):
        for part in in_pieces(text[start:]):
            batch.add(part, row, start, is_last=start + len(part) == len(text))
            start += len(part)
            if batch.characters >= most or len(batch.texts) >= PIECES_PER_BATCH:
                yield batch
                batch = Batch(batch.end, batch.end)
        start = 0
    if batch.texts:
        yield batch


def given_ids(split: Dataset) -> Iterator[numpy.ndarray[Any, Any]]:
    """The ids of each document that comes as these."""
    column = split.select_columns(documents.TOKENS_COLUMN).with_format("arrow")
    for batch in column.iter(documents.DOCUMENTS_PER_BATCH):
        yield from ids_of(batch[documents.TOKENS_COLUMN])


def check_given(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that documents which come as token ids are those of the tokenizer.

    Raises:
        OptionError: they are those of another.
    """
    if documents.holds_tokens(split):
        check_made_by(given_ids(split), tokenizer)


def texts_of(split: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of all documents of a split; of tokens, as the tokenizer decodes them.

    Raises:
        OptionError: they are tokens, and those of another tokenizer.
    """
    check_given(split, tokenizer)
    if documents.holds_tokens(split):
        return [str(tokenizer.decode(ids.tolist())) for ids in given_ids(split)]
    return [text or "" for text in split["text"]]


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The fastest way to the ids that the tokenizer gives when it is called."""
    from transformers import PreTrainedTokenizerFast

    own, plain = type(tokenizer), PreTrainedTokenizerFast
    methods = ("__call__", "_encode_plus")  # a subclass may do its own in either
    if not issubclass(own, plain) or any(getattr(own, name, None) is not getattr(plain, name, own) for name in methods):
        return TokenizerCalled(tokenizer)
    return BackendCalled(tokenizer.backend_tokenizer.to_str(), bool(getattr(tokenizer, "split_special_tokens", False)))


class TokenizerCalled:
    """Calls the tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: transformers warns about texts longer than the model, but these are packed into blocks.
        returned = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = returned["input_ids"]
        return ids


class BackendCalled:
    """Calls the library `tokenizers`, half as long as through transformers; imports neither that nor torch."""

    def __init__(self, content: str, split_special_tokens: bool) -> None:
        from tokenizers import Tokenizer

        self.content, self.split_special_tokens = content, split_special_tokens
        self.tokenizer: Any = Tokenizer.from_str(content)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = split_special_tokens

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def __reduce__(self) -> tuple[Any, ...]:
        return BackendCalled, (self.content, self.split_special_tokens)


def _at_once(texts: list[str]) -> Iterator[list[str]]:
    some: list[str] = []
    characters = 0
    for text in texts:
        some.append(text)
        characters += len(text)
        if characters >= CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _encoded(texts: list[str], encode: Encoder, row: int) -> list[list[int]]:
    try:
        return encode(texts)
    except ToolkitError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise OptionError(
            f"the tokenizer cannot encode a text in the batch of documents from number {row + 1:,} on: {error}",
            option="tokenizer",
        ) from error


def _id_pieces(ids: numpy.ndarray[Any, Any]) -> Iterator[list[int]]:
    for start in range(0, len(ids) or 1, IDS_PER_BATCH):
        yield ids[start : start + IDS_PER_BATCH].tolist()


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
