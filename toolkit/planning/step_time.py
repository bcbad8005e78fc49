"""Trace -> seconds of a step: its computation, and what that does not hide of the communication."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.planning import communication
from toolkit.planning.roofline import Rates
from toolkit.planning.trace import Communication, Phase, Trace
from toolkit.recipe.batch import BatchSplit


@dataclass(frozen=True)
class StepTime:
    """How long a step takes, and what its processes send each other."""

    seconds: float
    collectives: Mapping[str, int]
    """Bytes that each process reduces, gathers and scatters, by collective."""
    communication: float | None
    """Seconds of all collectives; None where the links between the devices are not known."""
    exposed: float | None
    """Those that the computation does not hide, which are part of `seconds`."""


def time_of_step(traced: Trace, sizes: BatchSplit, rates: Rates, *, half: str, cores_are_shared: bool) -> StepTime:
    """How long a step takes.

    Args:
        traced: the step of one process.
        sizes: how it is split.
        rates: those of the device.
        half: the 16-bit format that it computes in.
        cores_are_shared: whether the processes share the rates rather than that each has them.
    """
    operations = list(traced.operations(accumulation=sizes.accumulation))

    def seconds_in(*phases: Phase) -> float:
        of_one = rates.seconds(((work, count) for work, count in operations if work.phase in phases), half=half)
        return of_one * sizes.processes if cores_are_shared else of_one

    forward, backward, optimizer = seconds_in("forward", "loss"), seconds_in("backward"), seconds_in("optimizer step")
    computed = forward + backward + optimizer
    collectives = _collectives(traced, sizes)
    sent = communication.by_collective(collectives)
    if rates.links is None:
        return StepTime(computed, sent, None, None)
    # DDP's all-reduces run beside the last pass of a step, FSDP2's collectives beside each.
    passes = sizes.accumulation if traced.shards > 1 else 1
    share = passes / sizes.accumulation
    beside: dict[Phase, float] = {"forward": forward * share, "backward": backward * share}
    spent = communication.time_of(collectives, links=rates.links, passes=passes, beside=beside)
    return StepTime(computed + spent.exposed, sent, spent.total, spent.exposed)


def _collectives(traced: Trace, sizes: BatchSplit) -> list[tuple[Communication, int]]:
    """Those of a step, each with its count."""
    if sizes.processes > 1 and traced.shards == 1:
        return [(one, 1) for one in communication.of_ddp(traced.totals()["gradients"], sizes.processes)]
    return list(traced.collectives(accumulation=sizes.accumulation))
