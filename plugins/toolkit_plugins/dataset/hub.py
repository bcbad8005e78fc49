"""Any dataset on the Hugging Face Hub with a column of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import field_validator, model_validator

from toolkit.api import OptionError, Peek, RunContext, StreamingDataset, UnavailableError, beginning
from toolkit_plugins.dataset.arrow import dataset_of
from toolkit_plugins.dataset.hub_rows import end_after_readers, first_line, readable, text_column, texts, unreadable
from toolkit_plugins.dataset.hub_stream import HubStream, hub_stream
from toolkit_plugins.hub_downloads import shown
from toolkit_plugins.hub_errors import choice, explained, gated, quiet, unreachable, unwritable
from toolkit_plugins.hub_repositories import Repo, look_up

if TYPE_CHECKING:
    import datasets

PEEKED_ROWS = 100
"""At most this many rows of a split are read to find one with text."""


class Hub(StreamingDataset):
    """A dataset on the Hugging Face Hub: each row is a document, with its text in one column."""

    path: str
    """The dataset's name on the Hub, OWNER/NAME."""
    name: str | None = None
    """The configuration (called subset on the Hub), if the dataset has several."""
    revision: str | None = None
    """Branch, tag or commit; only a commit ensures that the data stays the same. If not given, the newest."""
    split: str = "train"
    """The split to train on; a slice such as `train[:10%]` works too, except with `streaming`."""
    validation_split: str | None = None
    """The split to evaluate on; if not given, `validation`, if the dataset has it."""
    column: str = "text"
    """The column that holds the text."""
    streaming: bool = False
    """Read over the network, without a copy on this disk: `max_tokens` of it, or only the first `max_samples` rows of
    each split."""

    @field_validator("path")
    @classmethod
    def _owner_and_name(cls, path: str) -> str:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            raise ValueError(
                f"{path!r} is not the name of a dataset on the Hub, which is OWNER/NAME, such as Salesforce/wikitext; "
                f"files of your own are read by the dataset text-files"
            )
        return path

    @model_validator(mode="after")
    def _a_stream_has_an_end(self) -> Self:
        if self.streaming and self.max_samples is None and self.max_tokens is None:
            raise ValueError(
                "say how much to stream: max_tokens of a corpus (2B, say), or only its first max_samples rows"
            )
        if self.max_tokens is not None and not self.streaming:
            raise ValueError("max_tokens is read as a stream, so add streaming: true")
        return self

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """Download what is not in the cache yet, and keep only the text."""
        import datasets

        if self.is_stream:
            return beginning(self, run)
        with quiet(datasets), explained(self.path, kind="dataset", revision=self.revision):
            builder = hub_builder(self.path, name=self.name, revision=self.revision, run=run)
            if self.streaming:
                # A lost connection is checked for first: to the libraries it looks like an unreadable file.
                with readable(self.path), explained(self.path, kind="dataset", revision=self.revision):
                    return datasets.DatasetDict(self._first_rows(builder, run))
            available = prepare(builder, self.path, run)
            return datasets.DatasetDict(
                (part, text_column(_split(builder, split, available, option), self.column))
                for part, split, option in self._splits(available)
            )

    def stream(self, run: RunContext) -> HubStream:
        """Look up the files at the newest commit, or at that of `revision`."""
        import datasets

        def split_names(available: list[str]) -> dict[str, str]:
            for _, split, option in self._splits(available):
                if split not in available:
                    raise _no_split(split, available, option)
            return {part: split for part, split, _ in self._splits(available)}

        with quiet(datasets), readable(self.path), explained(self.path, kind="dataset", revision=self.revision):
            found = hub_stream(
                self.path,
                self.column,
                lambda: hub_builder(self.path, name=self.name, revision=self.revision, run=run),
                split_names,
                key=(self.path, self.name, self.revision, self.split, self.validation_split, self.column),
                run=run,
            )
        if found.builder and self.revision != found.builder.hash:
            run.log.info(
                "%s is read as it is now; add revision: %s, or the run cannot be resumed once it changes on the Hub",
                self.path,
                found.builder.hash,
            )
        return found

    def fingerprint(self, run: RunContext) -> str | None:
        """The commit; None where the Hub cannot be reached."""
        return look_up(self.path, kind="dataset", revision=self.revision).commit

    def peek(self, run: RunContext) -> Peek:
        """Read the first rows over the network, or from the cache if the dataset is there already."""
        import datasets

        with quiet(datasets), readable(self.path), explained(self.path, kind="dataset", revision=self.revision):
            builder = hub_builder(self.path, name=self.name, revision=self.revision, run=run)
            available = split_rows(builder)
            parts = []
            for part, split, option in self._splits(available):
                name = re.split(r"[\[+]", split)[0]  # the rows of `train[:10%]` are those of train
                if name not in available:
                    raise _no_split(name, available, option)
                first = next(texts(available[name], self.column, PEEKED_ROWS), "")
                parts.append((f"{split} for {part}", first))
        return Peek(f"{self.path}, {', '.join(words for words, _ in parts)}", parts[0][1])

    def _splits(self, available: Iterable[str]) -> list[tuple[str, str, str]]:
        """Which splits become `train` and `validation`, each with the option that names it."""
        splits = [("train", self.split, "split")]
        if self.validation_split is not None:
            splits.append(("validation", self.validation_split, "validation_split"))
        elif "validation" in available and not self.split.startswith("validation"):
            splits.append(("validation", "validation", "validation_split"))
        return splits

    def _first_rows(self, builder: datasets.DatasetBuilder, run: RunContext) -> Iterator[tuple[str, datasets.Dataset]]:
        source = ("hub", 1, self.path, builder.config.name, builder.hash)
        # The names of the splits are cached like rows: with a warm cache, nothing is asked of the Hub's files.
        names = dataset_of(_stream_names(builder), key=(*source, "names of splits"), cache=run.cache)["text"][:]
        for part, split, option in self._splits(names):
            if split not in names:
                raise _no_split(split, names, option)
            rows = self._stream(builder, split)
            yield part, dataset_of(rows, key=(*source, split, self.column, self.max_samples), cache=run.cache)

    def _stream(self, builder: datasets.DatasetBuilder, split: str) -> Iterator[str]:
        end_after_readers()
        yield from texts(builder.as_streaming_dataset()[split], self.column, self.max_samples)


def hub_builder(path: str, *, name: str | None, revision: str | None, run: RunContext) -> datasets.DatasetBuilder:
    """Return the builder of a dataset on the Hub, or in the cache if the Hub cannot be reached.

    Raises:
        OptionError: there is no such dataset, configuration or revision, or none that can be read.
        UnavailableError: it is gated, or it is neither reachable nor in the cache.
    """
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    if Path(path).is_dir():
        raise OptionError(
            f"a folder {path} lies in the current directory, and the library datasets would read it in place of the "
            f"Hub's dataset; run from another directory",
            option="path",
        )
    repo = look_up(path, kind="dataset", revision=revision)
    if repo.commit is None:
        run.log.info("The Hub cannot be reached; looking for %s in the cache.", path)
    try:
        with _offline(repo.commit is None):
            builder = load_dataset_builder(repo.path, name, revision=repo.commit or revision)
    except ConnectionError as error:
        raise unreachable(path, "dataset", error) from error
    except RuntimeError as error:
        raise _script(path, error) from error
    except DatasetNotFoundError as error:
        raise gated(path, "dataset") from error  # look_up has just seen it, so it exists and its files are refused
    except (ValueError, DatasetsError, FileNotFoundError) as error:
        raise unwritable(error, path, "dataset") or _bad_configuration(repo, name, error) from error
    if repo.commit is None:
        _check_cached_revision(path, revision, builder.hash)
    return builder


def prepare(builder: datasets.DatasetBuilder, path: str, run: RunContext) -> list[str]:
    """Download the dataset into the cache of `datasets`, unless it is there; return the names of non-empty splits."""
    # A lost connection may be wrapped in another error too, so it is checked for first.
    written = Path(f"{builder.cache_dir}.incomplete")
    with (
        readable(path),
        explained(path, kind="dataset", revision=builder.hash),
        shown(
            path,
            run.progress,
            kind="dataset",
            total=lambda: builder.info.download_size,
            then=("reading", written),
        ),
    ):
        builder.download_and_prepare()
    return [name for name, split in (builder.info.splits or {}).items() if split.num_examples]


def _stream_names(builder: datasets.DatasetBuilder) -> Iterator[str]:
    yield from builder.as_streaming_dataset()


def split_rows(
    builder: datasets.DatasetBuilder,
) -> Mapping[str, datasets.Dataset] | Mapping[str, datasets.IterableDataset]:
    """The splits of a dataset, to read a few rows: from the cache if they are there, or else over the network."""
    prepared: Mapping[str, Any] = (
        builder.as_dataset() if Path(builder.cache_dir).is_dir() else builder.as_streaming_dataset()
    )
    return prepared


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Let `datasets` go straight to its cache; it would first try an unreachable Hub for 23 seconds."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _check_cached_revision(path: str, revision: str | None, cached: str | None) -> None:
    """Refuse any revision but the one asked for: without the Hub, `datasets` takes the newest in its cache."""
    from huggingface_hub import try_to_load_from_cache

    if revision is None:
        return
    card = try_to_load_from_cache(path, "README.md", revision=revision, repo_type="dataset")
    commit = Path(card).parent.name if isinstance(card, str) else revision
    if commit != cached:
        raise UnavailableError(
            f"the Hub cannot be reached, and the cache holds {path} at commit {cached} where revision {revision!r} is "
            f"asked for; continue where there is a network, or ask for that commit",
            option="revision",
        )


def _bad_configuration(repo: Repo, name: str | None, error: Exception) -> OptionError | UnavailableError:
    from datasets import get_dataset_config_names

    if repo.commit is None:
        return UnavailableError(
            f"the Hub cannot be reached, and of the dataset {repo.path} the cache does not hold "
            f"{f'the configuration {name}' if name else 'a single configuration'}: {first_line(error)}",
            option="name",
        )
    try:
        known = get_dataset_config_names(repo.path, revision=repo.commit)
    except (ValueError, OSError):
        known = []
    if name is not None and known and name not in known:
        return OptionError(f"{repo.path} has no configuration {name!r}; {choice(name, known)}", option="name")
    if name is None and len(known) > 1:
        return OptionError(
            f"{repo.path} has several configurations, and name has to say which; {choice('', known)}",
            option="name",
        )
    return unreadable(repo.path, error)


def _script(path: str, error: Exception) -> OptionError:
    if "script" not in str(error):
        return unreadable(path, error)
    return OptionError(
        f"the dataset {path} is made by a script of its own, which is not run ({first_line(error)}); the Hub often "
        f"has it as Parquet too: try revision: refs/convert/parquet",
        option="path",
    )


def _split(builder: datasets.DatasetBuilder, split: str, available: Iterable[str], option: str) -> datasets.Dataset:
    try:
        rows: datasets.Dataset = builder.as_dataset(split=split)
    except (ValueError, AssertionError) as error:
        if split in (builder.info.splits or {}):
            raise OptionError(f"the split {split} is empty", option=option) from error
        raise _no_split(split, available, option) from error
    return rows


def _no_split(split: str, available: Iterable[str], option: str) -> OptionError:
    return OptionError(f"the dataset has no split {split!r}; {choice(split, available)}", option=option)
