"""A plan as lines of text: memory, step, communication, time and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit import formatting
from toolkit.cli import render
from toolkit.cli.validate import in_words

if TYPE_CHECKING:
    from toolkit.planning.plan import Plan

DONE = {"all-reduce": "all-reduced", "all-gather": "all-gathered", "reduce-scatter": "reduce-scattered"}
SHOWN_SHARE = 0.001
NOTABLE_SHARE = 0.02
"""Communication that lengthens a step by less than this is called hidden: the first and last of it always do."""


def show(made: Plan, why: Sequence[str], data: Mapping[str, Any], price: float | None) -> None:
    """Print a plan; `price`: of a device per hour, if it is given."""
    device = made.device
    room = formatting.size(made.limit_bytes)
    if made.processes == 1:
        render.text(f"{made.recipe} on {device.name}, {room}")
    elif devices(made) == 1:
        render.text(f"{made.recipe} on {device.name}, {room} for each of {made.processes:,} processes")
    else:
        render.text(f"{made.recipe} on {made.processes:,} x {device.name}, {room} each")
    render.text()
    shares = ((part, size) for part, size in made.parts.items())
    render.table(
        ["MEMORY", "AT THE PEAK, IN EACH PROCESS" if made.processes > 1 else "AT THE PEAK"],
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
            **({"communication": "; ".join(_communication(made))} if made.processes > 1 else {}),
            "run": _run(made),
            "checkpoint": _checkpoint(made),
            "saves": _saves(made),
            "time": _time(made),
            **({"cost": _cost(made, price)} if price is not None else {}),
            "basis": _basis(made),
        }
    )


def devices(made: Plan) -> int:
    """How many devices the run needs: the processes of a CPU share one host."""
    return made.processes if made.device.kind == "cuda" else 1


def _basis(made: Plan) -> str:
    basis = f"memory {made.how_memory}. Time: {made.how_time}"
    if made.how_communication:
        basis += f". Communication: {made.how_communication}"
    return basis


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
    cut = f"{made.accumulation} x {made.micro_batch_size}" + (f" on {made.processes:,}" if made.processes > 1 else "")
    return f"{made.sequences_per_step:,} sequences ({cut}), {made.tokens_per_step:,} tokens"


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


def _communication(made: Plan) -> Iterator[str]:
    """What the processes of a step send each other, and whether that makes it longer."""
    least = SHOWN_SHARE * sum(made.communication.values())  # not the norm of sharded gradients, which is a number
    sent = ", ".join(
        f"{formatting.size(size)} {DONE[name]}" for name, size in made.communication.items() if size >= least
    )
    hosts = f", on {made.hosts:,} hosts" if made.hosts > 1 else ""
    shared = f", state sharded over {made.shards:,}" if made.shards > 1 else ""
    yield f"{sent or 'nothing'} per step and process{hosts}{shared}"
    if made.communication_seconds is None or made.exposed_seconds is None:
        yield "how long that takes is not known here: the time is without it"
        return
    took = formatting.duration(made.communication_seconds)
    share = made.exposed_seconds / made.seconds_per_step
    if share < NOTABLE_SHARE:
        yield f"{took}, hidden behind computation"
    else:
        yield f"{took}, of which {formatting.duration(made.exposed_seconds)} is not hidden: {share:.0%} of the step"


def cost(made: Plan, price: float | None) -> dict[str, float]:
    """What the run costs and its device-hours, for `--json`; empty without a price, or without a length."""
    if price is None or made.seconds is None:
        return {}
    hours = made.seconds / 3600 * devices(made)
    return {"device_hours": hours, "cost": hours * price}


def _cost(made: Plan, price: float) -> str:
    known = cost(made, price)
    if not known:
        return "unknown without the number of steps"
    return f"about {known['cost']:,.2f}: {known['device_hours']:,.1f} device-hours at {price:,.2f}"
