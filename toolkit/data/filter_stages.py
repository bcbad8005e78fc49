"""The work of a dataset's filters: stage by stage over the documents, into a folder that becomes a cache entry.

Besides eight bytes for each document, and what a filter needs to compare them, memory does not grow with the corpus.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import CorpusFilter, Filter, RunContext
from toolkit.api.context import nobody_watches
from toolkit.data.documents import CUT_COLUMN
from toolkit.data.filter_parts import in_parts, remove_parts
from toolkit.data.filter_pass import (
    EXAMPLES,
    EXCERPT_CHARACTERS,
    FilterError,
    FilterOutcome,
    Tally,
    judging,
    judging_anew,
    signing,
)
from toolkit.errors import PluginError, ToolkitError
from toolkit.recipe.schema import Component
from toolkit.registry import Registry
from toolkit.system.cache import entry_made
from toolkit.system.files import sync, write_json
from toolkit.system.threads import processors
from toolkit.system.worker_processes import workers

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset as Split

BYTES_WORTH_PROCESSES = 1 << 25
"""Of text, from which on several processes are faster than one: each takes a second or two to start."""
ACCOUNT, ROWS = "account.json", "rows.npy"

Part = Component[Filter]
Placed = Callable[[Part], AbstractContextManager[None]]
"""Adds its place in the recipe to what a filter refuses."""


def changed_documents(folder: Path, split: Split) -> list[Split]:
    """The documents that filters have changed, memory-mapped, in the order in which they were changed."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo

    info = DatasetInfo(features=_columns(split).features)
    files = sorted(folder.glob("changed-*.arrow"))
    return [Dataset(pa.ipc.open_stream(pa.memory_map(str(file))).read_all(), info=info) for file in files]


def view_of(split: Split, changed: Sequence[Split], rows: numpy.ndarray[Any, Any]) -> Split:
    """The rows of the documents with the changed ones behind them."""
    from datasets import concatenate_datasets

    return concatenate_datasets([_columns(split), *changed]).select(rows, keep_in_memory=True)


def _columns(split: Split) -> Split:
    return split.select_columns([name for name in ("text", CUT_COLUMN) if name in split.column_names])


@dataclass(frozen=True)
class Filtering:
    """The work that fills a cache entry."""

    folder: Path
    """Of the entry."""
    finished: Path
    """The folder of the parts that are finished, by this process or one before it."""
    split: Split
    run: RunContext
    registry: Registry
    placed: Placed

    def work(self, filters: Sequence[Part]) -> None:
        """Pass the documents through the filters: those that compare documents each alone, the others together.

        Raises:
            OptionError: a filter refuses, or drops every document.
            UnavailableError: the cache cannot be written, or a filter lacks something.
        """
        import numpy

        rows: numpy.ndarray[Any, Any] = numpy.arange(len(self.split))
        changed: list[Split] = []
        tallies: list[Tally] = []
        for number, stage in enumerate(_stages(filters)):
            view = view_of(self.split, changed, rows) if number else self.split
            with _placed_among(stage, self.placed):
                if isinstance(stage[0].plugin, CorpusFilter):
                    kept, tally = self._compared(number, stage[0], stage[0].plugin, view)
                    rows, found = rows[kept], [tally]
                else:
                    rows, found = self._judged(number, stage, view, rows)
                    changed = changed_documents(self.folder, self.split)
            for part, tally in zip(stage, found, strict=True):
                with self.placed(part):
                    tally.check_left(part.name)
            tallies += found
        with (self.folder / ROWS).open("wb") as file:
            numpy.save(file, rows)
        sync(self.folder / ROWS)
        accounts = [asdict(tally.account(part.name)) for part, tally in zip(filters, tallies, strict=True)]
        write_json(self.folder / ACCOUNT, {"rows": len(rows), "changed": sum(map(len, changed)), "filters": accounts})

    def _judged(
        self, number: int, stage: Sequence[Part], view: Split, rows: numpy.ndarray[Any, Any]
    ) -> tuple[numpy.ndarray[Any, Any], list[Tally]]:
        """The rows that are left, where changed documents are behind all others; and each filter's tally."""
        import numpy
        import pyarrow as pa

        behind = len(self.split) + sum(map(len, changed_documents(self.folder, self.split)))
        tallies = [Tally() for _ in stage]
        left, done = [rows[:0]], 0
        schema = _columns(self.split).features.arrow_schema.remove_metadata()
        file = self.folder / f"changed-{number:03}.arrow"
        with file.open("wb") as out, pa.ipc.new_stream(out, schema) as writer:
            for outcome in self._outcomes(
                number, stage, view, lambda: judging([part.plugin for part in stage], self.run)
            ):
                here = rows[done : done + len(outcome.documents)].copy()
                texts = outcome.documents["changed"]
                changed = numpy.flatnonzero(texts.is_valid())
                here[changed] = numpy.arange(behind, behind + len(changed))
                if len(changed):
                    table = {"text": texts.drop_null().cast(schema.field("text").type)}
                    if CUT_COLUMN in schema.names:
                        table[CUT_COLUMN] = view.select(done + changed)[CUT_COLUMN][:]
                    writer.write_table(pa.table(table, schema=schema))
                behind += len(changed)
                left.append(here[outcome.documents["kept"].to_numpy()])
                for tally, more in zip(tallies, outcome.tallies, strict=True):
                    tally.add(more)
                done += len(outcome.documents)
                self.run.progress("filtering", done, len(view), unit="documents")
        sync(file)
        return numpy.concatenate(left), tallies

    def _compared(
        self, number: int, part: Part, plugin: CorpusFilter, view: Split
    ) -> tuple[numpy.ndarray[Any, Any], Tally]:
        """Which documents are kept, bool, shape (documents,); and the tally."""
        import numpy

        file = self.finished / f"{number:03}-earlier.npy"
        if (found := _compared_before(file, len(view))) is None:
            found = numpy.stack(self._earlier(number, part, plugin, view))
            with entry_made(file) as made:
                numpy.save(made, found)
            remove_parts(self._files(number))
        earlier, size = found
        dropped = numpy.flatnonzero(earlier >= 0)
        tally = Tally(len(view), int(size.sum()), int(size[dropped].sum()))
        if len(dropped):
            tally.reasons[plugin.reason] = len(dropped)
        for row in dropped[:EXAMPLES].tolist():
            texts = [(view[at]["text"] or "")[:EXCERPT_CHARACTERS] for at in (row, int(earlier[row]))]
            tally.note(plugin.reason, *texts)
        return earlier < 0, tally

    def _earlier(
        self, number: int, part: Part, plugin: CorpusFilter, view: Split
    ) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
        """For each document the earlier one because of which it is dropped, or -1; and its number of characters."""
        import numpy

        lengths, width, done = [numpy.empty(0, "int64")], 0, 0
        file = self.folder / "signatures"
        with file.open("wb") as out:
            for outcome in self._outcomes(number, [part], view, lambda: signing(plugin, self.run)):
                (signatures,) = outcome.documents["signature"].chunks
                width = signatures.type.list_size
                out.write(signatures.flatten().to_numpy())
                lengths.append(outcome.documents["characters"].to_numpy())
                done += len(outcome.documents)
                self.run.progress(part.name, done, len(view), unit="documents")
        earlier = numpy.full(len(view), -1)
        if len(view):
            every = numpy.memmap(file, dtype="uint64", mode="r").reshape(-1, width)
            try:
                earlier = numpy.asarray(plugin.earlier(every, self.run))
            except Exception as error:
                raise FilterError(0, error) from error
        file.unlink()
        if earlier.shape != (len(view),) or (earlier >= numpy.arange(len(view))).any():
            told = f"returns {earlier.dtype} of shape {earlier.shape}, and not an earlier document or -1 for each"
            raise FilterError(0, PluginError(f"its earlier {told}"))
        return earlier, numpy.concatenate(lengths)

    def _files(self, number: int) -> Path:
        return self.finished / f"{number:03}"

    def _outcomes(
        self, number: int, stage: Sequence[Part], view: Split, alone: Callable[[], Callable[[list[str]], FilterOutcome]]
    ) -> Iterator[FilterOutcome]:
        """What becomes of the documents, part by part; of many, by several processes."""

        def work(pieces: Iterator[list[str]]) -> Iterator[FilterOutcome]:
            judge = alone()  # what a filter refuses at once is refused before processes start
            if (count := processors()) == 1 or view.data.nbytes < BYTES_WORTH_PROCESSES:
                yield from map(judge, pieces)
                return
            offers = [(self.registry.offer("filter", part.name), part.plugin.model_dump(mode="json")) for part in stage]
            with workers(count, judging_anew, offers, replace(self.run, progress=nobody_watches)) as mapped:
                yield from mapped(pieces)

        return in_parts(view, self._files(number), work)


def _compared_before(file: Path, documents: int) -> numpy.ndarray[Any, Any] | None:
    """What an earlier process found of so many documents; None if it is missing or damaged."""
    import numpy

    with contextlib.suppress(OSError, ValueError, EOFError):
        found: numpy.ndarray[Any, Any] = numpy.load(file)
        return found if found.shape == (2, documents) else None
    return None


def _stages(filters: Sequence[Part]) -> list[list[Part]]:
    """The filters in groups that need one pass over the documents."""
    stages: list[list[Part]] = []
    for part in filters:
        if stages and not any(isinstance(one.plugin, CorpusFilter) for one in (part, stages[-1][-1])):
            stages[-1].append(part)
        else:
            stages.append([part])
    return stages


@contextmanager
def _placed_among(stage: Sequence[Part], placed: Placed) -> Iterator[None]:
    """Report what a filter raises as its own."""
    try:
        yield
    except FilterError as failed:
        part = stage[failed.filter_index]
        with placed(part):
            if not isinstance(failed.error, ToolkitError):
                for note in (*getattr(failed, "__notes__", ()), f"in the filter {part.name}"):
                    failed.error.add_note(note)
            raise failed.error from None
