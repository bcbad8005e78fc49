"""`toolkit recipe plan`: how much memory, disk and time a run would take, and what would make it fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import formatting
from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes
from toolkit.cli.validate import first_rows_or_refusal, in_words
from toolkit.system import environment_variables

if TYPE_CHECKING:
    from toolkit.planning.compare import Alternatives
    from toolkit.planning.plan import Plan
    from toolkit.planning.variants import Option


@click.command(
    epilog=render.examples(
        "toolkit recipe plan wikitext-gpt2",
        "toolkit recipe plan wikitext-gpt2 --device t4",
        "toolkit recipe plan wikitext-gpt2 --memory 4GiB --compare",
        "toolkit recipe plan ./mine.yaml --device a100-80g --json",
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
    help="Data-parallel processes.",
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

    device = device_called(device_name, memory=memory)
    asked = resolve.resolve(resolve.load(name, overrides=overrides, plugin_folders=plugin_folders), device)
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
            runs=runs,
            search_seconds=search_seconds,
            listener=listener,
        )
    made, why = planned.plan, planned.why
    if not as_json:  # shown before the search, which takes longer
        _show(made, why, data)
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
        render.as_json({**_as_data(made, why, others), "data": data})
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


def _show(made: Plan, why: Sequence[str], data: Mapping[str, Any]) -> None:
    device = made.device
    render.text(f"{made.recipe} on {device.name}, {formatting.size(made.limit_bytes)}")
    render.text()
    shares = ((part, size) for part, size in made.parts.items())
    render.table(
        ["MEMORY", "AT THE PEAK"],
        [
            *((part, formatting.size(size)) for part, size in shares),
            ("peak", f"{formatting.size(made.peak_bytes)}, {_when(made)}"),
        ],
    )
    render.text()
    render.pairs(
        {
            "fits": _verdict(made),
            "strategies": "; ".join(made.strategies) or "none",
            **({"chosen": "; ".join(why)} if why else {}),
            "model": f"{made.parameters:,} parameters, {made.trained_parameters:,} trainable",
            "data": in_words(data),
            "step": _step(made),
            "run": _run(made),
            "checkpoint": _checkpoint(made),
            "saves": _saves(made),
            "time": _time(made),
            "basis": f"memory {made.how_memory}. Time: {made.how_time}",
        }
    )


def _when(made: Plan) -> str:
    others = ", ".join(
        f"{name} {formatting.size(size)}" for name, size in made.phases.items() if name != made.peak_phase
    )
    return f"in the {made.peak_phase} phase ({others})"


def _verdict(made: Plan) -> str:
    needed, room = formatting.size(made.peak_bytes), formatting.size(made.limit_bytes)
    if made.fits:
        return f"yes, {needed} of {room}"
    return f"no: {needed} needed, {room} available, {formatting.size(made.peak_bytes - made.limit_bytes)} short"


def _step(made: Plan) -> str:
    cut = f"{made.accumulation} x {made.micro_batch_size}" + (f" on {made.processes}" if made.processes > 1 else "")
    return f"{made.sequences_per_step} sequences ({cut}), {made.tokens_per_step:,} tokens"


def _run(made: Plan) -> str:
    if made.steps is None:
        return "steps unknown until a run of this name has counted the data; --set training.max_steps=N sets them"
    return f"{made.steps:,} steps, {made.tokens:,} tokens"


def _checkpoint(made: Plan) -> str:
    return f"{formatting.size(made.checkpoint_bytes)}; the run needs {formatting.size(made.disk_bytes)} of disk"


def _saves(made: Plan) -> str:
    if made.snapshot_bytes:
        where = "host memory" if made.device.kind == "cuda" else "memory"
        return f"in the background, from a copy of {formatting.size(made.snapshot_bytes)} in {where}"
    return "training waits for the disk"


def _time(made: Plan) -> str:
    total = f", {formatting.duration(made.seconds)} in total, excluding evaluations and saves" if made.seconds else ""
    return f"about {formatting.duration(made.seconds_per_step)} per step{total}"


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
