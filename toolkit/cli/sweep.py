"""`toolkit recipe sweep`: runs of one recipe that differ in a few settings, compared by their held-out loss."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from toolkit import formatting
from toolkit.cli import options, render
from toolkit.cli.completion import complete_launchers, complete_recipes
from toolkit.cli.launch import JobRequest, emit, job_options
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.lifecycle.sweep import SweepPlan
    from toolkit.lifecycle.sweep_call import SweepResult
    from toolkit.report.sweep import SweepTrial


@click.command(
    epilog=render.examples(
        "toolkit recipe sweep ./mine.yaml --set training.learning_rate=1e-3,2e-3,4e-3",
        "toolkit recipe sweep ./mine.yaml --set training.learning_rate=1e-4..1e-2 --set training.weight_decay=0,0.1",
        "toolkit recipe sweep ./mine.yaml --set training.learning_rate=1e-3,2e-3 --set training.max_steps=500",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@click.option(
    "--set", "settings", metavar="KEY=VALUES", multiple=True, required=True,
    help="What to vary: a list, 1e-3,2e-3, or a range, 1e-4..1e-2; or one value for all trials. Repeatable.",
)  # fmt: skip
@click.option(
    "--trials", type=click.IntRange(1), metavar="N",
    help="Trials of a sweep with a range; 20 if not given. Lists alone are a grid, with a trial for each combination.",
)  # fmt: skip
@click.option("--name", "sweep_name", metavar="SWEEP", help="Name of the sweep and its folder; by default NAME-sweep.")
@click.option("--no-pruning", is_flag=True, help="Train every trial to its end.")
@click.option("--processes", metavar="N", help="Processes that train each trial, as for `recipe run`.")
@click.option(
    "--on", "engine", metavar="ENGINE", shell_complete=complete_launchers,
    help="Print the files with which a launcher starts --workers, as `recipe launch` does, instead of training here.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="With --on: machines that take trials at the same time.",
)  # fmt: skip
@job_options
@options.runs
@options.plugin_folders
@options.as_json
def sweep(
    name: str,
    settings: tuple[str, ...],
    trials: int | None,
    sweep_name: str | None,
    no_pruning: bool,
    processes: str | None,
    engine: str | None,
    workers: int,
    runs: Path,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
    **job: Any,
) -> None:
    """Find the settings with the lowest held-out loss.

    Trains the recipe once for each combination of the lists or, where a range is given, with values that Optuna draws
    from what the trials before have reached (TPE). After a third of its steps a trial is stopped if its held-out loss
    is above the median of the others there. Each trial is a run, RUNS/SWEEP/trial-000, that the toolkit's other
    commands read and resume. The same command goes on with an interrupted sweep; called several times at once, it
    shares the trials out.

    Exit status: 0 done, or the rest is with other workers, 1 no trial has finished, 2 invalid recipe or command, 3
    something is missing here, 129, 130 and 143 interrupted.
    """
    from toolkit.cli.output import run_goes_on_without_it
    from toolkit.cli.watch import watching
    from toolkit.lifecycle import sweep as sweeps
    from toolkit.lifecycle.sweep_call import SweepResult
    from toolkit.recipe.search_space import search_space

    request = JobRequest(**job)
    plan = sweeps.checked(
        name,
        search_space(settings),
        runs=runs,
        name=sweep_name,
        trials=trials,
        processes=processes,
        gpus_per_node=request.gpus_per_node if engine else None,
        prune=not no_pruning,
        plugin_folders=plugin_folders,
    )
    if engine:
        _emit(plan, request, settings, engine=engine, workers=workers, trials=trials, as_json=as_json)
        return
    _require_no_job_options()
    run_goes_on_without_it()
    with watching(quiet=False, on_standard_error=as_json) as listener:
        result = SweepResult.of(plan, sweeps.sweep(plan, listener))
    if as_json:
        render.as_json(asdict(result))
    else:
        _show(plan, result)
    result.require_one()


def _require_no_job_options() -> None:
    """Refuse options of a job where there is none.

    Raises:
        UsageError: one is given.
    """
    context = click.get_current_context()
    of_a_job = {"workers", *JobRequest.__dataclass_fields__}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name in of_a_job:
            raise UsageError(f"{parameter.opts[0]} is an option of a job; say which engine takes it: --on ENGINE")


def _emit(
    plan: SweepPlan,
    request: JobRequest,
    settings: tuple[str, ...],
    *,
    engine: str,
    workers: int,
    trials: int | None,
    as_json: bool,
) -> None:
    """Print or write the files that start workers of the sweep."""
    request.check(as_json=as_json)
    if request.nodes > 1:
        raise UsageError("a trial trains on one machine; --workers N lets N machines train one each")
    # The recipe beside them holds the others, its paths made absolute.
    words = [f"--set={setting}" for setting in settings if plan.space.has_to_be_set(setting)]
    words += [f"--trials={trials}"] if trials else []
    words += [] if plan.prune else ["--no-pruning"]
    words += [f"--processes={plan.processes}"] if plan.processes else []
    emit(
        request,
        plan.first,
        engine=engine,
        name=plan.folder.name,
        grace=request.grace,
        for_any_device=True,
        as_json=as_json,
        sweep=tuple(words),
        workers=workers,
    )


def _show(plan: SweepPlan, result: SweepResult) -> None:
    from toolkit.report.sweep import UNFINISHED, ranked

    keys = [axis.key for axis in plan.space.axes]
    render.text()
    render.table(
        ["TRIAL", "HELD-OUT LOSS", "STEP", *keys, "HOW"], (_row(trial, keys) for trial in ranked(result.trials))
    )
    if running := [trial.run for trial in result.trials if trial.how in UNFINISHED]:
        render.note(f"{', '.join(running)}: not finished yet, with other workers")
    if result.best:
        render.text(f"\nbest: {result.command}")
        for key in plan.space.at_the_end(result.best.values):
            render.note(f"{key}: the best value is at the end of its list; a better one may lie beyond")
    render.text(f"report: {result.report}")


def _row(trial: SweepTrial, keys: list[str]) -> list[str]:
    loss = "" if trial.loss is None else formatting.loss(trial.loss)
    step = "" if trial.step is None else f"{trial.step:,}"
    how = f"{trial.how}: {trial.error}" if trial.error else trial.how
    return [trial.run, loss, step, *(trial.values.get(key, "") for key in keys), how]
