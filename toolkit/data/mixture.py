"""A mixture: what a run takes of each source, and the blocks of the sources in that order.

Each source is prepared by itself, to blocks and an account of its own. The order of the run is never stored: which
source a block comes from follows from its position (`interleaving`), and which of that source's blocks it is from how
many of them came before: they are shuffled anew for each pass, by the seed, the source's name and the pass. So any step
is reached at once, and the order depends neither on the number of processes nor on what else is in the recipe.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

from toolkit.data.interleaving import Interleaving, shuffled
from toolkit.data.mixture_plan import MixturePlan, planned, stage_orders
from toolkit.data.packed_dataset import IndexedBlock, PackedBlocks
from toolkit.data.packing import PackedData
from toolkit.data.stats import DataAccount, SplitAccount
from toolkit.recipe.mix import Mix


class MixedBlocks:
    """The blocks of a run over several sources, a map-style dataset to be read in its order; item i is the i-th.

    It is as long as the run, so that the Trainer sees a single epoch; a source that is repeated is shuffled anew.
    """

    def __init__(self, sources: Mapping[str, PackedBlocks], order: Interleaving, seed: int) -> None:
        self.sources = sources
        self.order = order
        self.seed = seed
        self._names = list(sources)

    def __len__(self) -> int:
        return len(self.order)

    def place(self, position: int) -> tuple[str, int, int]:
        """The source of a block, the number of the pass over it, and the index of the block in it."""
        source, before = self.order.at(position)
        name = self._names[source]
        number, index = divmod(before, len(self.sources[name]))
        return name, number, shuffled(index, len(self.sources[name]), f"{self.seed} {name} {number}")

    def __getitem__(self, position: int) -> IndexedBlock:
        name, number, index = self.place(position)
        digest = hashlib.blake2b(f"{self.seed} {name} {number} {index}".encode(), digest_size=7).digest()
        return {**self.sources[name][index], "seed": int.from_bytes(digest), "index": position}

    def parts(self, positions: list[int]) -> list[tuple[str, PackedBlocks, list[int]]]:
        """Where these blocks lie: each source in words, its blocks, and the indices in it."""
        found: dict[str, list[int]] = {}
        for position in positions:
            name, _, index = self.place(position)
            found.setdefault(name, []).append(index)
        return [(f"source {name}", self.sources[name], indices) for name, indices in found.items()]


class HeldOutBlocks:
    """The held-out blocks of all sources, one source after the other."""

    def __init__(self, sources: Mapping[str, PackedBlocks]) -> None:
        self.sources = sources
        self.names = tuple(sources)
        self._starts = [0, *accumulate(map(len, sources.values()))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> IndexedBlock:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = self.number_of(index)
        return {**self.sources[self.names[number]][index - self._starts[number]], "index": index}

    def number_of(self, index: int) -> int:
        """The number of the source of a block, in `names`."""
        return bisect_right(self._starts, index) - 1


@dataclass(frozen=True)
class MixedData:
    """The blocks of a run over several sources: for training, and held out; and the data account."""

    train: MixedBlocks
    validation: HeldOutBlocks | None
    account: DataAccount
    from_cache: bool
    plan: MixturePlan
    inspections: Mapping[str, dict[str, Any] | None]
    """What a sample of each source's documents showed, by its name: see `PackedData`."""

    @property
    def epochs(self) -> float:
        """Passes over the data in what the Trainer takes for one epoch: the whole run."""
        return len(self.train) / self.account.train.blocks

    def as_dict(self) -> dict[str, Any]:
        """The account and the inspections, for data.json."""
        return self.account.as_dict() | {"inspections": dict(self.inspections)}


def mixed(sources: Mapping[str, PackedData], mix: Mix, *, blocks: int, seed: int) -> MixedData:
    """Mix prepared sources to a run of so many blocks."""
    account = joint_account({name: data.account for name, data in sources.items()})
    available = {name: len(data.train) for name, data in sources.items()}
    held_out = {name: data.validation for name, data in sources.items() if data.validation is not None}
    return MixedData(
        train=MixedBlocks(
            {name: data.train for name, data in sources.items()}, Interleaving(stage_orders(mix, blocks)), seed
        ),
        validation=HeldOutBlocks(held_out) if held_out else None,
        account=account,
        from_cache=all(data.from_cache for data in sources.values()),
        plan=planned(mix, blocks=blocks, block_size=account.block_size, available=available),
        inspections={name: data.inspection for name, data in sources.items()},
    )


def joint_account(accounts: Mapping[str, DataAccount]) -> DataAccount:
    """The account of a mixture: the sums over its sources, and each source's own in `sources`.

    What filters did, what held-out documents share with others, and how far a stream is read, is said of each source
    alone.
    """
    first = next(iter(accounts.values()))
    held_out = [account.validation for account in accounts.values() if account.validation]
    return replace(
        first,
        train=_sum([account.train for account in accounts.values()]),
        validation=_sum(held_out) if held_out else None,
        key=joint_key({name: account.key for name, account in accounts.items()}),
        filters=(),
        shared_text=None,
        shared_with={},
        stream=None,
        sources={
            name: {key: value for key, value in account.as_dict().items() if key not in ("sources", "excerpt")}
            for name, account in accounts.items()
        },
    )


def joint_key(keys: Mapping[str, str]) -> str:
    """The key of a mixture, from those of its sources."""
    form = next(iter(keys.values())).rpartition("-")[0]
    lines = "\n".join(f"{name} {key}" for name, key in keys.items())
    return f"{form}-{hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()}"


def _sum(accounts: list[SplitAccount]) -> SplitAccount:
    summed: dict[str, Any] = {}
    for field in fields(SplitAccount):
        values = [getattr(account, field.name) for account in accounts]
        if isinstance(values[0], dict):
            summed[field.name] = dict(sum((Counter(value) for value in values), Counter()))
        else:
            summed[field.name] = None if None in values else sum(values)
    return SplitAccount(**summed)
