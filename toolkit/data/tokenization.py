"""The documents of a split -> shards of token ids, made by several processes, each durable before it is used.

A shard is cut by the texts alone. So whoever tokenizes the same texts again, with more processes or fewer, finds the
shards that are there, and makes the same ones where there are none.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data import encoding
from toolkit.data.encoding import Batch, Encoder, batches
from toolkit.data.shards import Position, Shard
from toolkit.data.tokenizing_process import tokenizing_processes
from toolkit.system.threads import processors

if TYPE_CHECKING:
    from datasets import Dataset

MIN_SHARDS_PER_WORKER = 2
"""A process takes half a second to start, which does not pay for less."""
BATCHES_PER_WORKER = 2
"""Batches in memory for each process: one in work, and one that waits."""


def workers_for(characters: int, asked: int | None) -> int:
    """The number of processes that tokenize so much text: as many as were asked for, or one per processor."""
    return max(1, min(asked or processors(), characters // encoding.CHARACTERS_PER_BATCH // MIN_SHARDS_PER_WORKER))


def tokenized(
    split: Dataset, encode: Encoder, highest_id: int, files: Path, *, workers: int
) -> Generator[Shard, None, None]:
    """The shards of a split in order, of which each is a file FILES-NUMBER.npz when it is yielded.

    With one worker this process does the work, and the library `tokenizers` takes all processors.

    Raises:
        OptionError: the tokenizer refuses a text, or a text is not UTF-8.
        OSError: a shard cannot be written; those before it are.
        UnavailableError: a process was killed.
    """
    if workers == 1:
        for file, found in _files(split, files):
            if isinstance(found, Batch):
                shard = found.shard(encode, highest_id)
                shard.save(file)
                yield shard
            else:
                yield found
        return
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="tokenizing"))
        processes = stack.enter_context(tokenizing_processes(workers, encode, highest_id))  # which end first
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        yield from _in_order(_files(split, files), processes.make, threads, BATCHES_PER_WORKER * workers)


def _in_order(
    found: Iterator[tuple[Path, Batch | Shard]],
    make: Callable[[Batch, Path], None],
    threads: ThreadPoolExecutor,
    most: int,
) -> Iterator[Shard]:
    """The shards that are there and those that are made, in order; at most so many are in work or wait."""
    waiting: deque[Future[Shard]] = deque()

    def made(batch: Batch, file: Path) -> Shard:
        make(batch, file)
        shard = Shard.load(file, begin=batch.begin)
        assert shard, file
        return shard

    for file, part in found:
        if isinstance(part, Batch):
            waiting.append(threads.submit(made, part, file))
        else:
            there: Future[Shard] = Future()
            there.set_result(part)
            waiting.append(there)
        while waiting and (waiting[0].done() or len(waiting) >= most):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _files(split: Dataset, files: Path) -> Iterator[tuple[Path, Batch | Shard]]:
    """Each shard's file, with the shard that is in it, or with the batch of which it is to be made."""
    position: Position = (0, 0)
    number = 0
    reading: Iterator[Batch] | None = None
    while position[0] < len(split):
        file = files.with_name(f"{files.name}-{number:07}.npz")
        if there := Shard.load(file, begin=position):
            reading = None
            yield file, there
            position = there.end
        else:
            reading = reading or batches(split, begin=position)
            batch = next(reading)
            yield file, batch
            position = batch.end
        number += 1
