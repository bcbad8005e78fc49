"""A plan for a device: this machine's, with what is free on it now, or another one by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import UsageError, require_at_least_one
from toolkit.system import environment_variables, garbage_collection

if TYPE_CHECKING:
    from toolkit.data.mixture_plan import MixturePlan
    from toolkit.events import Listener
    from toolkit.planning.plan import Plan
    from toolkit.planning.roofline import Rates
    from toolkit.recipe.resolve import ResolvedRecipe

MAX_PROCESSES = 1_000_000
"""More than any machine has; the ranks of a mesh are numbers in memory."""


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from."""

    plan: Plan
    why: tuple[str, ...]
    """Why `auto` chose these strategies, in sentences; empty if the recipe leaves nothing to it."""
    rates: Rates
    mixture: MixturePlan | None = None
    """What the run takes of each source of a mixture; None without one, or if the run's length is unknown."""


@environment_variables.set_aside()
@garbage_collection.given_back()
def plan_of(
    resolved: ResolvedRecipe,
    *,
    device: str | None,
    memory: int | str | None,
    processes: int,
    runs: Path,
    search_seconds: float,
    listener: Listener,
    gpus_per_node: int | None = None,
    network: float | None = None,
) -> Planned:
    """Plan a recipe that is resolved for `devices.device_called(device, memory)`; the arguments are those of `plan`."""
    from toolkit.events import ProgressReporter
    from toolkit.memory.budget import bytes_to_be_had, own_share
    from toolkit.planning.choose import chooser_of, resolve_auto
    from toolkit.planning.devices import devices_of_host, links_of
    from toolkit.planning.plan import make_plan

    require_at_least_one(processes=processes, gpus_per_node=gpus_per_node)
    per_host = devices_of_host(resolved.device, gpus_per_node)
    links = links_of(resolved.device, per_host=per_host, network=network)
    if processes > MAX_PROCESSES:
        raise UsageError(f"--processes {processes}: a plan is for {MAX_PROCESSES:,} at most")
    chooser = chooser_of(resolved)
    whole = chooser.limit(resolved.device) if chooser else resolved.device.memory_bytes
    limit = own_share(whole, resolved.device, processes)
    if device is None and memory is None:  # on this machine, as much as a run would find free now
        limit = min(limit, bytes_to_be_had(resolved.device, processes))
    why = tuple[str, ...]()
    progress = ProgressReporter(listener)
    if device is None:
        from toolkit.lifecycle.environment import check_device
        from toolkit.planning.roofline import measured

        check_device(resolved)
        progress("measuring this machine")
        rates = measured(resolved.device)
    else:
        from toolkit.planning.devices import known
        from toolkit.planning.roofline import published

        rates = published(known(device))
    rates = replace(rates, links=links, gpus_per_node=per_host)
    progress("planning memory")
    if chooser:
        resolved, choice = resolve_auto(
            resolved, limit, rates=rates, processes=processes, progress=progress, seconds=search_seconds
        )
        why = choice.why
    data = _known_data(resolved, runs)
    blocks = data["train"]["blocks"] if data else _blocks_of_stream(resolved)
    made = make_plan(resolved, rates=rates, limit_bytes=limit, processes=processes, training_blocks=blocks)
    return Planned(made, why, rates, _mixture(resolved, made.steps, data))


def _mixture(resolved: ResolvedRecipe, steps: int | None, data: Mapping[str, Any] | None) -> MixturePlan | None:
    """What the run takes of each source; how often it repeats them, if they have been counted."""
    from toolkit.data.mixture_plan import planned
    from toolkit.recipe.mix import Mix

    mix = resolved.recipe.dataset.plugin
    if not isinstance(mix, Mix) or steps is None:
        return None
    return planned(
        mix,
        blocks=steps * resolved.training.global_batch_size,
        block_size=resolved.recipe.objective.plugin.block_size,
        available={name: source["train"]["blocks"] for name, source in data["sources"].items()} if data else None,
    )


def _blocks_of_stream(resolved: ResolvedRecipe) -> int | None:
    """The blocks of a stream, which its recipe says; None if the dataset is none."""
    from toolkit.data.stream_preparation import blocks_of
    from toolkit.recipe.streams import is_stream, streaming
    from toolkit.training.refusals import refusals_placed

    dataset = resolved.recipe.dataset
    if not is_stream(dataset.plugin):
        return None
    with refusals_placed(resolved.recipe, dataset.path):
        return blocks_of(streaming(dataset.plugin), resolved.recipe.objective.plugin)


def _known_data(resolved: ResolvedRecipe, runs: Path) -> dict[str, Any] | None:
    """The data account, if a run of this name has counted the same data."""
    from toolkit.lifecycle import comparison
    from toolkit.storage import run_directory, runs_folder
    from toolkit.system.files import read_json

    found = runs_folder.newest_in_series(runs, resolved.name)
    if found is None or not (found / "data.json").is_file():
        return None
    decisive, shares = ("dataset", "tokenizer", "objective"), re.compile(r"dataset\.(sources\[\d+\]\.weight$|stages)")
    run = run_directory.RunDirectory(found)
    differing = comparison.differences(run, resolved)
    if any(key.startswith(decisive) and not shares.match(key) for key in differing):
        return None
    account: dict[str, Any] = read_json(found / "data.json")
    return account
