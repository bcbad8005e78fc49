"""Errors that a user can meet, and the exit status of each kind.

    ToolkitError                    1   the run failed
    ├── UsageError                  2   a command's arguments are wrong
    ├── RecipeError                 2   a recipe is invalid: every problem at once, each with its place
    ├── OptionError                 2   a plugin refuses one of its options; the core adds the place
    ├── PluginError                 2   a plugin is missing, cannot be imported or breaks its contract
    ├── RunMismatchError            2   a run directory belongs to other settings
    ├── UnavailableError            3   the machine or the network lacks something: Hub, device, disk space
    │   └── PlanTooLongError        3   a plan would take longer than it is worth
    ├── TrainingError               1   training cannot go on: a non-finite loss, say
    │   └── OutOfMemoryError        1   out of memory, and only the next attempt can use a smaller batch
    └── InterruptedRun        128 + n   signal n stopped the run; the message says what is saved

For these the command line prints the message and no traceback. Everything else is a bug of ours, or of a
plugin, and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ToolkitError(Exception):
    """Base class of all errors whose message is meant for the user."""

    exit_status = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it by what it holds: most subclasses are not made from their message."""
        return BaseException.__new__, (type(self), *self.args), vars(self)


class UsageError(ToolkitError):
    """A command was asked for something impossible: a run that does not exist, say."""

    exit_status = 2


@dataclass(frozen=True, order=True)
class Place:
    """A place in a recipe file; `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a recipe: its place, its key, and what to do about it."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path}: {self.message}" if self.path else f"{self.place}: {self.message}"


class RecipeError(ToolkitError):
    """A recipe is invalid; `problems` holds everything that was found, in file order."""

    exit_status = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


class OptionError(ToolkitError):
    """A plugin rejects the value of one of its options, or a combination of them."""

    exit_status = 2

    def __init__(self, message: str, *, option: str | None = None) -> None:
        self.message = message
        self.option = option
        super().__init__(message)


class PluginError(ToolkitError):
    """A plugin cannot be found, cannot be imported, or is not of the kind that it claims to be."""

    exit_status = 2


class RunMismatchError(ToolkitError):
    """A run directory was made with other settings than those it is to resume with."""

    exit_status = 2

    def __init__(self, message: str, *, differences: Iterable[str]) -> None:
        self.differences = tuple(differences)
        super().__init__(message)

    @classmethod
    def of(cls, folder: Path, differences: Iterable[str], *, checkpoint: str | None = None) -> RunMismatchError:
        """The error for these differences; `checkpoint` is one that a new run could start from, as RUN@STEP."""
        found = tuple(differences)
        lines = "\n".join(f"  {difference}" for difference in found)
        begin = f", or start one from its checkpoint with --from {checkpoint}" if checkpoint else ""
        return cls(
            f"{folder} was made with other settings, so resuming would mix two runs:\n{lines}\n"
            f"restore the settings, or start a new run beside it with --fresh{begin}",
            differences=found,
        )


class UnavailableError(ToolkitError):
    """The environment lacks something that the run needs: the Hub, a device, disk space, permission to write."""

    exit_status = 3

    def __init__(self, message: str, *, option: str | None = None) -> None:
        self.message = message
        self.option = option
        super().__init__(message)


class PlanTooLongError(UnavailableError):
    """A plan would take longer than it is worth."""


class TrainingError(ToolkitError):
    """Training cannot usefully go on."""


class LostProcessError(TrainingError):
    """Another process of the run is gone, or cannot be reached: a consequence, whose cause that process knows."""


class OutOfMemoryError(TrainingError):
    """Out of memory where the step cannot be repeated in this attempt; the next one runs fewer sequences at a time."""

    def __init__(self, message: str, *, sequences: int | None = None, evaluation_sequences: int | None = None) -> None:
        """`sequences` and `evaluation_sequences`: batch sizes for the next attempt, where they are to be smaller."""
        super().__init__(message)
        self.sequences = sequences
        self.evaluation_sequences = evaluation_sequences


class InterruptedRun(ToolkitError):  # noqa: N818 - named for what it tells: an interruption, not a failure
    """A signal (`signal_number` 1, 2 or 15) stopped the run; the message says what is saved."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number
        super().__init__(message)


REFUSALS: Mapping[int, type[ToolkitError]] = {2: UsageError, 3: UnavailableError}
"""The error behind the exit status of another process of ours that was refused something."""


OF_THE_MACHINE = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
    }
)
"""Errors of the operating system that are due to the machine, or to a path that was given, and are no bug."""


def of_the_machine(error: OSError) -> UnavailableError | None:
    """The error for the user; None if it may be a bug."""
    if error.errno not in OF_THE_MACHINE:
        return None
    path = str(error.filename) if error.filename else "a file or folder"
    return UnavailableError(f"cannot use {path if len(path) < 200 else path[:200] + '...'}: {error.strerror}")


def require_at_least_one(**numbers: int | None) -> None:
    """Check the arguments of a function of the Python API, by name; None is fine.

    Raises:
        UsageError: one is below 1.
    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, and must be at least 1")


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that was probably meant, or list them all: the second half of an error message."""
    names = sorted(known)
    if match := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f"did you mean {match[0]!r}?"
    return f"known: {', '.join(names)}" if names else "there are none"
