"""Which sweep a folder holds: the recipe and what is varied, so that no other sweep goes on in it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import RunMismatchError, UnavailableError, UsageError
from toolkit.events import Listener, Message
from toolkit.lifecycle.sweep_study import JOURNAL, LOCKS, PREFIX
from toolkit.storage.run_directory import DATA_FILE, RUN_FILE, RunDirectory
from toolkit.system.file_lock import exclusive, lock_if_free
from toolkit.system.files import make_folder, move_folder, read_json, write_json

SWEEP_FILE = "sweep.json"
FORMAT = 1
REMOVED = ".removed"
"""The folder of trials that are being removed."""
NO_LOCKS = "two workers may begin the sweep"


def begin(folder: Path, identity: Mapping[str, Any], listener: Listener) -> None:
    """Make the sweep's folder, or see that the sweep in it is this one.

    One in which no trial has trained yet begins anew with other settings: those that a refused first trial asks for.

    Args:
        folder: that of the sweep.
        identity: `varied`, a line for each varied setting; and `recipe`, the other settings by dotted key.
        listener: is told of a new beginning.

    Raises:
        RunMismatchError: it is another sweep.
        UsageError: something else is in its place.
        UnavailableError: a later version has made it, or it is damaged.
    """
    _require_place(folder)
    make_folder(folder)
    with exclusive(folder / "lock", otherwise=NO_LOCKS):
        _require_place(folder)
        file = folder / SWEEP_FILE
        if file.exists() and not _differences(_read(file), identity):
            return
        if file.exists():
            if not _emptied(folder):
                require_same(folder, identity)
            listener(Message(f"{folder}: begun anew, as no trial had trained with the settings before"))
        write_json(file, {"format": FORMAT, **identity})


def require_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """See that the folder's sweep is this one.

    Raises:
        RunMismatchError: it is another.
        UnavailableError: a later version has made it, or it is damaged.
    """
    if found := _differences(_read(folder / SWEEP_FILE), identity):
        lines = "\n".join(f"  {difference}" for difference in found)
        raise RunMismatchError(
            f"{folder} is a sweep of other settings, so its trials cannot be compared with new ones:\n{lines}\n"
            f"restore the settings, or give this sweep another --name",
            differences=found,
        )


def _require_place(folder: Path) -> None:
    """See that there is nothing in the folder but a sweep.

    Raises:
        UsageError: there is.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give this sweep another --name")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    if RUN_FILE in names:
        raise UsageError(f"{folder} is a run; give this sweep another --name")
    begun = {name for name in names if name == "lock" or name.startswith(f".{SWEEP_FILE}.")}  # by one that was killed
    if SWEEP_FILE not in names and names - begun:
        raise UsageError(f"{folder} is not empty and is not a sweep; give this sweep another --name")


def _read(file: Path) -> dict[str, Any]:
    try:
        read = read_json(file)
        is_newer = read["format"] > FORMAT
        if not is_newer:
            return {"varied": list(read["varied"]), "recipe": dict(read["recipe"])}
    except (ValueError, TypeError, KeyError):
        raise UnavailableError(f"{file} is damaged; give this sweep another --name") from None
    raise UnavailableError(f"{file} was written by a later version of the toolkit; install that one")


def _emptied(folder: Path) -> bool:
    """Remove the trials, if none has trained a step and none is with a worker; whether that is so."""
    trials = list(folder.glob(f"{PREFIX}*"))
    with contextlib.ExitStack() as held:
        for file in folder.glob(f"{LOCKS}/*"):
            if (lock := lock_if_free(file, otherwise=NO_LOCKS)) is None:
                return False
            held.enter_context(lock)
        if any(map(_is_worth_keeping, trials)):
            return False
        (folder / JOURNAL).unlink(missing_ok=True)
        # Renamed first: a kill in the middle leaves each trial whole, or none.
        shutil.rmtree(folder / REMOVED, ignore_errors=True)
        make_folder(folder / REMOVED)
        for trial in trials:
            move_folder(trial, folder / REMOVED / trial.name)
        shutil.rmtree(folder / REMOVED, ignore_errors=True)
    return True


def _is_worth_keeping(trial: Path) -> bool:
    """Whether it has trained; without held-out documents it did so only until the sweep noticed and ended."""
    data = trial / DATA_FILE
    return bool(RunDirectory(trial).metrics()) and not (data.is_file() and not read_json(data).get("validation"))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, a line each; what either of them varies has no value of its own."""
    return [*_found(before, now)]


def _found(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if before["varied"] != now["varied"]:
        yield f"varied: {'; '.join(before['varied'])}; and now {'; '.join(now['varied'])}"
    varied = {line.partition(": ")[0] for line in (*before["varied"], *now["varied"])}
    old, new = before["recipe"], now["recipe"]
    for key in sorted((old.keys() | new.keys()) - varied):
        if old.get(key) != new.get(key):
            yield f"{key}: {_shown(old, key)}, and now {_shown(new, key)}"


def _shown(recipe: Mapping[str, Any], key: str) -> str:
    return repr(recipe[key]) if key in recipe else "not set"
