"""What a dataset has to do."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from toolkit.api import Dataset
from toolkit.testing.bench import Bench, disturb_random_numbers, require

if TYPE_CHECKING:
    from datasets import DatasetDict

COMPARED = 5000
"""Documents of each split that are looked at."""


def documents(plugin: Dataset, bench: Bench) -> str:
    """It loads documents, and the same ones again."""
    from datasets import DatasetDict

    disturb_random_numbers(1)
    first = plugin.load(bench.run())
    require(isinstance(first, DatasetDict), f"load returns a {type(first).__name__} and not a DatasetDict")
    require("train" in first, f"there is no split train, only {', '.join(map(str, first)) or 'nothing'}")
    for split, rows in first.items():
        require("text" in rows.column_names, f"the split {split} has no column text: {', '.join(rows.column_names)}")
        wrong = [text for text in _texts(first, str(split)) if not isinstance(text, str)]
        require(not wrong, f"the column text of {split} holds something that is no string: {wrong[:1]!r}")
    require(len(first["train"]), "the split train has no documents")
    disturb_random_numbers(2)
    # With a cache of its own: what the first run has kept there must not hide a second answer.
    second = plugin.load(bench.run())
    require(set(second) == set(first), f"it loads the splits {sorted(first)}, and then {sorted(second)}")
    for split in first:
        one, other = _texts(first, str(split)), _texts(second, str(split))
        same = one == other and len(first[split]) == len(second[split])
        require(same, f"loading twice gives other documents in {split}; draw from random.Random(seed), and sort files")
    peek = plugin.peek(bench.run())
    seen = peek is None or any(text.startswith(peek.document) for text in _texts(first, "train"))
    require(seen, f"peek shows a first document that load does not return: {peek.document[:60]!r}" if peek else "")
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in first.items())
    return f"{sizes} documents, the same when loaded again"


def _texts(data: DatasetDict, split: str) -> list[str]:
    return list(islice((text for batch in data[split].iter(1000) for text in batch["text"]), COMPARED))


CHECKS = (("documents", documents),)
