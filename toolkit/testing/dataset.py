"""The checks of a dataset plugin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from toolkit.api import Dataset
from toolkit.data.documents import TOKENS_COLUMN
from toolkit.testing.bench import Bench, disturb_random_numbers, require
from toolkit.testing.elsewhere import answer_elsewhere

if TYPE_CHECKING:
    from datasets import Dataset as Rows
    from datasets import DatasetDict

SPLITS = ("train", "validation")
DOCUMENTS_COMPARED_SINGLY = 5000
"""Documents per split that are compared one by one, to name the first difference; the rest are compared as one."""


def documents(plugin: Dataset, bench: Bench) -> str:
    """It loads documents, and only in the splits that are read."""
    from datasets import DatasetDict

    disturb_random_numbers(1)
    data = plugin.load(bench.run())
    require(isinstance(data, DatasetDict), f"load returns a {type(data).__name__} and not a DatasetDict")
    require("train" in data, f"there is no split train, only {', '.join(map(str, data)) or 'nothing'}")
    unread = [str(split) for split in data if split not in SPLITS]
    require(not unread, f"nobody reads the split {', '.join(unread)}; what is held out is called validation")
    for split, rows in data.items():
        if TOKENS_COLUMN in rows.column_names:
            numbers = str(rows.features[TOKENS_COLUMN]).count("int") == 1
            require(numbers, f"the column {TOKENS_COLUMN} of {split} holds {rows.features[TOKENS_COLUMN]} and no ids")
            continue
        require("text" in rows.column_names, f"the split {split} has no column text: {', '.join(rows.column_names)}")
        wrong = [text for batch in rows.iter(1000) for text in batch["text"] if not isinstance(text, str)]
        require(not wrong, f"the column text of {split} holds something that is not a string: {wrong[:1]!r}")
    require(len(data["train"]), "the split train has no documents")
    return f"{', '.join(f'{split} {len(rows):,}' for split, rows in data.items())} documents"


def facts(plugin: Dataset, bench: Bench) -> str:
    """What it says about its documents before they are loaded has the type that the contract gives it."""
    for fact in ("licenses", "languages"):
        value = getattr(plugin, fact)
        named = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        require(named, f"{fact} is {value!r} and not a tuple of strings")
    fingerprint = plugin.fingerprint(bench.run())
    require(isinstance(fingerprint, str | None), f"fingerprint returns {fingerprint!r} and neither a string nor None")
    require(fingerprint == plugin.fingerprint(bench.run()), "asked twice, it returns two fingerprints of one source")
    separated = plugin.holds_end_tokens()
    require(isinstance(separated, bool), f"holds_end_tokens returns {separated!r} and neither True nor False")
    return "end tokens separate documents inside a text" if separated else "a text is one document"


def peek(plugin: Dataset, bench: Bench) -> str:
    """The document that `peek` shows before a run is one that `load` returns."""
    shown = plugin.peek(bench.run())
    if shown is None:
        return "it shows nothing before a run"
    train = plugin.load(bench.run())["train"]
    first = islice(_texts(train), DOCUMENTS_COMPARED_SINGLY)
    seen = any(text.startswith(shown.document) for text in first)
    require(seen, f"peek shows a first document that load does not return: {shown.document[:60]!r}")
    return "its first look shows a document that it loads"


def loaded_again(plugin: Dataset, bench: Bench) -> str:
    """Another process loads the same documents in the same order, as a resume on another day has to."""
    disturb_random_numbers(2)
    here, there = contents(plugin, bench), answer_elsewhere(plugin, bench, contents)
    require(set(here) == set(there), f"it loads the splits {sorted(here)}, and in another process {sorted(there)}")
    for split, one in here.items():
        other = there[split]
        if one == other:
            continue
        pairs = zip(one["digests"], other["digests"], strict=False)
        at = next((number for number, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
        which = "" if at is None else f", from number {at} on"
        reordered = sorted(one["digests"]) == sorted(other["digests"]) and one["count"] == other["count"]
        what = "the same documents in another order" if reordered and at is not None else "other documents"
        require(
            False,
            f"loaded again in another process, {split} has {what}{which}; draw from random.Random(seed), sort files "
            f"and sets, and leave the clock out",
        )
    return "the same in the same order in another process, with another hash seed, clock and order of files"


def contents(plugin: Dataset, bench: Bench) -> dict[str, dict[str, Any]]:
    """For each split, the number of documents, the digests of the first ones, and a digest of all of them."""
    data = plugin.load(bench.run())
    return {str(split): _digests(data, str(split)) for split in data}


def _digests(data: DatasetDict, split: str) -> dict[str, Any]:
    whole = hashlib.blake2b()
    first: list[str] = []
    for text in _texts(data[split]):
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
        whole.update(digest.digest())
        if len(first) < DOCUMENTS_COMPARED_SINGLY:
            first.append(digest.hexdigest())
    return {"count": len(data[split]), "digests": first, "all": whole.hexdigest()}


def _texts(rows: Rows) -> Iterator[str]:
    """The documents; those that come as tokens as the numbers in words."""
    for batch in rows.iter(1000):
        if TOKENS_COLUMN in batch:
            yield from (" ".join(map(str, ids)) for ids in batch[TOKENS_COLUMN])
        else:
            yield from map(str, batch["text"])


CHECKS = (("documents", documents), ("facts", facts), ("peek", peek), ("loaded again", loaded_again))
