"""`toolkit recipe launch`: a run on many machines, as files for the engine that starts it there."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from toolkit import commands
from toolkit.cli import options, render
from toolkit.cli.completion import complete_launchers, complete_recipes
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.recipe.resolve import ResolvedRecipe

C = TypeVar("C", bound=Callable[..., Any])


JOB_OPTIONS = (
    click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Machines."),
    click.option(
        "--gpus-per-node", type=click.IntRange(min=0), default=0, show_default=True,
        help="GPUs of each machine, with a process for each; 0 is one process on the CPU.",
    ),
    click.option("--image", help="Container image."),
    click.option("--hours", type=options.FiniteRange(min=0, min_open=True), help="Time limit of the job."),
    click.option(
        "--grace", type=click.IntRange(min=1), metavar="SECONDS",
        help="Time between SIGTERM and SIGKILL; by default what a run here needed, a plan for --device, or 120.",
    ),
    click.option(
        "--runs-volume", default="runs", show_default=True, metavar="PLACE",
        help="Where all machines find the runs: a folder, volume, claim or bucket.",
    ),
    click.option(
        "--cache-volume", default="cache", show_default=True, metavar="PLACE", help="Likewise the cache of data."
    ),
    click.option(
        "--secret", "secrets", multiple=True, metavar="VARIABLE",
        help="Environment variable that holds a secret, such as HF_TOKEN; no file contains its value. Repeatable.",
    ),
    click.option(
        "--option", "assignments", multiple=True, metavar="OPTION=VALUE",
        help="Option of the launcher; `toolkit plugin show launcher ENGINE` lists them. Repeatable.",
    ),
    click.option(
        "--write", "folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
        help="Write the files into this folder instead of printing them.",
    ),
    click.option("--force", is_flag=True, help="Replace files that are there."),
    click.option("--submit", is_flag=True, help="Call the engine's own command with them: sbatch, sky, kubectl, ..."),
)  # fmt: skip


@dataclass(frozen=True)
class JobRequest:
    """What the options of a job say, whatever the job runs."""

    nodes: int
    gpus_per_node: int
    image: str | None
    hours: float | None
    grace: int | None
    runs_volume: str
    cache_volume: str
    secrets: tuple[str, ...]
    assignments: tuple[str, ...]
    folder: Path | None
    force: bool
    submit: bool

    def check(self, *, as_json: bool) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: something does.
        """
        if self.submit and self.folder is None:
            raise UsageError("--submit needs the files in a folder: add --write DIR")
        if as_json and self.folder is not None:
            raise UsageError("--json prints the files; remove it, or --write")


def job_options(command: C) -> C:
    """The options of a job, as the fields of `JobRequest`."""
    for option in reversed(JOB_OPTIONS):
        command = option(command)
    return command


def emit(
    request: JobRequest,
    resolved: ResolvedRecipe,
    *,
    engine: str,
    name: str,
    grace: int | None,
    for_any_device: bool,
    as_json: bool,
    plugin_folders: tuple[Path, ...] = (),
    sweep: tuple[str, ...] = (),
    workers: int = 1,
) -> None:
    """Print the files of a job, or write them and hand them to the engine, whose exit status the command then has.

    Args:
        request: what the options say.
        resolved: the recipe.
        engine: the launcher.
        name: the name of the run or of the sweep.
        grace: seconds between SIGTERM and SIGKILL, if known.
        for_any_device: whether the memory strategies are to decide where it runs.
        as_json: print JSON.
        plugin_folders: where the run is to look for plugins, besides the recipe's own folders.
        sweep: for a sweep, the options of its workers.
        workers: and their number.
    """
    from toolkit.api import Job
    from toolkit.lifecycle import job as jobs
    from toolkit.recipe.local_paths import absolute_paths

    job = Job(
        name=name,
        recipe=resolved.to_yaml(for_any_device=for_any_device, changed=absolute_paths(resolved, plugin_folders)),
        nodes=request.nodes,
        gpus_per_node=request.gpus_per_node,
        image=request.image,
        minutes=math.ceil(request.hours * 60) if request.hours else None,
        runs=request.runs_volume,
        cache=request.cache_volume,
        secrets=request.secrets,
        grace_seconds=grace or Job.grace_seconds,
        elastic=resolved.training.elastic,
        sweep=sweep,
        workers=workers,
    )
    job_files = jobs.made(jobs.launcher_of(resolved.recipe.registry, engine, request.assignments), job)
    folder = request.folder
    if as_json:
        render.as_json({"files": dict(job_files.files), "submission": job_files.submission})
    elif folder is None:
        for file, text in job_files.files.items():
            render.text(f"==> {file} <==\n{text}")
    else:
        for path in jobs.write(job_files.files, folder, replace=request.force):
            render.text(f"Wrote {path}")
        if request.submit:
            if status := jobs.submit(job_files.submission, folder):
                render.note(f"error: ended with status {status}, in {folder}: {shlex.join(job_files.submission)}")
            click.get_current_context().exit(status)
        render.text(f"Next, in {folder}: {shlex.join(job_files.submission)}")


@click.command(
    epilog=render.examples(
        "toolkit recipe launch ./mine.yaml --on slurm --nodes 4 --gpus-per-node 8 --hours 24",
        "toolkit recipe launch ./mine.yaml --on slurm --nodes 4 --gpus-per-node 8 --write jobs/mine --submit",
        "toolkit recipe launch ./mine.yaml --on kubeflow --image registry.example/pretrain-toolkit:cuda",
        "toolkit recipe launch ./mine.yaml --on skypilot --device h100 --gpus-per-node 8 --option accelerator=H100",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@click.option(
    "--on", "engine", required=True, metavar="ENGINE", shell_complete=complete_launchers,
    help="A launcher: slurm, skypilot, kubeflow, ray, compose, or a plugin.",
)  # fmt: skip
@job_options
@options.device
@options.overrides
@options.runs
@options.plugin_folders
@options.as_json
def launch(
    name: str,
    engine: str,
    device_name: str | None,
    overrides: tuple[str, ...],
    runs: Path,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
    **job: Any,
) -> None:
    """Start a recipe on many machines.

    Prints the files with which an engine starts the recipe, and the resolved recipe, which they run. On each machine
    torchrun starts `toolkit recipe run`, after the data has been prepared in the cache. Interrupted, the job is started
    again by the engine, and resumes. With --device, the recipe is resolved for those machines; without, the memory
    strategies decide there.

    Exit status: 0 done, 2 the engine cannot do this, 3 its command is missing; with --submit that command's own.
    """
    from toolkit.lifecycle import job as jobs

    request = JobRequest(**job)
    request.check(as_json=as_json)
    resolved = commands.resolve(name, overrides=overrides, device=device_name, plugin_folders=plugin_folders)
    jobs.check_shares(resolved, nodes=request.nodes, gpus_per_node=request.gpus_per_node)
    jobs.launcher_of(resolved.recipe.registry, engine, request.assignments)  # refused before minutes of planning
    grace = request.grace or jobs.known_grace_seconds(resolved, runs)
    if grace is None and device_name:
        from toolkit.cli.watch import watching

        with watching(quiet=False, on_standard_error=True) as listener:
            plan = commands.plan(
                name,
                overrides=overrides,
                device=device_name,
                processes=request.nodes * max(1, request.gpus_per_node),
                gpus_per_node=max(1, request.gpus_per_node) if resolved.device.kind == "cuda" else None,
                runs=runs,
                plugin_folders=plugin_folders,
                listener=listener,
            )
        grace = jobs.planned_grace_seconds(plan)
    emit(
        request,
        resolved,
        engine=engine,
        name=resolved.name,
        grace=grace,
        for_any_device=device_name is None,
        as_json=as_json,
        plugin_folders=plugin_folders,
    )
