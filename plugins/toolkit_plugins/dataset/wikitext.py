"""WikiText, with its lines joined into articles again."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from toolkit.api import Dataset, OptionError, Peek, RunContext
from toolkit_plugins.dataset.arrow import dataset_of
from toolkit_plugins.dataset.hub import hub_builder, prepare, split_rows
from toolkit_plugins.dataset.hub_rows import readable
from toolkit_plugins.hub_errors import explained, quiet
from toolkit_plugins.hub_repositories import look_up

if TYPE_CHECKING:
    import datasets

LINES_PER_BATCH = 1000

TITLE = re.compile(r" = (?!= ).*(?<! =) = ?\n?", re.DOTALL)
"""A top-level heading, ` = Title = `; a section's, ` = = Section = = `, has one more `=` on each side."""


class WikiText(Dataset):
    """Wikipedia's good and featured articles, one per document. Merity et al. 2016, https://arxiv.org/abs/1609.07843."""

    licenses: ClassVar[tuple[str, ...]] = ("cc-by-sa-3.0", "gfdl")
    languages: ClassVar[tuple[str, ...]] = ("en",)

    version: Literal["wikitext-2-raw-v1", "wikitext-2-v1", "wikitext-103-raw-v1", "wikitext-103-v1"] = (
        "wikitext-2-raw-v1"
    )
    """wikitext-2 has two million words, wikitext-103 103 million; `raw` keeps words that others replace with <unk>."""
    path: str = "Salesforce/wikitext"
    """The dataset's name on the Hub, OWNER/NAME."""
    revision: str | None = None
    """Branch, tag or commit; if not given, the newest."""

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """Download the lines, unless they are in the cache, and join them into articles."""
        import datasets

        with quiet(datasets), explained(self.path, kind="dataset", revision=self.revision):
            builder = hub_builder(self.path, name=self.version, revision=self.revision, run=run)
            available = prepare(builder, self.path, run)
            self._check(available)
            lines = {split: builder.as_dataset(split=split) for split in ("train", "validation")}
            self._check_lines(lines["train"])
            return datasets.DatasetDict(
                {
                    split: dataset_of(
                        articles(_lines(lines[split])),
                        key=("wikitext", 1, [file["filename"] for file in lines[split].cache_files]),
                        cache=run.cache,
                    )
                    for split in lines
                }
            )

    def fingerprint(self, run: RunContext) -> str | None:
        """The commit; None where the Hub cannot be reached."""
        return look_up(self.path, kind="dataset", revision=self.revision).commit

    def peek(self, run: RunContext) -> Peek:
        """Read the first article over the network, or from the cache if the dataset is there already."""
        import datasets

        with quiet(datasets), readable(self.path), explained(self.path, kind="dataset", revision=self.revision):
            splits = split_rows(hub_builder(self.path, name=self.version, revision=self.revision, run=run))
            self._check(splits)
            self._check_lines(splits["train"])
            first = next(articles(row["text"] for row in itertools.islice(splits["train"], LINES_PER_BATCH)), "")
        return Peek(f"{self.version}, in articles", first)

    def _check(self, splits: Iterable[str]) -> None:
        if missing := {"train", "validation"}.difference(splits):
            raise OptionError(
                f"{self.path} is not WikiText: it has no {' and no '.join(sorted(missing))}", option="path"
            )

    def _check_lines(self, split: datasets.Dataset | datasets.IterableDataset) -> None:
        if list(split.features or ()) != ["text"]:
            raise OptionError(f"{self.path} is not WikiText: its rows are not lines of text", option="path")


def _lines(split: datasets.Dataset) -> Iterator[str]:
    for batch in split.iter(batch_size=LINES_PER_BATCH):
        yield from batch["text"]


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Join the lines of each article; every line of text is in exactly one article.

    An article begins at a title between two empty lines. A line of text may look like a title (a formula, a row of a
    table), but has text next to it.
    """
    article: list[str] = []
    for before, line, after in _with_neighbours(lines):
        if TITLE.fullmatch(line) and not before.strip() and not after.strip():
            yield from _joined(article)
            article = []
        article.append(line)
    yield from _joined(article)


def _joined(lines: list[str]) -> Iterator[str]:
    """The article as in the original file, where an empty line separates paragraphs."""
    if text := "".join(line if line.endswith("\n") else f"{line}\n" for line in lines).strip("\n"):
        yield f"{text}\n"


def _with_neighbours(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    before, line = "", None
    for after in lines:
        if line is not None:
            yield before, line, after
            before = line
        line = after
    if line is not None:
        yield before, line, ""
