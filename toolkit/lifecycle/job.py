"""A job for an engine of many machines: its files by a launcher, written to a folder, and handed to the engine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from toolkit.api import Job, Launcher
from toolkit.errors import OptionError, UnavailableError, UsageError
from toolkit.recipe.batch import BatchSplit, check_shards
from toolkit.recipe.document import Document, with_override
from toolkit.recipe.option_errors import option_error
from toolkit.recipe.schema import component
from toolkit.system.files import make_folder, read_json, write_text

if TYPE_CHECKING:
    from toolkit.planning.plan import Plan
    from toolkit.recipe.resolve import ResolvedRecipe
    from toolkit.registry import Registry

DISK_BYTES_PER_SECOND = 200e6
"""At which a checkpoint is assumed to be written, by a network file system that others use too."""

LEAST_GRACE_SECONDS = 30
"""Also for a small run: the processes and torchrun have to end, perhaps on a busy host. Kubernetes' default."""


@dataclass(frozen=True)
class JobFiles:
    """What a launcher has made of a job."""

    files: Mapping[str, str]
    """Text by file name, the recipe's last."""
    submission: tuple[str, ...]
    """The engine's command, for the folder with the files."""


def launcher_of(registry: Registry, name: str, assignments: Iterable[str] = ()) -> Launcher:
    """The launcher of this name, with options as OPTION=VALUE.

    Raises:
        PluginError: there is none, or it cannot be used.
        UsageError: it refuses an option.
    """
    loaded = registry.load("launcher", name)
    given = Document("--option", "", {}, {})
    for assignment in assignments:
        given = with_override(given, assignment)
    try:
        launcher: Launcher = component(registry, "launcher", name, given.data).plugin
    except ValidationError as errors:
        refused = (
            f"{'.'.join(map(str, error['loc']))}: {option_error(error, loaded)}"
            for error in errors.errors(include_url=False)
        )
        raise UsageError(f"--option of {name}: {'; '.join(refused)}") from None
    return launcher


def check_shares(resolved: ResolvedRecipe, *, nodes: int, gpus_per_node: int) -> None:
    """Check that the processes can share a step and a model; in an elastic run, those of every number of nodes.

    Raises:
        RecipeError: they cannot.
    """
    per_host = max(1, gpus_per_node)
    for number in range(1 if resolved.training.elastic else nodes, nodes + 1):
        BatchSplit.of(resolved, processes=number * per_host)
        check_shards(resolved, processes=number * per_host, per_host=per_host)


def known_grace_seconds(resolved: ResolvedRecipe, runs: Path) -> int | None:
    """What the newest run of this recipe was found to need after SIGTERM; None if there is none here."""
    from toolkit.storage import runs_folder

    found = runs_folder.newest_in_series(runs, resolved.name)
    measured: int | None = read_json(found / "run.json").get("grace_seconds") if found else None
    return None if measured is None else max(LEAST_GRACE_SECONDS, measured)


def planned_grace_seconds(plan: Plan) -> int:
    """What a run is likely to need after SIGTERM, by its plan; not below the default, for it is an estimate."""
    from toolkit.training.pace import grace_seconds

    save = plan.checkpoint_bytes / DISK_BYTES_PER_SECOND
    return max(Job.grace_seconds, grace_seconds(step=plan.seconds_per_step, save=save))


def made(launcher: Launcher, job: Job) -> JobFiles:
    """Let the launcher write the job.

    Raises:
        UsageError: the engine cannot do what is asked for.
    """
    if job.sweep and not launcher.fans_out:
        raise UsageError(f"{type(launcher).__name__} starts no sweep; slurm, kubeflow and compose start its workers")
    try:
        return JobFiles({**launcher.files(job), job.recipe_file: job.recipe}, launcher.submission(job))
    except OptionError as refused:
        raise UsageError(refused.message) from None


def write(files: Mapping[str, str], folder: Path, *, replace: bool = False) -> list[Path]:
    """Write the files into a folder; all of them or, if one is there already, none.

    Raises:
        UsageError: one is there already, and is not to be replaced.
    """
    paths = [folder / name for name in files]
    if (there := [str(path) for path in paths if path.exists()]) and not replace:
        raise UsageError(f"{', '.join(there)} already there, and not changed: --force replaces, or name another folder")
    make_folder(folder)
    for path, text in zip(paths, files.values(), strict=True):
        write_text(path, text)
    return paths


def submit(submission: tuple[str, ...], folder: Path) -> int:
    """Call the engine's command in the folder with the files, and return its exit status.

    Raises:
        UnavailableError: it is not installed here.
    """
    if shutil.which(submission[0]) is None:
        raise UnavailableError(
            f"the command {submission[0]} is not installed here: install it or, where it is, call in {folder}: "
            f"{' '.join(submission)}"
        )
    return subprocess.run(submission, cwd=folder, check=False).returncode
