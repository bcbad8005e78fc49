"""A pass of filters over documents, of which each part is durable once it is finished: interrupted, it goes on there.

A part is cut by the texts alone. So the end is the same however often the pass was interrupted, and whatever the number
of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.filter_pass import FilterOutcome
from toolkit.data.text_pieces import texts_in_pieces
from toolkit.system.cache import bytes_kept, kept_bytes

if TYPE_CHECKING:
    from datasets import Dataset as Split

CHARACTERS_PER_PART = 8_000_000
"""What a kill costs: a second or two of the slowest filters of ours."""
DOCUMENTS_PER_PART = 100_000

Work = Callable[[Iterator[list[str]]], Iterator[FilterOutcome]]
"""Returns what becomes of each piece of the documents, in order."""


def in_parts(view: Split, files: Path, work: Work) -> Generator[FilterOutcome, None, None]:
    """What becomes of the documents, part by part, of which each is a file FILES-NUMBER when it is yielded.

    Raises:
        UnavailableError: a part cannot be written; those before it are.
    """
    begin = number = 0
    while begin < len(view) and (kept := kept_bytes(_file(files, number))):
        outcome = FilterOutcome.from_bytes(kept)
        yield outcome
        begin, number = begin + len(outcome.documents), number + 1
    if begin == len(view):
        return
    for outcome in _put_together(work(texts_in_pieces(view, begin))):
        bytes_kept(_file(files, number), outcome.to_bytes)
        yield outcome
        number += 1


def remove_parts(files: Path) -> None:
    """Remove the parts of a pass whose result is kept."""
    for file in files.parent.glob(f"{files.name}-[0-9]*"):
        file.unlink()


def _file(files: Path, number: int) -> Path:
    return files.with_name(f"{files.name}-{number:07}")


def _put_together(pieces: Iterator[FilterOutcome]) -> Iterator[FilterOutcome]:
    some: list[FilterOutcome] = []
    characters = documents = 0
    for piece in pieces:
        some.append(piece)
        characters += piece.characters
        documents += len(piece.documents)
        if characters >= CHARACTERS_PER_PART or documents >= DOCUMENTS_PER_PART:
            yield FilterOutcome.of(some)
            some, characters, documents = [], 0, 0
    if some:
        yield FilterOutcome.of(some)
