"""A shard: the token ids of consecutive documents, in a file of its own that is there whole or not at all."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from toolkit.errors import OptionError
from toolkit.system.files import force

if TYPE_CHECKING:
    import numpy

Position = tuple[int, int]
"""A place in a split: a row, and a character of its text."""


@dataclass(frozen=True)
class Shard:
    """Token ids, without the tokens that end documents, and the texts that they come from."""

    ids: numpy.ndarray[Any, Any]
    """In the smallest type that holds the vocabulary, shape (tokens,)."""
    rows: numpy.ndarray[Any, Any]
    """The row in the split of each text's document, ascending, shape (texts,)."""
    lengths: numpy.ndarray[Any, Any]
    """Tokens of each text, shape (texts,)."""
    is_last: numpy.ndarray[Any, Any]
    """Whether a document ends with the text; false for all parts of a very long one but its last, shape (texts,)."""
    span: numpy.ndarray[Any, Any]
    """Where in the split it begins and ends, as two positions, shape (2, 2)."""
    characters: numpy.ndarray[Any, Any]
    """Characters of all texts, shape ()."""

    @classmethod
    def of(
        cls,
        ids: list[list[int]],
        *,
        rows: Sequence[int],
        is_last: Sequence[bool],
        characters: int,
        span: tuple[Position, Position],
        most: int,
    ) -> Self:
        """The shard of these ids, a list for each text.

        Raises:
            OptionError: an id is missing or above `most` (option "tokenizer").
        """
        import numpy

        lengths = numpy.fromiter(map(len, ids), "int64", len(ids))
        try:
            line = numpy.fromiter(itertools.chain.from_iterable(ids), "int64", int(lengths.sum()))
        except TypeError as error:
            raise OptionError(
                "the tokenizer has no id for a piece of the text, and no unk_token to stand for it",
                option="tokenizer",
            ) from error
        if line.size and not 0 <= line.min() <= line.max() <= most:
            stranger = line[(line < 0) | (line > most)][0]
            raise OptionError(
                f"the tokenizer returns the id {stranger:,}, but the highest of its vocabulary is {most:,}",
                option="tokenizer",
            )
        return cls(
            ids=line.astype(token_type(most)),
            rows=numpy.array(rows, "int64"),
            lengths=lengths,
            is_last=numpy.array(is_last, "bool"),
            span=numpy.array(span, "int64").reshape(2, 2),
            characters=numpy.array(characters),
        )

    @property
    def end(self) -> Position:
        """Where in the split it ends."""
        row, character = self.span[1].tolist()
        return row, character

    def by_text(self) -> Iterator[tuple[int, numpy.ndarray[Any, Any]]]:
        """The row of each text's document, and its ids."""
        import numpy

        yield from zip(self.rows.tolist(), numpy.split(self.ids, numpy.cumsum(self.lengths)[:-1]), strict=True)

    def save(self, file: Path) -> None:
        """Write it durably; the file appears when it is whole.

        Raises:
            OSError: the disk is full, say; then nothing is left.
        """
        import numpy

        staging = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            with staging.open("wb") as out:
                numpy.savez(out, **{part.name: getattr(self, part.name) for part in fields(self)})
                out.flush()
                force(out.fileno())
            staging.replace(file)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, file: Path, *, begin: Position) -> Self | None:
        """Read it, if it is there and whole and begins at this position."""
        import numpy

        try:
            with file.open("rb") as content, numpy.load(content) as parts:  # a zip file, with a checksum for each part
                shard = cls(**{part.name: parts[part.name] for part in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return shard if shard.span[0].tolist() == list(begin) else None


def token_type(highest_id: int) -> str:
    """The smaller of uint16 and uint32 that holds every token id up to this one, by numpy's name."""
    return "uint16" if highest_id < 2**16 else "uint32"
