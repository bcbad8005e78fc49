"""ResolvedRecipe -> Plan: how much memory, disk and time a run will take.

Decides nothing: `choose` does. The bytes of tensors are traced (`fake_step`); the rest is added here, each part under
its own name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.api import Device, ExportBytes, Fidelity
from toolkit.planning import communication
from toolkit.planning.overhead import CUDA_ALLOCATION_GRANULARITY, framework_bytes, how_reckoned
from toolkit.planning.own_process import in_own_process
from toolkit.planning.roofline import Rates
from toolkit.planning.step_time import time_of_step
from toolkit.planning.trace import KINDS, Moment, Trace
from toolkit.planning.words import named
from toolkit.planning.worth_compiling import is_expected
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.length import total_steps
from toolkit.recipe.resolve import ResolvedRecipe

MEMORY_PARTS = (
    "framework", *KINDS, "gradient buckets", "broadcast buffers", "whole model", "snapshot", "exported copies"
)  # fmt: skip
"""What memory goes to, in the order of the table's rows."""
OFFLOADED = ("weights", "gradients", "optimizer")
"""What FSDP2's CPU offload keeps in host memory."""
BROADCAST_BUFFERS_BYTES = 2 * 250 * 2**20
"""DistributedDataParallel sends the weights in pieces of 250 MiB, two at a time."""


@dataclass(frozen=True)
class Plan:
    """How much memory, disk and time a run will take."""

    recipe: str
    strategies: tuple[str, ...]
    """The memory strategies, each with the options that differ from their defaults."""
    fidelity: Fidelity
    device: Device
    limit_bytes: int
    """How much of the device's memory the run may use."""
    parameters: int
    trained_parameters: int

    peak_bytes: int
    peak_phase: str
    """The phase of the run in which the peak comes."""
    parts: Mapping[str, int]
    """What is held at the peak; adds up to it."""
    phases: Mapping[str, int]
    """The peak of each phase."""
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    state_bytes: int
    """What a save in the background copies: the trained weights and the optimizer state."""
    snapshot_bytes: int
    """The copy of the state that is written in the background; 0 where training waits for each save."""

    micro_batch_size: int
    accumulation: int
    processes: int
    hosts: int
    shards: int
    """How many processes share the weights, gradients and optimizer state that one has without sharding."""
    sequences_per_step: int
    tokens_per_step: int
    steps: int | None
    """None as long as the number of tokens is unknown."""
    tokens: int | None

    checkpoint_bytes: int
    disk_bytes: int
    """The checkpoints kept, one more while it is being written, and the exported model."""

    flops_per_step: int
    """Floating-point operations of one step on one device, counted in the traced step."""
    communication: Mapping[str, int]
    """Bytes that each process reduces, gathers and scatters in a step, by collective."""
    communication_seconds: float | None
    """Time of a step's collectives; None where the links between the devices are not known."""
    exposed_seconds: float | None
    """The part of it that is not hidden behind computation."""
    seconds_per_step: float
    """With the exposed part of the communication, if that is known."""
    seconds: float | None
    """Time of all steps, without evaluations and saves."""
    how_memory: str
    how_time: str
    how_communication: str
    """The links that the processes use, with their rates; empty where there are none, or they are not known."""

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit."""
        return self.peak_bytes <= self.limit_bytes


def make_plan(
    resolved: ResolvedRecipe,
    *,
    rates: Rates,
    limit_bytes: int | None = None,
    processes: int = 1,
    training_blocks: int | None = None,
) -> Plan:
    """Trace the recipe's step and work out what the run takes.

    Args:
        resolved: the recipe, for the device that it will run on.
        rates: those of that device.
        limit_bytes: what it may use; the device's memory, if not given.
        processes: how many of these devices share each step.
        training_blocks: blocks per epoch, where that is known.

    Raises:
        RecipeError, UnavailableError: a plugin refuses, as it would in a run.
        PluginError: a plugin cannot be planned.
    """
    traced, sizes = _traced(resolved, processes, rates.per_host)
    return reckon(resolved, traced, sizes, rates=rates, limit_bytes=limit_bytes, training_blocks=training_blocks)


def peak_bytes(resolved: ResolvedRecipe, *, processes: int = 1) -> int:
    """The peak alone, for which the device's rates are not needed.

    Raises:
        RecipeError, UnavailableError: a plugin refuses, as it would in a run.
        PluginError: a plugin cannot be planned.
    """
    traced, sizes = _traced(resolved, processes)
    held = _held(resolved, traced, sizes, snapshot=_snapshot_bytes(resolved, traced, resolved.device.memory_bytes))
    return max(sum(parts.values()) for parts in held.values())


def several(processes: int, per_host: int | None) -> dict[str, Any]:
    """What a trace has to know of several processes; by default they are where this process has been started."""
    return {"processes": processes, "per_host": per_host or int(os.environ.get("LOCAL_WORLD_SIZE", processes))}


def _traced(resolved: ResolvedRecipe, processes: int, per_host: int | None = None) -> tuple[Trace, BatchSplit]:
    from toolkit.planning import fake_step

    framework_bytes(resolved.device)  # measured in this process, before anything else adds to its memory
    sizes = BatchSplit.of(resolved, processes=processes)
    options: dict[str, Any] = {"micro_batch_size": sizes.micro_batch_size, "accumulation": sizes.accumulation}
    traced = in_own_process(fake_step.trace, resolved, **options, **several(processes, per_host))
    return traced, sizes


def reckon(
    resolved: ResolvedRecipe,
    traced: Trace,
    sizes: BatchSplit,
    *,
    rates: Rates,
    limit_bytes: int | None = None,
    training_blocks: int | None = None,
) -> Plan:
    """The plan that follows from a trace of this recipe."""
    device, training, totals = resolved.device, resolved.training, traced.totals()
    limit = limit_bytes or device.memory_bytes
    optimizer = totals["optimizer"]
    snapshot = _snapshot_bytes(resolved, traced, limit)
    held = _held(resolved, traced, sizes, snapshot=snapshot)
    phases = {phase: sum(parts.values()) for phase, parts in held.items()}
    peak_phase = max(phases, key=lambda phase: phases[phase])
    parts = held[peak_phase]
    block_size = resolved.recipe.objective.plugin.block_size
    steps = total_steps(training, block_size=block_size, blocks=training_blocks)
    operations = list(traced.operations(accumulation=sizes.accumulation))
    half = "fp16" if training.precision == "fp16" else "bf16"
    eager, compiled = (
        time_of_step(course, sizes, rates, half=half, cores_are_shared=device.kind != "cuda")
        for course in (traced, traced.compiled or traced)
    )
    sharded = traced.shards > 1
    is_compiled = is_expected(
        training, device, sharded=sharded, eager=eager.seconds, compiled=compiled.seconds, steps=steps
    )
    time = compiled if is_compiled else eager
    hosts = -(-sizes.processes // rates.per_host) if rates.per_host else 1
    tokens_per_step = training.global_batch_size * block_size
    checkpoint = traced.saved_weights_bytes + optimizer * traced.shards
    return Plan(
        recipe=resolved.name,
        strategies=named(resolved.recipe.memory),
        fidelity=resolved.fidelity,
        device=device,
        limit_bytes=limit,
        parameters=traced.parameters,
        trained_parameters=traced.trained_parameters,
        peak_bytes=phases[peak_phase],
        peak_phase=peak_phase,
        parts={part: parts[part] for part in MEMORY_PARTS if parts.get(part)},
        phases=phases,
        weights_bytes=totals["weights"],
        gradients_bytes=totals["gradients"],
        optimizer_bytes=optimizer,
        state_bytes=traced.trained_bytes // traced.shards + optimizer,
        snapshot_bytes=snapshot,
        micro_batch_size=sizes.micro_batch_size,
        accumulation=sizes.accumulation,
        processes=sizes.processes,
        hosts=hosts,
        shards=traced.shards,
        sequences_per_step=training.global_batch_size,
        tokens_per_step=tokens_per_step,
        steps=steps,
        tokens=steps * tokens_per_step if steps else None,
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * (training.save_total_limit + 1 + _milestones(training.keep_every, steps))
        + totals["weights"] * traced.shards,
        flops_per_step=sum(work.flops * count for work, count in operations),
        communication=time.collectives,
        communication_seconds=time.communication,
        exposed_seconds=time.exposed,
        seconds_per_step=time.seconds,
        seconds=time.seconds * steps if steps else None,
        how_memory=how_reckoned(device),
        how_time=rates.source
        + "; of compiled steps" * is_compiled
        + "; without cpu_offload's copies, and with the optimizer's step on the GPU" * training.shard_cpu_offload,
        how_communication=communication.how_reckoned(rates.links, hosts) if rates.links and sizes.processes > 1 else "",
    )


def _held(resolved: ResolvedRecipe, traced: Trace, sizes: BatchSplit, *, snapshot: int) -> dict[str, dict[str, int]]:
    """What is held at the peak of each phase."""
    device, weights = resolved.device, traced.totals()["weights"]
    framework = framework_bytes(device, compiles=resolved.training.torch_compile is True, processes=sizes.processes)
    is_replicated = sizes.processes > 1 and traced.shards == 1
    beside: dict[str, int] = {
        "framework": framework,
        # DistributedDataParallel copies the gradients into buckets for the all-reduce.
        "gradient buckets": traced.totals()["gradients"] if is_replicated else 0,
        # From its first save on, the main process keeps a copy in host memory of what the shards are gathered into.
        "whole model": weights * traced.shards if traced.shards > 1 and device.kind != "cuda" else 0,
        "snapshot": 0 if device.kind == "cuda" else snapshot,  # with CUDA it is in host memory
    }
    # What `auto` will decide is not known for certain, and an eager step takes no less.
    course = traced.compiled if resolved.training.torch_compile is True and traced.compiled else traced
    moments = course.fullest(rounding=CUDA_ALLOCATION_GRANULARITY if device.kind == "cuda" else 1)
    held = {str(phase): {**beside, **_by_name(moment)} for phase, moment in moments.items()}
    if traced.shards > 1 and resolved.training.shard_cpu_offload:
        held = {phase: {part: parts[part] for part in parts if part not in OFFLOADED} for phase, parts in held.items()}
    if is_replicated:  # it sends the main process's weights to the others before the first step
        buffers = min(weights, BROADCAST_BUFFERS_BYTES)
        held["broadcast"] = {"framework": framework, "weights": weights, "broadcast buffers": buffers}
    if device.kind != "cuda":  # with CUDA the model is built and exported in host memory
        held["load"] = {"framework": framework, "weights": traced.built_bytes}
        held["export"] = {**beside, **_held_at_export(resolved, traced)}
    return held


def _snapshot_bytes(resolved: ResolvedRecipe, traced: Trace, limit: int) -> int:
    """The copy of the training state, if saves are written in the background: as set, or where memory allows."""
    from toolkit.storage.host_copy import MAX_SHARE_OF_FREE_MEMORY

    if traced.shards > 1:  # the processes write their shards together
        return 0
    asked, device, totals = resolved.training.save_in_background, resolved.device, traced.totals()
    free = limit - framework_bytes(device) - totals["weights"]
    in_background = (
        (1 + resolved.training.optimizer_states) * traced.trained_bytes <= MAX_SHARE_OF_FREE_MEMORY * free
        if asked is None
        else asked
    )
    return traced.trained_bytes + totals["optimizer"] if in_background else 0


def _by_name(moment: Moment) -> dict[str, int]:
    return {str(kind): size for kind, size in moment.held.items()}


def _held_at_export(resolved: ResolvedRecipe, traced: Trace) -> dict[str, int]:
    """What is held during export: the optimizer state is still live, and an exporter reloads what it has written."""
    totals, exporters = traced.totals(), [part.plugin for part in resolved.recipe.exporters]
    weights, saved = totals["weights"] * traced.shards, traced.saved_weights_bytes
    copies = [
        exporter.export_bytes(weights=weights, saved=saved) if isinstance(exporter, ExportBytes) else saved
        for exporter in exporters
    ]
    return {"weights": totals["weights"], "optimizer": totals["optimizer"], "exported copies": max(copies, default=0)}


def _milestones(keep_every: int | None, steps: int | None) -> int:
    return steps // keep_every if keep_every and steps else 0
