"""Several processes of a run on this machine, started by torch's elastic launcher, the one of torchrun.

Which GPU, which rank, where they meet, and what ends when: that is the launcher's. Added here are the exit statuses of
a single process, one message instead of a traceback of the launcher, and time to save after a signal.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from toolkit.api import Device
from toolkit.errors import UnavailableError, UsageError
from toolkit.recipe.batch import can_share
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.system import control_group, distributed, endings, signals, torchrun
from toolkit.system.environment_variables import THREADS
from toolkit.system.files import make_folder
from toolkit.system.threads import granted_processors, processors
from toolkit.system.torchrun import Outcome

SAVING_SECONDS = 24 * 3600
"""How long the launcher waits after a signal before it kills; whoever sent the signal is less patient."""
LOGS = ".processes"
"""Folder in that of the runs for what the processes other than the main one write."""


@dataclass(frozen=True)
class GroupEnding:
    """How a group of processes ended, if it failed or was interrupted."""

    exit_status: int
    text: str
    """What to tell; empty if nobody has said anything."""
    rank: int
    is_failure: bool
    """Whether something has failed, rather than that a signal has stopped the run."""
    logs: Path
    """Of the processes other than the main one: a folder for each rank."""

    @property
    def is_worth_a_restart(self) -> bool:
        """Whether another try may go better: not where a signal has stopped it, or recipe or machine are refused."""
        return self.is_failure and self.exit_status not in (UsageError.exit_status, UnavailableError.exit_status)


def count(wanted: str, device: Device) -> int:
    """The number of processes that `--processes` asks for.

    Raises:
        UsageError: it is none, or this process is itself one of several.
        UnavailableError: there are fewer GPUs.
    """
    if wanted == "auto":
        number = device.count if device.kind == "cuda" else 1
    elif wanted.isdecimal() and int(wanted):
        number = int(wanted)
    else:
        raise UsageError(f"--processes {wanted}: a number of processes, or auto for one on each GPU")
    distributed.check()
    if number > 1 and distributed.world_size() > 1:
        raise UsageError(
            f"--processes {wanted}: a launcher has already started {distributed.world_size()} processes, of which "
            f"this is one; leave the option out there"
        )
    if device.kind == "cuda" and number > device.count:
        raise UnavailableError(
            f"--processes {number}: this machine has {device.count} GPU{'s' * (device.count > 1)}, and each process "
            f"needs one; --processes auto starts as many as there are"
        )
    return number


def count_again(before: int, resolved: ResolvedRecipe, device: Device) -> int:
    """The number of processes for a restart: as before or, if the recipe is elastic and GPUs are lost, fewer.

    Raises:
        UnavailableError: GPUs are lost, and the recipe is not elastic, or what is left cannot share its batch.
    """
    if device.kind == "cuda" and device.count < before:
        fewer = [number for number in range(device.count, 0, -1) if can_share(resolved, number)]
        if not resolved.training.elastic or not fewer:
            cure = "training.elastic: true goes on with fewer" if fewer else "they cannot share the global batch evenly"
            raise UnavailableError(f"of {before} GPUs {device.count} are left; {cure}")
        return fewer[0]
    return before


def start(words: Sequence[str], number: int, runs: Path) -> GroupEnding | None:
    """Run `toolkit WORDS` in `number` processes, and wait for their end.

    The first has this process's output; what the others write goes to files, which are removed if all goes well. A
    signal to stop, or SIGUSR1, reaches all of them.

    Returns:
        None if all have succeeded.
    """
    from torch.distributed.launcher.api import elastic_launch

    name = uuid.uuid4().hex[:8]
    config = _config(name, number, runs / LOGS)
    with _environment(number), signals.left_to_a_library(), _launcher_quiet():
        signal.signal(signal.SIGUSR1, _pass_on)
        # -P: a folder of the user's that is named toolkit is not this package.
        ended = torchrun.outcome(lambda: elastic_launch(config, sys.executable)("-P", "-m", "toolkit", *words))
    if ended.exit_status:
        return _ending(runs, name, ended)
    _remove_logs(runs, name)
    return None


def _config(name: str, number: int, logs: Path) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    make_folder(logs)
    # An older torch does not have it, and kills half a minute after the signal.
    patient: dict[str, Any] = {"shutdown_timeout": SAVING_SECONDS}
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="127.0.0.1",  # a container's own name may not lead to it
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(
            log_dir=str(logs), redirects={rank: Std.ALL if rank else Std.NONE for rank in range(number)}
        ),
        signals_to_handle=",".join(one.name for one in signals.numbers()),
        **{option: value for option, value in patient.items() if option in known},
    )


@contextmanager
def _environment(number: int) -> Iterator[None]:
    """What the processes are to find in their environment: who has started them, and their share of the processors."""
    threads = max(1, granted_processors(processors(), control_group.processor_quota()) // number)
    added: Mapping[str, str] = {endings.STARTED_BY: str(os.getpid())} | (
        {} if os.environ.get(THREADS) else {THREADS: str(threads)}
    )
    before = {variable: os.environ.get(variable) for variable in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value


@contextmanager
def _launcher_quiet() -> Iterator[None]:
    """Silence the launcher's log: what it says of an error would bury what the process itself has said."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def _pass_on(number: int, frame: FrameType | None) -> None:
    import psutil

    for child in psutil.Process().children():
        child.send_signal(number)


def _ending(runs: Path, name: str, ended: Outcome) -> GroupEnding:
    """What to tell of this group, and with which status to end: that of the process that is the cause."""
    logs = next((runs / LOGS).glob(f"{name}_*/attempt_0"), runs / LOGS)  # there is none before the processes start
    found = endings.cause(endings.read(logs.glob("*/error.json")))
    if found is None or found.kind in ("lost", "interrupted"):
        # The launcher ends by SIGTERM those that are left when one has failed; they have lost it, or been interrupted.
        killed = {rank: -status for rank, status in ended.failed.items() if status < 0 and -status != signal.SIGTERM}
        for rank, number in killed.items():
            perhaps = ", perhaps for want of memory" if number == signal.SIGKILL else ""
            text = f"error: killed by {signal.Signals(number).name}{perhaps}; the same command resumes the run"
            return GroupEnding(128 + number, text, rank, is_failure=True, logs=logs)
    if found is None:
        return GroupEnding(ended.exit_status, "", 0, is_failure=bool(ended.failed), logs=logs)
    return GroupEnding(found.exit_status, found.text, found.rank, is_failure=found.kind != "interrupted", logs=logs)


def _remove_logs(runs: Path, name: str) -> None:
    for folder in (runs / LOGS).glob(f"{name}_*"):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # those of another command are in it
        (runs / LOGS).rmdir()
