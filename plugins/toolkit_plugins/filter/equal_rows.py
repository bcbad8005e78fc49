"""Finds equal rows of an array by sorting, in memory of a few numbers for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy


def groups(rows: numpy.ndarray[Any, Any]) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
    """Return an order in which equal rows are together, the first of them first, and which of it begins a group.

    Args:
        rows: shape (rows, width).

    Returns:
        The order, int64, and whether the row there differs from the one before it, bool; both of shape (rows,).
    """
    import numpy

    order = numpy.lexsort([rows[:, column] for column in range(rows.shape[1])])  # stable, so in a group rows ascend
    begins = numpy.zeros(len(order), dtype=bool)
    begins[:1] = True
    for column in range(rows.shape[1]):
        ordered = rows[:, column][order]
        begins[1:] |= ordered[1:] != ordered[:-1]
    return order, begins


def first_equal(rows: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """Return for each row the first that is equal, or -1 if it is that: int64, shape (rows,)."""
    import numpy

    order, begins = groups(rows)
    first = order[begins][numpy.cumsum(begins) - 1]
    earlier = numpy.empty(len(order), dtype="int64")
    earlier[order] = numpy.where(begins, -1, first)
    return earlier
