"""What one recipe needs here: its packages, its device, its data, memory and disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from toolkit import formatting
from toolkit.doctor.examination import Examination, Finding
from toolkit.doctor.folders import nearest_existing
from toolkit.recipe.resolve import ResolvedRecipe, check_trackers
from toolkit.system.disk import free_bytes

AUTO_SECONDS = 20.0
"""How long `auto` may look for strategies that fit; a run takes the time that it needs."""


def needs(resolved: ResolvedRecipe, runs: Path) -> Iterable[Examination]:
    """What is looked at for a recipe that has been resolved on this device, in the order of growing cost.

    They are not begun all at once: a plan starts processes, which a signal to the main thread is to end.
    """
    return (
        Examination("trackers", "training.report_to", lambda: _trackers(resolved)),
        Examination("data", "the first rows of the dataset", lambda: _data(resolved)),
        Examination("plan", "memory and disk of a run", lambda: _plan(resolved, runs)),
    )


def _trackers(resolved: ResolvedRecipe) -> Iterator[Finding]:
    check_trackers(resolved.recipe)
    wanted = resolved.training.report_to
    yield Finding("ok", f"reports to {', '.join(wanted)}" if wanted else "reports to no tracker")


def _data(resolved: ResolvedRecipe) -> Iterator[Finding]:
    from toolkit.training.components import peek_documents

    peek = peek_documents(resolved)
    plugin = resolved.recipe.dataset.name
    yield Finding("ok", f"{plugin}: {peek.source}" if peek else f"{plugin} has no preview; a run loads it first")


def _plan(resolved: ResolvedRecipe, runs: Path) -> Iterator[Finding]:
    from toolkit.lifecycle.device_plan import plan_of

    plan = plan_of(
        resolved,
        device=None,
        memory=None,
        processes=1,
        runs=runs,
        search_seconds=AUTO_SECONDS,
        listener=lambda event: None,
    ).plan
    memory = f"{formatting.size(plan.peak_bytes)} of the {formatting.size(plan.limit_bytes)} to be had"
    where = f"on {plan.device.name}"
    if plan.fits:
        yield Finding("ok", f"needs {memory} {where}")
    else:
        yield Finding("problem", f"needs {memory} {where}", "memory: [auto] chooses what fits; or a smaller model")
    free = free_bytes(nearest_existing(runs))
    disk = f"{formatting.size(plan.disk_bytes)} of disk for checkpoints and the model"
    if free < plan.disk_bytes:
        yield Finding(
            "problem",
            f"needs {disk}, and {runs} has {formatting.size(free)}",
            "free some space, or choose another --runs",
        )
    else:
        yield Finding("ok", f"needs {disk}")
