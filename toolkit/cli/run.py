"""`toolkit run`: list, show, report and verify only read the files of run directories; export loads a model."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import formatting
from toolkit.cli import options, render, run_entries
from toolkit.cli.groups import NamingGroup
from toolkit.errors import UnavailableError
from toolkit.system.files import read_json

if TYPE_CHECKING:
    from toolkit.storage.run_directory import RunDirectory


@click.group(cls=NamingGroup, epilog=render.examples("toolkit run list", "toolkit run report quickstart"))
def run() -> None:
    """Inspect runs and their results.

    RUN is the name of a run in the folder of runs, or the path of a run's folder.
    """


@run.command("list", epilog=render.examples("toolkit run list", "toolkit run list --runs /data/runs --json"))
@options.runs
@options.as_json
def list_(runs: Path, as_json: bool) -> None:
    """List the runs, oldest first."""
    from toolkit.storage import runs_folder

    found, entries = runs_folder.all_runs(runs), []
    for directory in found:
        try:
            entries.append(_summary(directory))
        except UnavailableError as error:  # written by a later version, say
            render.note(str(error))
    if as_json:
        render.as_json(entries)
    elif not found:
        render.note(f"There are no runs in {runs}. Start one: toolkit recipe run quickstart")
    elif entries:
        headings = ["NAME", "STATUS", "STEP", "EVAL LOSS", "CREATED", "RECIPE"]
        render.table(headings, (_row(entry) for entry in entries))


def _row(entry: dict[str, Any]) -> list[str]:
    loss = "" if entry["eval_loss"] is None else formatting.loss(entry["eval_loss"])
    created = formatting.moment(entry["created"])
    return [entry["name"], entry["status"], f"{entry['step']:,}", loss, created, entry["recipe"]]


@run.command(epilog=render.examples("toolkit run show quickstart", "toolkit run show quickstart --json"))
@options.run_argument
@options.runs
@options.as_json
def show(run: str, runs: Path, as_json: bool) -> None:
    """Show one run.

    Its status, attempts, filters, results, checkpoints, and where its model is.
    """
    from toolkit.storage import runs_folder
    from toolkit.storage.run_directory import DATA_FILE

    found = runs_folder.find(run, runs)
    record, summary = found.record, _summary(found)
    checkpoints = [folder.name for folder in sorted(found.checkpoints.glob("checkpoint-*"), key=_step_of)]
    model = str(found.model) if (found.model / "config.json").is_file() else None
    if as_json:
        more = {"attempts": record["attempts"], "results": record["results"], "checkpoints": checkpoints}
        render.as_json({**summary, "folder": str(found.folder), **more, "model": model})
        return
    attempts = [run_entries.attempt_line(attempt) for attempt in record["attempts"]]
    if summary["status"] == "running":
        attempts[-1] = attempts[-1].replace("killed, no end recorded", "still running")
    entries = {
        "run": summary["name"],
        "recipe": summary["recipe"],
        "status": f"{summary['status']}, step {summary['step']:,}",
        "created": formatting.moment(summary["created"]),
        **(
            {"branched at": "step {step:,} of {run} ({folder})".format(**record["parent"])}
            if "parent" in record
            else {}
        ),
        **({"grace": f"{record['grace_seconds']} s after SIGTERM"} if "grace_seconds" in record else {}),
        "attempts": "\n".join(attempts) or "none",
        **(run_entries.data(read_json(file)) if (file := found.folder / DATA_FILE).is_file() else {}),
        **run_entries.results(record),
        "checkpoints": ", ".join(checkpoints) or "none",
        "model": model or "none yet",
    }
    render.pairs(entries)


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


@run.command(
    epilog=render.examples("toolkit run report quickstart", "toolkit run report quickstart --output /tmp/report.html")
)
@options.run_argument
@click.option(
    "--output", "-o", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
    help="Output file; by default report.html in the run's folder.",
)  # fmt: skip
@options.runs
def report(run: str, output: Path | None, runs: Path) -> None:
    """Write a report on a run.

    One HTML file that needs no network: curves, data statistics, samples, settings and their origins.
    """
    from toolkit.report import page
    from toolkit.storage import runs_folder

    found = runs_folder.find(run, runs)
    target = output or found.folder / "report.html"
    page.write(found, target)
    render.text(f"Wrote {target}")


@run.command(epilog=render.examples("toolkit run verify quickstart", "toolkit run verify quickstart --data --json"))
@options.run_argument
@click.option("--data", "with_data", is_flag=True, help="Also read all documents and tokens again, and hash them.")
@options.runs
@options.as_json
@click.pass_context
def verify(ctx: click.Context, run: str, with_data: bool, runs: Path, as_json: bool) -> None:
    """Check a run's files.

    Every checkpoint against its manifest, and every exported folder against what was written: size and SHA-256 of
    each file. With --data also the documents, and the tokens in the cache. Exit status 1 if anything has changed.
    """
    from toolkit.storage import checkpoint, runs_folder

    found = runs_folder.find(run, runs)
    faults: dict[str, str | None] = {
        f"checkpoints/{folder.name}": checkpoint.fault(folder, run_id=found.id)
        for _, folder in sorted(checkpoint.numbered(found.checkpoints))
    }
    for name, files in found.record.get("exports", {}).items():
        faults[name] = checkpoint.difference(found.folder / name, files)
    if with_data:
        from toolkit.cli.watch import watching
        from toolkit.lifecycle.data_verification import data_faults

        with watching(quiet=False, on_standard_error=True) as listener:
            faults |= data_faults(found, listener)
    if as_json:
        render.as_json([{"name": name, "intact": reason is None, "reason": reason} for name, reason in faults.items()])
    elif not faults:
        render.note(f"{found.name} has no checkpoint and no model yet")
    else:
        rows = ([name, "intact" if reason is None else "DAMAGED", reason or ""] for name, reason in faults.items())
        render.table(["WHAT", "STATE", "REASON"], rows)
    if any(faults.values()):
        ctx.exit(1)


@run.command(
    epilog=render.examples(
        "toolkit run export quickstart",
        "toolkit run export quickstart --exporter push-to-hub --recipe ./mine.yaml",
        "toolkit run export quickstart --checkpoint 500 --json",
        "toolkit run export quickstart --average 4",
    )
)
@options.run_argument
@click.option(
    "--exporter", "exporters", metavar="NAME", multiple=True,
    help="Run only this exporter of the recipe; by default all of them. Repeatable.",
)  # fmt: skip
@click.option(
    "--checkpoint", "step", metavar="STEP", type=click.IntRange(min=0),
    help="Export the checkpoint of this step; by default the newest intact one.",
)  # fmt: skip
@click.option(
    "--average", metavar="N", type=click.IntRange(min=1), default=1,
    help="Export the mean of the weights of the last N checkpoints up to that one.",
)  # fmt: skip
@click.option(
    "--recipe", metavar="FILE",
    help="Recipe whose exporters to run; by default the one that the run was started with.",
)  # fmt: skip
@options.runs
@options.plugin_folders
@options.as_json
def export(
    run: str,
    exporters: tuple[str, ...],
    step: int | None,
    average: int,
    recipe: str | None,
    runs: Path,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Export a run again, or a checkpoint of it.

    Runs the exporters of a recipe on a run that has finished or was stopped, without training and without its data.
    The last step of a finished run is exported to the exporter's own folder, any other checkpoint to one that ends in
    its step: model-500. The mean of the last four checkpoints up to it goes to model-500-average-4.
    """
    from toolkit.cli.watch import watching
    from toolkit.storage import runs_folder

    found = runs_folder.find(run, runs)
    with watching(quiet=False, on_standard_error=as_json) as listener:
        from toolkit.lifecycle import export_run

        exported = export_run.export_run(
            found,
            listener,
            recipe=recipe,
            exporters=exporters,
            step=step,
            average=average,
            plugin_folders=plugin_folders,
        )
    done = [{"exporter": event.exporter, "folder": event.folder} for event in exported.done]
    if as_json:
        averaged = {"averaged": exported.averaged} if average > 1 else {}
        render.as_json({"run": found.name, "step": exported.step, **averaged, "exported": done})
    elif average > 1:
        steps = ", ".join(f"{step:,}" for step in exported.averaged)
        render.text(f"Exported: the mean of the steps {steps} of {found.name}")
    else:
        render.text(f"Exported: step {exported.step:,} of {found.name}")


def _summary(run: RunDirectory) -> dict[str, Any]:
    record, metrics = run.record, run.metrics()
    losses = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    return {
        "name": run.name,
        "recipe": record["recipe"],
        "status": _status(run),
        "step": max((line["step"] for line in metrics), default=0),
        "eval_loss": losses[-1] if losses else None,
        "created": record["created"],
    }


def _status(run: RunDirectory) -> str:
    """The run's status; `stopped` for one that was killed: it says `running`, but no process holds its lock."""
    if run.status == "running" and not _is_locked(run.folder / "lock"):
        return "stopped"
    return run.status


def _is_locked(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks, where it cannot be known
            return False
    return False
