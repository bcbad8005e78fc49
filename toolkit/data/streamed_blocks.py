"""The blocks of a stream as training reads them: in an order that is known before they are, and waited for.

The n-th block of a run is in the window of the blocks that were prepared around the same time, and where in that window
follows from the seed, the pass and the window alone. So a run that begins when the first window is there is the same,
bit for bit, as one that begins when all are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.api import Progress
from toolkit.api.context import nobody_watches
from toolkit.data.interleaving import shuffled_within
from toolkit.data.packed_dataset import DocumentStarts, IndexedBlock, PackedBlocks
from toolkit.data.preparing_process import PreparingProcess
from toolkit.data.stats import DataAccount, StreamAccount
from toolkit.data.stream_filters import accounts
from toolkit.data.stream_preparation import StreamToPrepare, account_file
from toolkit.data.stream_state import StreamState, state_of
from toolkit.data.stream_writer import STARTS_FILE
from toolkit.errors import ToolkitError, UnavailableError
from toolkit.formatting import duration

SECONDS_BETWEEN_LOOKS = 0.1


class GrowingBlocks(PackedBlocks):
    """The blocks of a stream, of which the first ones are there: read others, and they are zeros."""

    entry: Path
    tokens_per_block: int

    @property
    def documents(self) -> DocumentStarts | None:
        """The documents that are there by now."""
        import numpy

        starts = numpy.fromfile(self.entry / STARTS_FILE, dtype="int64")
        starts = starts[: len(starts) // 2 * 2].reshape(-1, 2)
        return DocumentStarts(starts[:, 0], starts[:, 1], self.tokens_per_block)

    @documents.setter
    def documents(self, value: DocumentStarts | None) -> None:
        """Ignore what the base class sets."""


class Arrival:
    """Knows how many blocks are prepared, and waits for more."""

    def __init__(self, entry: Path, process: PreparingProcess | None, *, patience: float) -> None:
        """`process` is the one that this process has started, if it has."""
        self.entry = entry
        self.process = process
        self.patience = patience
        self.placed: Callable[[ToolkitError], ToolkitError] = lambda error: error
        """Adds a place to what that process refuses."""
        self.there = state_of(entry).blocks

    def has_come(self, blocks: int) -> bool:
        """Whether so many are there."""
        if self.there < blocks:
            self.there = state_of(self.entry).blocks
        return self.there >= blocks

    def failure(self) -> ToolkitError | None:
        """What has ended the preparation too early, if anything has."""
        failure = self.process.failure() if self.process else None
        return failure and self.placed(failure)

    def wait_for(self, is_enough: Callable[[StreamState], bool], blocks: int, progress: Progress) -> StreamState:
        """Wait until the preparation has come so far; `blocks` is shown as the goal."""
        seen, since = state_of(self.entry), time.monotonic()
        while not is_enough(seen):
            if failure := self.failure():
                raise failure
            progress("waiting for data", seen.blocks, blocks, unit="blocks")
            time.sleep(SECONDS_BETWEEN_LOOKS)
            now = state_of(self.entry)
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > self.patience:
                raise UnavailableError(
                    f"the preparation of the data has made no progress for {duration(self.patience)}; "
                    f"training.ddp_timeout waits longer"
                )
        return seen


class StreamedBlocks:
    """The blocks of a run over a stream, a map-style dataset to be read in its order; item i is the i-th.

    It is as long as the run, so that the Trainer sees a single epoch; each pass is shuffled anew.
    """

    def __init__(self, blocks: GrowingBlocks, arrival: Arrival, *, length: int, window: int, seed: int) -> None:
        """`length` is that of the run, and `window` the number of blocks that are shuffled with one another."""
        self.blocks = blocks
        self.arrival = arrival
        self.length = length
        self.window = window
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def place(self, position: int) -> tuple[int, int]:
        """The number of the pass over the stream, and the index of the block in it."""
        if not 0 <= position < self.length:
            raise IndexError(position)
        number, index = divmod(position, len(self.blocks))
        return number, shuffled_within(index, len(self.blocks), self.window, f"{self.seed} {number}")

    def needed(self, positions: int) -> int:
        """Blocks of the stream that have to be there before so many positions can be read."""
        number, last = divmod(min(positions, self.length) - 1, len(self.blocks))
        return len(self.blocks) if number else min(len(self.blocks), (last // self.window + 1) * self.window)

    def wait(self, positions: int, progress: Progress = nobody_watches) -> None:
        """Wait until so many positions can be read.

        Raises:
            ToolkitError: the preparation has failed, or makes no progress.
        """
        if not self.arrival.has_come(needed := self.needed(positions)):
            self.arrival.wait_for(lambda state: state.blocks >= needed, needed, progress)

    def __getitem__(self, position: int) -> IndexedBlock:
        number, index = self.place(position)
        self.wait(position + 1)
        digest = hashlib.blake2b(f"{self.seed} {number} {index}".encode(), digest_size=7).digest()
        return {**self.blocks[index], "seed": int.from_bytes(digest), "index": position}

    def parts(self, positions: list[int]) -> list[tuple[str, PackedBlocks, list[int]]]:
        """Where these blocks lie: in words, in which blocks, and at which indices."""
        return [("stream", self.blocks, [self.place(position)[1] for position in positions])]


@dataclass(frozen=True)
class StreamedData:
    """The blocks of a run over a stream: for training, and held out; and the data account, as far as it is known."""

    train: StreamedBlocks
    validation: PackedBlocks | None
    begun: DataAccount
    work: StreamToPrepare
    from_cache: bool
    inspection: None = None

    @property
    def account(self) -> DataAccount:
        """The account of what is read by now."""
        blocks, files = len(self.train.blocks), self.work.stream.files
        state = state_of(self.work.entry)
        if (self.work.entry / account_file(blocks)).exists():  # another run may have gone on from there
            state = state_of(self.work.entry, account_file(blocks))
        return replace(
            self.begun,
            train=state.account(
                blocks=blocks,
                room=self.train.blocks.tokens_per_block,
                frame_tokens=self.begun.block_size - self.train.blocks.tokens_per_block,
            ),
            filters=accounts(self.work.filters, state.filters),
            stream=StreamAccount(
                files=len(files),
                files_begun=min(state.file + 1, len(files)),
                tokens=min(state.blocks, blocks) * self.begun.block_size,
                total_tokens=blocks * self.begun.block_size,
                left_out=state.left_out,
            ),
        )

    @property
    def epochs(self) -> float:
        """Passes over the data in what the Trainer takes for one epoch: the whole run."""
        return len(self.train) / len(self.train.blocks)

    def as_dict(self) -> dict[str, Any]:
        """The account, for data.json."""
        return self.account.as_dict() | {"inspections": {"": None}}

    def failure(self) -> ToolkitError | None:
        """What has ended the preparation too early, if anything has."""
        return self.train.arrival.failure()

    def close(self) -> None:
        """End the process that prepares the rest."""
        if self.train.arrival.process:
            self.train.arrival.process.close()
