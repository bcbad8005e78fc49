"""What sources held when they were last read, by cheap fingerprints: a warm start reads no document."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.documents import Contents
from toolkit.data.stats import FilterAccount, SharedText
from toolkit.system.cache import refusals_explained
from toolkit.system.files import make_folder, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class LazyDocuments(Mapping[str, "Dataset"]):
    """The splits of a dataset, which is loaded when the first of them is asked for."""

    def __init__(self, load: Callable[[], DatasetDict]) -> None:
        self._load = load

    @functools.cached_property
    def _data(self) -> DatasetDict:
        return self._load()

    def __getitem__(self, split: str) -> Dataset:
        return self._data[split]

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, self._data))

    def __len__(self) -> int:
        return len(self._data)


@dataclass(frozen=True)
class SourceFacts:
    """What a start needs to know of a source's documents, beside their tokens."""

    contents: Mapping[str, Contents]
    """Of each split."""
    filters: tuple[FilterAccount, ...] = ()
    """What the filters made of the training documents."""
    shared_text: SharedText | None = None
    """What held-out and training documents have in common."""


def known_facts(file: Path) -> SourceFacts | None:
    """What `keep_facts` wrote; None if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = read_json(file)
        return SourceFacts(
            {split: Contents(**facts) for split, facts in kept["contents"].items()},
            tuple(map(FilterAccount.from_dict, kept["filters"])),
            (shared := kept["shared_text"]) and SharedText.from_dict(shared),
        )
    return None


def keep_facts(file: Path, facts: SourceFacts) -> None:
    """Note what a source holds, for the starts to come.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    with refusals_explained(file.parent):
        make_folder(file.parent)
        write_json(file, asdict(facts))
