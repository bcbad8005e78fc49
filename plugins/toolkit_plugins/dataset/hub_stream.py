"""Reads a dataset on the Hub file by file, over the network: nothing of it is written to the disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from toolkit.api import OptionError, RunContext, Stream, UnavailableError, UnreadableFileError, entry_made
from toolkit_plugins.dataset.hub_rows import end_after_readers, readable, texts
from toolkit_plugins.hub_errors import is_missing_file, is_temporary, quiet, unreachable

if TYPE_CHECKING:
    import datasets

RETRY_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300)
"""How long to wait for a lost connection, each time that it fails again before another document has come."""


class HubStream(Stream):
    """The files of a dataset on the Hub at a commit."""

    def __init__(
        self,
        path: str,
        column: str,
        builder: datasets.DatasetBuilder | None,
        splits: dict[str, str],
        identity: str,
        files: dict[str, list[str]],
    ) -> None:
        """`splits`: the dataset's own names of `train` and, if it has one, `validation`; `files` are those of each."""
        self.path = path
        self.column = column
        self.builder = builder
        self.splits = splits
        self.identity = identity
        self.files = tuple(files["train"])
        self.validation_files = tuple(files.get("validation", ()))

    def texts(self, file: str, start: int = 0) -> Iterator[str]:
        """Yield the documents of a file from this one on."""
        if self.builder is None:
            raise unreachable(self.path, "dataset")
        log, failures = logging.getLogger("toolkit"), 0
        while True:
            try:
                for text in self._read(file, start):
                    yield text
                    start, failures = start + 1, 0
                return
            except Exception as error:
                if not is_temporary(error):
                    raise _of_the_file(error) from error
                if failures == len(RETRY_SECONDS):
                    raise UnavailableError(
                        f"the connection to {self.path} was lost while {file} was read, and did not come back within "
                        f"{sum(RETRY_SECONDS) // 60} minutes; where there is a network, the same command goes on",
                        option="path",
                    ) from error
                log.info("lost the connection while reading %s; next try in %s s", file, RETRY_SECONDS[failures])
                time.sleep(RETRY_SECONDS[failures])
                failures += 1

    @functools.cached_property
    def _rows(self) -> dict[str, datasets.IterableDataset]:
        """The splits; of Parquet files, this reads the columns of the first one."""
        assert self.builder
        return opened(self.builder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    def _read(self, file: str, start: int) -> Iterator[str]:
        split = "train" if file in self.files else "validation"
        number = (self.files if split == "train" else self.validation_files).index(file)
        with readable(self.path), _tried_once():
            rows = self._rows[self.splits[split]]
            one = rows.shard(num_shards=rows.num_shards, index=number)
            for index, text in enumerate(texts(one, self.column, None)):
                if index >= start:
                    yield text


@contextlib.contextmanager
def _tried_once() -> Iterator[None]:
    """Have `datasets` report a lost connection at once; it would try twenty times, half a minute each, without a word.

    It reads these when it opens a file. That huggingface_hub tries for half a minute stays.
    """
    from datasets import config

    once = {"STREAMING_READ_MAX_RETRIES": 1} | {
        f"STREAMING_READ_{why}RETRY_INTERVAL": 0 for why in ("", "SERVER_UNAVAILABLE_", "RATE_LIMIT_")
    }
    before: dict[str, Any] = {name: getattr(config, name, None) for name in once}
    try:
        for name, value in once.items():
            setattr(config, name, value)
        yield
    finally:
        for name, earlier in before.items():
            setattr(config, name, earlier)


def opened(builder: datasets.DatasetBuilder) -> dict[str, datasets.IterableDataset]:
    """The splits of a dataset as streams."""
    import datasets

    end_after_readers()
    with quiet(datasets):
        splits: Any = builder.as_streaming_dataset()
    return {str(name): rows for name, rows in splits.items()}


def hub_stream(
    path: str,
    column: str,
    make_builder: Callable[[], datasets.DatasetBuilder],
    splits_of: Callable[[list[str]], dict[str, str]],
    *,
    key: tuple[object, ...],
    run: RunContext,
) -> HubStream:
    """Look up the files of a dataset; without a network, those that were found the last time, which cannot be read.

    At a commit that was looked up before, with this version of `datasets`, none of its files is opened for that.

    Args:
        path: the dataset's name on the Hub.
        column: that holds the text.
        make_builder: asks the Hub.
        splits_of: the names of `train` and `validation` among the dataset's.
        key: the options that decide.
        run: with the cache.
    """
    import datasets

    file = run.cache / "streams" / f"hub-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.json"
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(file.read_text(encoding="utf-8"))
    found_by = kept.pop("found_by", None)
    try:
        builder = make_builder()
    except UnavailableError:
        if not kept:
            raise
        return HubStream(path, column, None, **kept)
    if found_by == datasets.__version__ and kept["identity"] == _identity(path, column, builder, kept["splits"]):
        return HubStream(path, column, builder, **kept)
    rows = opened(builder)
    splits = splits_of(list(rows))
    found: dict[str, Any] = {
        "splits": splits,
        "identity": _identity(path, column, builder, splits),
        "files": {part: _files(builder, name, rows[name].num_shards) for part, name in splits.items()},
    }
    with entry_made(file) as staging:
        staging.write_text(json.dumps(found | {"found_by": datasets.__version__}), encoding="utf-8")
    return HubStream(path, column, builder, **found)


def _identity(path: str, column: str, builder: datasets.DatasetBuilder, splits: dict[str, str]) -> str:
    return repr((path, builder.config.name, builder.hash, splits, column))


def _files(builder: datasets.DatasetBuilder, split: str, count: int) -> list[str]:
    """The files of a split by their names in the repository; by numbers, where a file is not read as one."""
    known: Any = builder.config.data_files or {}
    urls = [str(url) for url in known.get(split, ())]
    if len(urls) != count:
        return [f"part {number + 1} of {split}" for number in range(count)]
    return [url.partition("@")[2].partition("/")[2] or url for url in urls]


def _of_the_file(error: Exception) -> Exception:
    """The error as what is wrong with this file, if no other would have it."""
    if is_missing_file(error):
        return UnreadableFileError("the Hub does not have it any more")
    if isinstance(error, OptionError) and error.option != "column":
        return UnreadableFileError(error.message)
    return error
