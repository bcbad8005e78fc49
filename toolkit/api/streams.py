"""Corpora that are larger than the disk: read file by file, tokenized, and never held as a whole."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from toolkit.api.context import RunContext
from toolkit.api.plugins import Dataset
from toolkit.api.settings import TokenCount

if TYPE_CHECKING:
    from datasets import DatasetDict

BEGINNING_CHARACTERS = 30_000_000
"""Of the beginning of a stream, which stands for it where all documents would be needed at once."""
STREAM_OPTIONS = ("shuffle_tokens", "eval_samples", "unreadable_files")


class UnreadableFileError(Exception):
    """A file of a stream cannot be read, now or later; the message says what is wrong with it."""


class Stream(ABC):
    """The files of a corpus at one state of it. It is pickled, since another process reads it."""

    identity: str
    """Changes whenever the documents may: a commit, say, with all options that choose or change them."""
    files: tuple[str, ...]
    """The files of the training documents, by name, in the source's order."""
    validation_files: tuple[str, ...] = ()
    """Those of the source's own held-out documents."""

    @abstractmethod
    def texts(self, file: str, start: int = 0) -> Iterator[str]:
        """Yield the documents of a file from this one on, counted from 0; the same ones in the same order each time.

        A lost connection is waited for, and the file read on from where it was.

        Raises:
            UnreadableFileError: the file is missing, damaged, or of another form.
            OptionError, UnavailableError: no file can be read.
        """


class StreamingDataset(Dataset):
    """A dataset that can also be read as a stream of so many tokens."""

    max_tokens: TokenCount | None = Field(default=None, ge=1)
    """Read so many training tokens of it, such as 2B, file by file: each is tokenized and thrown away, and training
    begins as soon as its first steps are prepared."""
    shuffle_tokens: TokenCount = Field(default=16_000_000, ge=1)
    """Of a stream: shuffle the blocks within so many tokens; training begins once these are prepared. The files are
    read in a shuffled order as well."""
    eval_samples: int | None = Field(default=None, ge=1)
    """Of a stream: hold out so many documents, the first of its own validation split, or of those to train on if it has
    none. If not given, the whole validation split."""
    unreadable_files: Literal["stop", "skip"] = "stop"
    """Of a stream: whether to stop at a file that cannot be read, or go on without the rest of it, which is told and
    counted."""

    @property
    def is_stream(self) -> bool:
        """Whether it is read as a stream."""
        return self.max_tokens is not None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if not self.is_stream:
            defaults = {option: type(self).model_fields[option].default for option in STREAM_OPTIONS}
            if changed := [option for option, default in defaults.items() if getattr(self, option) != default]:
                raise ValueError(f"{', '.join(changed)}: only of a stream, which max_tokens makes of the dataset")
            return self
        if self.max_samples is not None:
            raise ValueError("max_tokens limits a stream; remove max_samples")
        if self.eval_fraction is not None:
            raise ValueError(
                "a stream is not known as a whole, so no fraction of it can be held out; set eval_samples, the number "
                "of documents to hold out, in place of eval_fraction"
            )
        if self.cut_at_end_token:
            raise ValueError("the texts of a stream are not cut at end tokens; remove cut_at_end_token")
        return self

    @abstractmethod
    def stream(self, run: RunContext) -> Stream:
        """Look up the files, in seconds, without reading them.

        Raises:
            OptionError, UnavailableError: there are none, or they cannot be reached.
        """

    def training_files(self, stream: Stream) -> list[str]:
        """The files of the training documents, in the order in which they are read."""
        files = list(stream.files)
        random.Random(self.seed).shuffle(files)
        return files


def held_out(dataset: StreamingDataset, stream: Stream) -> Iterator[tuple[int, int, str]]:
    """The documents held out, each with the numbers of its file and of its row; the first files are read for them."""
    files = stream.validation_files
    if not files and dataset.eval_samples:
        files = tuple(dataset.training_files(stream))
    documents = (
        (number, row, text) for number, file in enumerate(files) for row, text in enumerate(stream.texts(file))
    )
    return itertools.islice(documents, dataset.eval_samples)


def beginning(dataset: StreamingDataset, run: RunContext) -> DatasetDict:
    """The first documents of a stream, and those held out: what `load` returns of it."""
    from datasets import Dataset as Split
    from datasets import DatasetDict

    stream = dataset.stream(run)
    file = row = 0
    texts: list[str] = []
    for number, at, text in held_out(dataset, stream):
        texts.append(text)
        if not stream.validation_files:
            file, row = number, at + 1
    splits = {"validation": texts} if texts else {}
    first, characters = list[str](), 0
    for name in dataset.training_files(stream)[file:]:
        for text in stream.texts(name, row):
            first.append(text)
            characters += len(text)
            if characters >= BEGINNING_CHARACTERS:
                break
            run.progress("reading the beginning", characters, BEGINNING_CHARACTERS, unit="characters")
        if characters >= BEGINNING_CHARACTERS:
            break
        row = 0
    return DatasetDict({split: Split.from_dict({"text": own}) for split, own in {"train": first, **splits}.items()})
