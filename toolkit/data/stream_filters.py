"""The filters of a stream: each document is judged as it is read, and counted once its batch is durable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from toolkit.api import Filter, RunContext
from toolkit.data.filter_pass import FilterError, Judges, Tally
from toolkit.data.stats import FilterAccount
from toolkit.errors import OptionError, ToolkitError, UnavailableError
from toolkit.recipe.schema import Component

Filters = Sequence[Component[Filter]]
OPTION = "filters"
"""Where in a dataset's section they are; the second one is `filters.1`."""


class StreamFilters:
    """Judges documents in their order."""

    def __init__(self, filters: Filters, run: RunContext) -> None:
        """Raises FilterError: a filter refuses."""
        self._judges = Judges([part.plugin for part in filters], run)
        self._tallies = self._judges.tallies()

    def left_of(self, text: str, *, is_counted: bool) -> str:
        """The document as the filters leave it; of one that is dropped nothing, so that it keeps its row.

        With `is_counted` it has been judged before, in a batch that holds its beginning.
        """
        return self._judges(text, self._judges.tallies() if is_counted else self._tallies) or ""

    def counted(self) -> list[Tally]:
        """What each filter did since this was called before."""
        counted, self._tallies = self._tallies, self._judges.tallies()
        return counted


def added(before: Sequence[dict[str, Any]], later: Sequence[Tally]) -> list[dict[str, Any]]:
    """The tallies of a stream's state with those of the documents that follow."""
    sums = [Tally.from_dict(one) for one in before] or [Tally() for _ in later]
    for total, more in zip(sums, later, strict=True):
        total.add(more)
    return [total.as_dict() for total in sums]


def accounts(filters: Filters, tallies: Sequence[dict[str, Any]]) -> tuple[FilterAccount, ...]:
    """What each filter did, by the tallies of a stream's state."""
    return tuple(Tally.from_dict(one).account(part.name) for part, one in zip(filters, tallies, strict=False))


def check_left(filters: Filters, tallies: Sequence[dict[str, Any]]) -> None:
    """Find the filter that has left nothing so far.

    Raises:
        OptionError: one has dropped every document, with examples; or all of them together have left no text.
    """
    for index, (part, tally) in enumerate(zip(filters, tallies, strict=False)):
        try:
            Tally.from_dict(tally).check_left(part.name)
        except OptionError as error:
            raise OptionError(error.message, option=f"{OPTION}.{index}") from None
    if tallies and (documents := tallies[0]["documents"]):
        names = ", ".join(part.name for part in filters)
        raise OptionError(f"no text is left of {documents:,} documents after the filters ({names})", option=OPTION)


@contextlib.contextmanager
def refusals_of(filters: Filters) -> Iterator[None]:
    """Report what a filter raises with its name."""
    try:
        yield
    except FilterError as failed:
        name, error = filters[failed.filter_index].name, failed.error
        place = f"{OPTION}.{failed.filter_index}"
        if isinstance(error, UnavailableError):
            raise UnavailableError(f"{name}: {error}", option=place) from error
        if isinstance(error, ToolkitError):
            raise OptionError(f"{name}: {error}", option=place) from error
        error.add_note(f"in the filter {name}")
        raise error from None
