"""Records of a run on disk: JSON objects that say in which format, and by which version, they were written.

A later version reads what an earlier one has written. An earlier one refuses a later format, which it would misread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.errors import UnavailableError
from toolkit.files import read_json, write_json

FORMATS: Mapping[str, int] = {"run.json": 1, "manifest.json": 1, "toolkit_state.json": 1}
"""By file name; raise one when a version before would misread the record. One that names no format is of 0."""


def write_record(file: Path, data: Mapping[str, Any]) -> None:
    """Replace a record atomically and durably."""
    own = {"format": FORMATS[file.name], "toolkit": __version__}
    write_json(file, own | {key: value for key, value in data.items() if key not in own})


def read_record(file: Path) -> dict[str, Any]:
    """Read a record of this format or an earlier one.

    Raises:
        UnavailableError: a later version has written it in a format of its own.
    """
    record, known = read_json(file), FORMATS[file.name]
    if (written := int(record.get("format", 0))) > known:
        raise UnavailableError(
            f"{file} was written by pretrain-toolkit {record.get('toolkit')} in format {written}, and this is "
            f"{__version__}, which reads formats up to {known}; go on with that version, or a later one"
        )
    return record
