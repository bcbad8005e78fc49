"""Records of a run on disk: JSON objects that say in which format, and by which version, they were written.

A later version reads what an earlier one has written. An earlier one refuses a later format, which it would misread.
A field that this version does not know is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic takes typing's only from Python 3.12 on
    TypeVar,
)

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from toolkit import __version__
from toolkit.errors import UnavailableError
from toolkit.recipe.document import dotted
from toolkit.system.files import read_json, write_json


class FileEntry(TypedDict):
    """A file as a manifest lists it."""

    bytes: int
    sha256: str


class Header(TypedDict):
    """What each record begins with, from format 1 on."""

    format: NotRequired[int]
    toolkit: NotRequired[str]


class Manifest(Header):
    """manifest.json of a checkpoint: its files but this one."""

    run_id: str
    step: int
    files: dict[str, FileEntry]


class AttemptRecord(TypedDict):
    """One process's work on a run."""

    started: str
    from_step: int
    process: NotRequired[int]
    ended: str | None
    how: Literal["finished", "interrupted", "failed"] | None
    """None while it goes on, and for ever if it was killed."""
    step: NotRequired[int]
    error: NotRequired[str | None]
    lost_a_process: NotRequired[bool]
    """Whether it ended because another process of the run did."""
    lost_steps: NotRequired[int]
    """What of it the next attempt had to do again."""
    lost_seconds: NotRequired[float]


class ParentRecord(TypedDict):
    """The checkpoint of another run at which this one begins."""

    id: str
    run: str
    folder: str
    step: int
    changes: list[str]


class ResultsRecord(TypedDict):
    """What a finished run has reached."""

    steps: int
    tokens_seen: int
    seconds: float
    peak_memory_bytes: int
    memory_was_short: bool
    eval_loss: float | None
    perplexity: float | None
    eval_loss_by_source: NotRequired[dict[str, float]]
    """Of a mixture."""
    parameters: int
    sample: str | None


class RunRecord(Header):
    """run.json."""

    id: str
    recipe: str
    series: str
    """The name that it shares with its `--fresh` successors."""
    source: str
    """The recipe's file."""
    plugin_folders: NotRequired[list[str]]
    task: Literal["causal-lm", "masked-lm"]
    created: str
    status: Literal["running", "finished", "failed", "interrupted"]
    identity: dict[str, Any]
    """What determines the numbers of the run."""
    defaults: NotRequired[list[str]]
    """The keys of `identity` that nobody had set."""
    attempts: list[AttemptRecord]
    results: ResultsRecord | None
    rehearsal: NotRequired[bool]
    planned_memory_bytes: NotRequired[int]
    memory_budget_bytes: NotRequired[int]
    """What `auto` had to keep to."""
    choice: NotRequired[dict[str, Any]]
    """What `auto` chose."""
    parent: NotRequired[ParentRecord]
    data_key: NotRequired[str]
    sequences: NotRequired[int]
    """At a time, since memory ran out; likewise in evaluations."""
    evaluation_sequences: NotRequired[int]
    grace_seconds: NotRequired[int]
    exports: NotRequired[dict[str, dict[str, FileEntry]]]
    """By folder, the files that an exporter wrote."""
    exporters: NotRequired[list[dict[str, Any]]]
    """Those carried out, with their options."""


class TrainingState(Header):
    """toolkit_state.json of a checkpoint: what the Trainer does not save; floats as hexadecimal, to the last bit."""

    seconds_trained: float
    total_loss: str
    last_logged_step: int
    of_processes: list[dict[str, Any]]
    sequences: NotRequired[int | None]
    evaluation_sequences: NotRequired[int | None]
    evaluation_left_out: NotRequired[bool]
    ended: NotRequired[bool]


FORMATS: Mapping[type[Any], int] = {RunRecord: 1, Manifest: 1, TrainingState: 1}
"""Raise one when a version before would misread the record. One that names no format is of 0."""

Record = TypeVar("Record")
_READERS: dict[type[Any], TypeAdapter[Any]] = {}


def write_record(file: Path, kind: type[Any], data: Mapping[str, Any]) -> None:
    """Replace a record atomically and durably.

    Raises:
        ValidationError: the data is no such record.
    """
    _reader(kind).validate_python(data)
    own = {"format": FORMATS[kind], "toolkit": __version__}
    write_json(file, own | {key: value for key, value in data.items() if key not in own})


def read_record(file: Path, kind: type[Record]) -> Record:
    """Read a record of this format or an earlier one.

    Raises:
        UnavailableError: a later version has written it in a format of its own.
        ValueError: it is damaged.
    """
    data, known = read_json(file), FORMATS[kind]
    written = data.get("format", 0)
    if isinstance(written, int) and written > known:
        raise UnavailableError(
            f"{file} was written by pretrain-toolkit {data.get('toolkit')} in format {written}, and this is "
            f"{__version__}, which reads formats up to {known}; use that version, or a later one"
        )
    try:
        _reader(kind).validate_python(data)
    except ValidationError as errors:
        first = errors.errors()[0]
        raise ValueError(f"{dotted(first['loc'])}: {first['msg']}") from None
    return data  # type: ignore[return-value]  # just validated; a copy would lose the fields that are unknown


def _reader(kind: Any) -> TypeAdapter[Any]:
    if kind not in _READERS:  # to make one takes milliseconds
        _READERS[kind] = TypeAdapter(kind)
    return _READERS[kind]
