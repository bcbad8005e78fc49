"""A plan for a device: this machine's, with what is free on it now, or another one by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.system import environment_variables, garbage_collection

if TYPE_CHECKING:
    from toolkit.events import Listener
    from toolkit.planning.plan import Plan
    from toolkit.planning.roofline import Rates
    from toolkit.recipe.resolve import ResolvedRecipe


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from."""

    plan: Plan
    why: tuple[str, ...]
    """Why `auto` chose these strategies, in sentences; empty if the recipe leaves nothing to it."""
    rates: Rates


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
) -> Planned:
    """Plan a recipe that is resolved for `devices.device_called(device, memory)`; the arguments are those of `plan`."""
    from toolkit.events import ProgressReporter
    from toolkit.memory.budget import bytes_to_be_had, own_share
    from toolkit.planning.choose import chooser_of, resolve_auto
    from toolkit.planning.plan import make_plan

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
    progress("planning memory")
    if chooser:
        resolved, choice = resolve_auto(
            resolved, limit, rates=rates, processes=processes, progress=progress, seconds=search_seconds
        )
        why = choice.why
    blocks = _known_blocks(resolved, runs)
    made = make_plan(resolved, rates=rates, limit_bytes=limit, processes=processes, training_blocks=blocks)
    return Planned(made, why, rates)


def _known_blocks(resolved: ResolvedRecipe, runs: Path) -> int | None:
    """Blocks per epoch, if a run of this name has counted the same data."""
    from toolkit.lifecycle import comparison
    from toolkit.storage import run_directory, runs_folder
    from toolkit.system.files import read_json

    found = runs_folder.newest_in_series(runs, resolved.name)
    if found is None or not (found / "data.json").is_file():
        return None
    decisive = ("dataset", "tokenizer", "objective")
    run = run_directory.RunDirectory(found)
    if any(key.startswith(decisive) for key in comparison.differences(run, resolved)):
        return None
    blocks: int = read_json(found / "data.json")["train"]["blocks"]
    return blocks
