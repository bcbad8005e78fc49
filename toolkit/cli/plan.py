"""`toolkit recipe plan`: how much memory, disk and time a run would take, and what would make it fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import formatting
from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes
from toolkit.cli.validate import first_rows_or_refusal, in_words
from toolkit.errors import UsageError
from toolkit.system import environment_variables

if TYPE_CHECKING:
    from toolkit.api import Progress
    from toolkit.planning.compare import Alternatives
    from toolkit.planning.plan import Plan
    from toolkit.planning.roofline import Rates
    from toolkit.planning.variants import Option
    from toolkit.recipe.resolve import ResolvedRecipe


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
@click.option("--memory", metavar="SIZE", help="The memory that the run may take, in place of the device's: 12GiB.")
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Devices that share a step."
)
@click.option("--compare", is_flag=True, help="Show what memory strategies would change: peak, speed and fidelity.")
@click.option(
    "--search-seconds", type=click.FloatRange(min=0), default=60, show_default=True,
    help="How long to look for strategies with which it fits.",
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

    The first rows of the dataset are checked too, and what a run would refuse about them is reported.

    If a run does not fit, the plan is followed by what would make it fit; the exit status is still 0. It is 2 if the
    recipe leaves the choice to `auto` and nothing that it may choose fits.
    """
    from toolkit.cli.watch import watching
    from toolkit.recipe import resolve

    device = options.chosen_device(device_name)
    if memory:
        device = replace(device, memory_bytes=_bytes(memory))
    resolved = resolve.resolve(resolve.load(name, overrides=overrides, plugin_folders=plugin_folders), device)
    data = first_rows_or_refusal(resolved)
    from toolkit.events import ProgressReporter
    from toolkit.memory.budget import bytes_to_be_had, own_share
    from toolkit.planning.choose import chooser_of, resolve_auto
    from toolkit.planning.compare import alternatives
    from toolkit.planning.plan import make_plan

    chooser = chooser_of(resolved)
    whole = chooser.limit(resolved.device) if chooser else resolved.device.memory_bytes
    limit = own_share(whole, resolved.device, processes)
    if device_name is None and not memory:  # on this machine, as much as a run would find free now
        limit = min(limit, bytes_to_be_had(resolved.device, processes))
    asked, why = resolved, tuple[str, ...]()
    with watching(quiet=False, on_standard_error=True) as listener:
        progress = ProgressReporter(listener)
        rates = _rates(device_name, resolved, progress)
        progress("planning memory")
        if chooser:
            resolved, choice = resolve_auto(
                resolved, limit, rates=rates, processes=processes, progress=progress, seconds=search_seconds
            )
            why = choice.why
        blocks = _known_blocks(resolved, runs)
        made = make_plan(resolved, rates=rates, limit_bytes=limit, processes=processes, training_blocks=blocks)
    if not as_json:  # shown before the search, which takes longer
        _show(made, why, data)
    others = None
    if compare or not made.fits:
        with watching(quiet=False, on_standard_error=True) as listener:
            others = alternatives(
                asked,
                limit,
                rates=rates,
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
            render.text(f"Not all is shown: {others.not_all_was_tried}.")
    if others and not made.fits:
        render.text()
        render.text(_what_would_fit(others, made))


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise UsageError(f"--memory {text}: write a size, 12GiB or 800MB say") from None
    if size <= 0:
        raise UsageError(f"--memory {text}: a run needs some memory")
    return int(size)


def _rates(device_name: str | None, resolved: ResolvedRecipe, progress: Progress) -> Rates:
    from toolkit.planning import devices, roofline

    if device_name is not None:
        return roofline.published(devices.known(device_name))
    from toolkit.lifecycle.environment import check_device

    check_device(resolved)
    progress("measuring this machine")
    return roofline.measured(resolved.device)


def _known_blocks(resolved: ResolvedRecipe, runs: Path) -> int | None:
    """Blocks per epoch, if a run of this name has counted the same data."""
    from toolkit.lifecycle import comparison
    from toolkit.storage import run_directory
    from toolkit.system.files import read_json

    found = run_directory.newest_in_series(runs, resolved.name)
    if found is None or not (found / "data.json").is_file():
        return None
    decisive = ("dataset", "tokenizer", "objective")
    run = run_directory.RunDirectory(found)
    if any(key.startswith(decisive) for key in comparison.differences(run, resolved)):
        return None
    blocks: int = read_json(found / "data.json")["train"]["blocks"]
    return blocks


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
            "model": f"{made.parameters:,} parameters, {made.trained_parameters:,} trained",
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
        return "as long as the data is; a first run of this name counts it, and so does --set training.max_steps=N"
    return f"{made.steps:,} steps, {made.tokens:,} tokens"


def _checkpoint(made: Plan) -> str:
    return f"{formatting.size(made.checkpoint_bytes)}; {formatting.size(made.disk_bytes)} of disk for the run"


def _saves(made: Plan) -> str:
    if made.snapshot_bytes:
        where = "the host's memory" if made.device.kind == "cuda" else "memory"
        return f"in the background, from a copy of {formatting.size(made.snapshot_bytes)} in {where}"
    return "training waits for them"


def _time(made: Plan) -> str:
    total = f", {formatting.duration(made.seconds)} in all, without evaluations and saves" if made.seconds else ""
    return f"about {formatting.duration(made.seconds_per_step)} a step{total}"


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
        "Without the copy of the state for saves in the background, which is taken where it has room. What fits leaves "
        f"{SPARE_SHARE[first.device.kind]:.0%} free, as auto does."
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
        f"It would fit in {formatting.size(found.plan.peak_bytes)}, with {slower:+.0%} time a step and fidelity "
        f"{found.plan.fidelity}: memory: {entries}{waiting}{more}"
    )
