"""The training documents, as a dataset's filters leave them: cached by content, and counted.

A cache entry holds the rows that are kept, and the texts of those that are changed; the others stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import RunContext
from toolkit.data.documents import Contents
from toolkit.data.filter_stages import ACCOUNT, ROWS, Filtering, Part, Placed, changed_documents, view_of
from toolkit.data.stats import FilterAccount
from toolkit.data.taking_turns import PATIENCE_SECONDS, taking_turns
from toolkit.registry import Registry
from toolkit.system.cache import entry_made, unfinished_work
from toolkit.system.files import read_json
from toolkit.system.source_code import source_code_of

if TYPE_CHECKING:
    from datasets import Dataset as Split

FORMAT = 1
"""Raise this when a cache entry has another form."""


def filtered(
    split: Split,
    contents: Contents,
    filters: Sequence[Part],
    run: RunContext,
    registry: Registry,
    placed: Placed,
    *,
    patience: float = PATIENCE_SECONDS,
) -> tuple[Split, tuple[FilterAccount, ...]]:
    """The documents that the filters keep, changed where they change them, and what each filter did.

    Interrupted or killed, the next call goes on where it was.

    Args:
        split: the documents.
        contents: their digest.
        filters: in their order.
        run: the context of the run.
        registry: where the filters were found.
        placed: adds a filter's place to what it refuses.
        patience: seconds to wait for another process that filters the same documents and makes no progress.

    Raises:
        OptionError: a filter refuses, or drops every document.
        UnavailableError: the cache cannot be written, or a filter lacks something, or the process that filters the
            same documents makes no progress.
    """
    if not filters:
        return split, ()
    key = _key(contents, filters, run, placed)
    entry = run.cache / "filtered" / key
    if found := _opened(entry, split):
        return found
    with taking_turns(run, f"filtered-{key}", patience=patience) as alone:
        if found := _opened(entry, split):
            return found  # made by the process that this one has waited for
        shutil.rmtree(entry, ignore_errors=True)  # damaged, if it is there
        with unfinished_work(entry) as finished, entry_made(entry) as folder:
            folder.mkdir()
            Filtering(folder, finished, split, alone, registry, placed).work(filters)
    made = _opened(entry, split)
    assert made, entry
    return made


def identity(filters: Sequence[Part], run: RunContext) -> list[Any]:
    """What determines what the filters make of documents, as plain data."""
    return [
        [
            part.name,
            _source(part),
            part.plugin.version,
            part.plugin.model_dump(mode="json"),
            part.plugin.fingerprint(run),
        ]
        for part in filters
    ]


def _key(contents: Contents, filters: Sequence[Part], run: RunContext, placed: Placed) -> str:
    described = []
    for part in filters:
        with placed(part):
            described += identity([part], run)
    return hashlib.sha256(json.dumps([FORMAT, contents.digest, contents.cut, described]).encode()).hexdigest()[:32]


def _source(part: Part) -> str:
    """The distribution's name, whose author raises the filter's `version`; the code of a local file, which has none."""
    file = Path(part.distribution)
    if file.suffix == ".py":
        return source_code_of(type(part.plugin))
    return part.distribution.partition(" ")[0]


def _opened(entry: Path, split: Split) -> tuple[Split, tuple[FilterAccount, ...]] | None:
    """What an entry leaves of the documents; None if it is missing or damaged."""
    import numpy

    try:
        account = read_json(entry / ACCOUNT)
        rows = numpy.load(entry / ROWS, mmap_mode="r")
        changed = changed_documents(entry, split)
        if (account["rows"], account["changed"]) != (len(rows), sum(map(len, changed))):
            return None
        return view_of(split, changed, rows), tuple(map(FilterAccount.from_dict, account["filters"]))
    except (OSError, ValueError, TypeError, KeyError):  # pyarrow's errors are ValueErrors
        return None
