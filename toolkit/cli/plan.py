"""`toolkit recipe plan`: how much memory, disk and time a run would take, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import formatting
from toolkit.cli import options, plan_report, render
from toolkit.cli.completion import complete_recipes
from toolkit.cli.validate import first_rows_or_refusal
from toolkit.system import environment_variables

if TYPE_CHECKING:
    from toolkit.data.mixture_plan import MixturePlan
    from toolkit.planning.compare import Alternatives
    from toolkit.planning.plan import Plan
    from toolkit.planning.variants import Option
    from toolkit.recipe.resolve import ResolvedRecipe


@click.command(
    epilog=render.examples(
        "toolkit recipe plan wikitext-gpt2",
        "toolkit recipe plan wikitext-gpt2 --device t4",
        "toolkit recipe plan wikitext-gpt2 --memory 4GiB --compare",
        "toolkit recipe plan ./mine.yaml --device a100-80g --json",
        "toolkit recipe plan ./mine.yaml --device h100 --processes 64 --strategy shard --price 2.50",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@options.device
@click.option("--memory", metavar="SIZE", help="Memory limit of the run, instead of the device's memory: 12GiB.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Data-parallel processes, each with a device.",
)
@click.option(
    "--gpus-per-node",
    type=click.IntRange(min=1),
    show_default="8",
    help="GPUs of a host; beyond it, processes communicate over the network.",
)
@click.option(
    "--network",
    metavar="GBIT/S",
    type=options.FiniteRange(min=0.001),
    help="Rate of a host's network, all ports together. Default: that of the usual servers with this device.",
)
@click.option(
    "--strategy",
    "strategies",
    metavar="NAME",
    multiple=True,
    help="Plan with this memory strategy, too: shard, or with options '{plugin: shard, within_host: true}'. "
    "Repeatable.",
)
@click.option(
    "--price",
    metavar="AMOUNT",
    type=options.FiniteRange(min=0, min_open=True),
    help="Price of a device per hour, to tell the cost of the run.",
)
@click.option("--compare", is_flag=True, help="Compare memory strategies by peak memory, speed and fidelity.")
@click.option(
    "--search-seconds", type=click.FloatRange(min=0), default=60, show_default=True,
    help="Time limit of the search for strategies that make the run fit.",
)  # fmt: skip
@options.overrides
@options.runs
@options.plugin_folders
@options.as_json
@environment_variables.set_aside()
def plan(
    name: str,
    device_name: str | None,
    memory: str | None,
    processes: int,
    gpus_per_node: int | None,
    network: float | None,
    strategies: tuple[str, ...],
    price: float | None,
    compare: bool,
    search_seconds: float,
    overrides: tuple[str, ...],
    runs: Path,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Estimate a run's memory, disk and time.

    The plan comes from the run's own training step, traced without allocating its memory: no weights are downloaded
    and no GPU is needed, so you can plan here for another machine. Configs and tokenizers are fetched from the Hub.

    The first rows of the dataset are checked too, and anything that a run would refuse is reported.

    If a run does not fit, the plan is followed by what would make it fit; the exit status is still 0. It is 2 if the
    recipe leaves the choice to `auto` and nothing that `auto` may choose fits.
    """
    from toolkit.cli.watch import watching
    from toolkit.planning.devices import device_called
    from toolkit.recipe import resolve
    from toolkit.recipe.added_strategies import with_strategies

    device = device_called(device_name, memory=memory)
    recipe = resolve.load(name, overrides=overrides, plugin_folders=plugin_folders)
    asked = resolve.resolve(with_strategies(recipe, strategies), device)
    data = first_rows_or_refusal(asked)
    from toolkit.events import ProgressReporter
    from toolkit.lifecycle.device_plan import plan_of
    from toolkit.planning.compare import alternatives

    with watching(quiet=False, on_standard_error=True) as listener:
        planned = plan_of(
            asked,
            device=device_name,
            memory=memory,
            processes=processes,
            gpus_per_node=gpus_per_node,
            network=network,
            runs=runs,
            search_seconds=search_seconds,
            listener=listener,
        )
    made, why = planned.plan, planned.why
    if not as_json:  # shown before the search, which takes longer
        plan_report.show(made, why, data, price)
        if asked.training.shard and made.shards == 1:
            render.note("shard has no effect in one process; --processes N plans several")
        if planned.mixture:
            _show_mixture(planned.mixture, asked, made.steps)
    others = None
    if compare or not made.fits:
        with watching(quiet=False, on_standard_error=True) as listener:
            others = alternatives(
                asked,
                made.limit_bytes,
                rates=planned.rates,
                processes=processes,
                seconds=search_seconds,
                compare=compare,
                best=not made.fits,
                progress=ProgressReporter(listener),
            )
    if as_json:
        mixture = {"mixture": planned.mixture.as_dict()} if planned.mixture else {}
        render.as_json({**_as_data(made, why, others), "data": data, **mixture, **plan_report.cost(made, price)})
        return
    if others and others.rows:
        render.text()
        _show_rows(others.rows)
        if others.not_all_was_tried:
            render.text(f"The table is incomplete: {others.not_all_was_tried}.")
    if others and not made.fits:
        render.text()
        render.text(_what_would_fit(others, made))


def _as_data(made: Plan, why: Sequence[str], others: Alternatives | None) -> dict[str, Any]:
    data = {**asdict(made), "fits": made.fits, "why": why}
    if others and others.rows:
        data["compared"] = [_summary(row.plan) for row in others.rows]
    if others and not made.fits:
        best = others.best
        saves = {"save_in_background": best.resolved.training.save_in_background} if best else {}
        data["would_fit"] = {**_summary(best.plan), **saves} if best else None
    return data


def _summary(made: Plan) -> dict[str, Any]:
    fields = ("strategies", "fidelity", "peak_bytes", "fits", "seconds_per_step")
    return {field: getattr(made, field) for field in fields}


def _show_mixture(mixture: MixturePlan, asked: ResolvedRecipe, steps: int | None) -> None:
    from toolkit.training.sources import too_small

    render.text()
    render.table(["SOURCE", "STAGE", "SHARE", "TOKENS", "PASSES"], mixture.rows())
    if mixture.available is None:
        render.text("Passes are unknown until a run of this name has counted the sources.")
    for caution in mixture.worn():
        render.text(f"{caution}.")
    for problem in too_small(asked, mixture, steps or 0):
        render.note(f"a run would be refused here: {render.problem_line(problem)}")


def _show_rows(rows: Sequence[Option]) -> None:
    from toolkit.planning.choose import SPARE_SHARE

    first = rows[0].plan
    render.table(
        ["PEAK", "SPEED", "FITS", "FIDELITY", "STRATEGIES"],
        [
            [
                formatting.size(row.plan.peak_bytes),
                f"{first.seconds_per_step / row.plan.seconds_per_step:.2f}x",
                "yes" if row.plan.fits else "no",
                row.plan.fidelity,
                "; ".join(row.plan.strategies) or "none",
            ]
            for row in rows
        ],
    )
    render.text(
        "Peaks exclude the copy of the state for background saves, which is made only where it fits. A run counts as "
        f"fitting if it leaves {SPARE_SHARE[first.device.kind]:.0%} free, as with auto."
    )


def _what_would_fit(others: Alternatives, made: Plan) -> str:
    found = others.best
    if found is None:
        return others.too_small
    entries = "; ".join(found.plan.strategies) or "[]"
    waiting = (
        ", and training.save_in_background: false" if made.snapshot_bytes and not found.plan.snapshot_bytes else ""
    )
    more = f"; {others.not_all_was_tried}" if others.not_all_was_tried else ""
    slower = found.plan.seconds_per_step / made.seconds_per_step - 1
    return (
        f"It would fit in {formatting.size(found.plan.peak_bytes)}, with {slower:+.0%} time per step and fidelity "
        f"{found.plan.fidelity}: memory: {entries}{waiting}{more}"
    )
