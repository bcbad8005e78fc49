"""The folder of runs: their names, and finding one by its name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from toolkit.errors import UsageError, nearest
from toolkit.storage.run_directory import RUN_FILE, RunDirectory
from toolkit.system.files import read_json

MAX_NAME_BYTES = 200
"""Bytes of a run's name: file systems take 255, and what is put beside a run has its name and more."""


def check_name(runs: Path, name: str) -> None:
    """See that a run of this name can have a folder there, and successors beside it.

    Raises:
        UsageError: it cannot; or a name on the way is not UTF-8, in which safetensors and tokenizers want their paths.
    """
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"--name {name}: a run's name is that of a folder, without / and without a dot in front")
    if (length := len(os.fsencode(name))) > MAX_NAME_BYTES:
        raise UsageError(
            f"{name[:40]}... cannot name a run: a folder's name has at most {MAX_NAME_BYTES} bytes here, and this one "
            f"has {length}; choose a shorter one with --name"
        )
    try:
        str(runs / name).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(runs / name).decode("utf-8", "backslashreplace")
        raise UsageError(f"the folder {shown} has a name that is not UTF-8; give another --runs or --name") from None


def open_run(folder: Path) -> RunDirectory:
    """Return the run in this folder.

    Raises:
        UsageError: there is none.
    """
    if not (folder / RUN_FILE).is_file():
        raise UsageError(f"{folder} is not a run: it has no run.json")
    return RunDirectory(folder)


def find(name: str, runs: Path) -> RunDirectory:
    """Return the run of this name, or in this folder.

    Raises:
        UsageError: there is none.
    """
    with contextlib.suppress(OSError):  # a name that is too long, say
        if "/" in name or Path(name, "run.json").is_file():
            return open_run(Path(name))
    known = [run.name for run in all_runs(runs)]
    if name not in known:
        raise UsageError(f"no run in {runs} is named {name!r}; {nearest(name, known)}")
    return RunDirectory(runs / name)


def all_runs(runs: Path) -> list[RunDirectory]:
    """The runs in a folder of runs, oldest first; one whose run.json cannot be read is in nobody's way."""
    created: dict[RunDirectory, str] = {}
    for file in runs.glob(f"*/{RUN_FILE}"):
        run = RunDirectory(file.parent)
        with contextlib.suppress(OSError, ValueError, KeyError):
            created[run] = str(read_json(file)["created"])  # of whatever format
    return sorted(created, key=lambda run: created[run])


def newest_in_series(runs: Path, series: str) -> Path | None:
    """The folder of the newest run among NAME, NAME-2, NAME-3, ..., which `--fresh` has made."""
    folders = [run.folder for run in all_runs(runs) if read_json(run.folder / RUN_FILE).get("series") == series]
    return folders[-1] if folders else None


def next_in_series(runs: Path, series: str) -> Path:
    """A folder that does not exist yet, for a new run beside those of this series."""
    number = 1
    while (folder := runs / (series if number == 1 else f"{series}-{number}")).exists():
        number += 1
    return folder
