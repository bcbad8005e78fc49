"""ResolvedRecipe -> Plan: how much memory, disk and time a run will take.

Decides nothing: `choose` does. The bytes of tensors are traced (`fake_step`); the rest is added here, each part under
its own name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.api import Device, ExportBytes, Fidelity
from toolkit.planning.overhead import CUDA_ALLOCATION_GRANULARITY, framework_bytes, how_reckoned
from toolkit.planning.own_process import in_own_process
from toolkit.planning.roofline import Rates
from toolkit.planning.trace import KINDS, Moment, Trace
from toolkit.planning.words import named
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.resolve import ResolvedRecipe

MEMORY_PARTS = ("framework", *KINDS, "gradient buckets", "snapshot", "exported copies")
"""What memory goes to, in the order of the table's rows."""


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
    seconds_per_step: float
    seconds: float | None
    """Time of all steps, without evaluations and saves."""
    how_memory: str
    how_time: str

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
    traced, sizes = _traced(resolved, processes)
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


def _traced(resolved: ResolvedRecipe, processes: int) -> tuple[Trace, BatchSplit]:
    from toolkit.planning import fake_step

    framework_bytes(resolved.device)  # measured in this process, before anything else adds to its memory
    sizes = BatchSplit.of(resolved, processes=processes)
    size, accumulation = sizes.micro_batch_size, sizes.accumulation
    return in_own_process(fake_step.trace, resolved, micro_batch_size=size, accumulation=accumulation), sizes


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
    steps = training.max_steps or _steps(training.num_train_epochs, training.global_batch_size, training_blocks)
    operations = list(traced.operations(accumulation=sizes.accumulation))
    seconds = rates.seconds(operations, half="fp16" if training.precision == "fp16" else "bf16")
    tokens_per_step = training.global_batch_size * resolved.recipe.objective.plugin.block_size
    checkpoint = traced.saved_weights_bytes + optimizer
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
        state_bytes=traced.trained_bytes + optimizer,
        snapshot_bytes=snapshot,
        micro_batch_size=sizes.micro_batch_size,
        accumulation=sizes.accumulation,
        processes=sizes.processes,
        sequences_per_step=training.global_batch_size,
        tokens_per_step=tokens_per_step,
        steps=steps,
        tokens=steps * tokens_per_step if steps else None,
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * (training.save_total_limit + 1 + _milestones(training.keep_every, steps))
        + totals["weights"],
        flops_per_step=sum(work.flops * count for work, count in operations),
        seconds_per_step=seconds,
        seconds=seconds * steps if steps else None,
        how_memory=how_reckoned(device),
        how_time=rates.source,
    )


def _held(resolved: ResolvedRecipe, traced: Trace, sizes: BatchSplit, *, snapshot: int) -> dict[str, dict[str, int]]:
    """What is held at the peak of each phase."""
    device = resolved.device
    beside: dict[str, int] = {
        "framework": framework_bytes(device, compiles=resolved.training.torch_compile is True),
        # DistributedDataParallel copies the gradients into buckets for the all-reduce.
        "gradient buckets": traced.totals()["gradients"] if sizes.processes > 1 else 0,
        "snapshot": 0 if device.kind == "cuda" else snapshot,  # with CUDA it is in host memory
    }
    moments = traced.fullest(rounding=CUDA_ALLOCATION_GRANULARITY if device.kind == "cuda" else 1)
    held = {str(phase): {**beside, **_by_name(moment)} for phase, moment in moments.items()}
    if device.kind != "cuda":  # with CUDA the model is built and exported in host memory
        held["load"] = {"framework": beside["framework"], "weights": traced.built_bytes}
        held["export"] = {**beside, **_held_at_export(resolved, traced)}
    return held


def _snapshot_bytes(resolved: ResolvedRecipe, traced: Trace, limit: int) -> int:
    """The copy of the training state, if saves are written in the background: as set, or where memory allows."""
    from toolkit.storage.host_copy import MAX_SHARE_OF_FREE_MEMORY

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
    weights, saved = totals["weights"], traced.saved_weights_bytes
    copies = [
        exporter.export_bytes(weights=weights, saved=saved) if isinstance(exporter, ExportBytes) else saved
        for exporter in exporters
    ]
    return {"weights": totals["weights"], "optimizer": totals["optimizer"], "exported copies": max(copies, default=0)}


def _steps(epochs: float, global_batch_size: int, blocks: int | None) -> int | None:
    return math.ceil(epochs * math.ceil(blocks / global_batch_size)) if blocks else None


def _milestones(keep_every: int | None, steps: int | None) -> int:
    return steps // keep_every if keep_every and steps else 0
