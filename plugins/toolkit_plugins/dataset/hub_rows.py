"""The rows of a dataset on the Hub: their text, or an error about the column or the file that has none."""

from __future__ import annotations

import atexit
import itertools
import lzma
import re
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from toolkit.api import OptionError, UnavailableError
from toolkit_plugins.hub_errors import choice

if TYPE_CHECKING:
    import datasets

STRINGS = ("string", "large_string", "string_view")
MOST_SECONDS_AT_EXIT = 5.0


@cache
def end_after_readers() -> None:
    """Have the interpreter end after foreign threads that still read ahead in a stream that nobody reads any more.

    They read through Python's file objects, and abort a process whose interpreter ends meanwhile (`PyGILState_Release`;
    seen once, on a loaded machine, after everything was written). Nothing that they offer stops them.
    """
    atexit.register(_await_readers)


def _await_readers() -> None:
    until, looks = time.monotonic() + MOST_SECONDS_AT_EXIT, 0
    while looks < 3 and time.monotonic() < until:
        pythons = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
        looks = 0 if sys._current_frames().keys() - pythons else looks + 1
        time.sleep(0.03)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Translate what `datasets`, and the libraries that it reads files with, raise about a dataset's content."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except OSError as error:
        if error.errno is not None:  # about the machine, not the content
            raise UnavailableError(f"the dataset {path} cannot be read here: {error}", option="path") from error
        raise unreadable(path, error) from error
    except (DatasetsError, ValueError, TypeError, NotImplementedError, ArrowException) as error:
        raise unreadable(path, error.__cause__ or error) from error
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: BaseException) -> OptionError:
    """The error for a dataset that a library cannot read."""
    what = first_line(error)
    if twice := re.match(r"Multiple matches for FieldRef\.Name\((.*?)\)", what):
        what = f"it has two columns {twice[1]!r}"
    return OptionError(
        f"the dataset {path} cannot be read: {what}; if you download its files, text-files reads them, or names the "
        f"place of what is wrong",
        option="path",
    )


def text_column(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """The rows that have text, with that alone, in a column named `text`."""
    _check_column(rows.features, column)
    texts = rows.select_columns([column])
    if column != "text":
        texts = texts.rename_column(column, "text")
    if texts.data.column("text").null_count:
        filled = texts.with_format("arrow")["text"][:].is_valid()
        texts = texts.select(filled.to_numpy().nonzero()[0], keep_in_memory=True)
    return texts


def texts(split: datasets.Dataset | datasets.IterableDataset, column: str, rows: int | None) -> Iterator[str]:
    """The texts of the first rows, without nulls; of all rows if `rows` is None."""
    features = split.features or dict.fromkeys(next(iter(split), {}))
    _check_column(features, column)
    for row in itertools.islice(split.select_columns([column]), rows):
        text = row[column]
        if not isinstance(text, str | None):
            raise OptionError(f"the column {column!r} holds {text!r:.60}, not text", option="column")
        if text is not None:
            yield text


def _check_column(features: dict[str, object], column: str) -> None:
    from datasets import Value

    if column not in features:
        if len(features) == 1 and (delimiter := re.search(r"[;\t|]", name := next(iter(features)))):
            raise OptionError(
                f"the dataset has a single column {name!r}: the cells of its CSV are separated by {delimiter[0]!r}, "
                f"which is not looked for here; download the file and read it with text-files, which has a delimiter",
                option="column",
            )
        raise OptionError(f"the dataset has no column {column!r}; {choice(column, features)}", option="column")
    feature = features[column]
    if feature is not None and not (isinstance(feature, Value) and feature.dtype in STRINGS):
        raise OptionError(f"the column {column!r} holds {feature}, not text", option="column")


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, which often has many."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
