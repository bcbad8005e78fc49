"""Trials of a sweep -> a self-contained HTML page: the best settings, each trial, and what each setting did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import toolkit
from toolkit import formatting
from toolkit.recipe.search_space import as_number
from toolkit.report.chart import Chart, Point, line_chart
from toolkit.report.templating import templates, write_page
from toolkit.storage.run_directory import RUN_FILE, RunDirectory, now

CURVES = 6
"""Trials whose curves are shown, the best first: as many as there are colours."""

How = Literal["finished", "stopped early", "failed", "running", "waiting"]
UNFINISHED = frozenset[How]({"running", "waiting"})
"""Of trials that are with another worker, or that the next one takes up."""


@dataclass(frozen=True)
class SweepTrial:
    """One trial of a sweep."""

    run: str
    """Name of its run, in the sweep's folder."""
    values: Mapping[str, str]
    """What it varies, by dotted key."""
    how: How
    loss: float | None = None
    """Held-out loss: at the end or, of a trial that was stopped early, the last one."""
    step: int | None = None
    """The step of that loss."""
    error: str = ""
    """Why it has failed."""


def ranked(trials: Sequence[SweepTrial]) -> list[SweepTrial]:
    """The finished trials, the lowest loss first; then the others, by how far they came and their loss."""

    def order(trial: SweepTrial) -> tuple[bool, int, float, str]:
        loss = math.inf if trial.loss is None or math.isnan(trial.loss) else trial.loss
        return trial.how != "finished", 0 if trial.how == "finished" else -(trial.step or 0), loss, trial.run

    return sorted(trials, key=order)


def best(trials: Sequence[SweepTrial]) -> SweepTrial | None:
    """The finished trial of the lowest held-out loss; None if none has finished."""
    first = next(iter(ranked(trials)), None)
    return first if first and first.how == "finished" else None


def write_sweep(folder: Path, trials: Sequence[SweepTrial], *, command: str | None) -> Path:
    """Write report.html into the sweep's folder.

    Args:
        folder: that of the sweep, with the runs of its trials.
        trials: all of them.
        command: trains with the best settings; None if no trial has finished.

    Raises:
        UnavailableError: it cannot be written.
    """
    target = folder / "report.html"
    template = templates().get_template("sweep.html.jinja")
    # A trial that a worker has just begun may have no values yet.
    keys = next((list(trial.values) for trial in trials if trial.values), [])
    text = template.render(
        name=folder.name,
        trials=ranked(trials),
        best=best(trials),
        keys=keys,
        command=command,
        charts=[chart for chart in (_losses(folder, trials), *_effects(trials, keys)) if chart],
        written=formatting.moment(now()),
        version=toolkit.__version__,
    )
    write_page(text, target)
    return target


def _losses(folder: Path, trials: Sequence[SweepTrial]) -> Chart | None:
    curves = [(trial.run, list(_evaluations(folder / trial.run))) for trial in ranked(trials)]
    with_points = [(run, points) for run, points in curves if points]
    few = f", of the best {CURVES} trials" * (len(with_points) > CURVES)
    return line_chart("Held-out loss", f"nats per token{few}", with_points[:CURVES])


def _evaluations(run: Path) -> Iterator[Point]:
    if (run / RUN_FILE).is_file():
        for line in RunDirectory(run).metrics():
            if line["kind"] == "eval":
                yield line["step"], float(line["eval_loss"])


def _effects(trials: Sequence[SweepTrial], keys: Sequence[str]) -> Iterator[Chart | None]:
    """For each setting of numbers, the final loss of the finished trials against it."""
    finished = [trial for trial in trials if trial.how == "finished" and trial.loss is not None]
    for key in keys:
        points = sorted((as_number(trial.values[key]), trial.loss or 0.0) for trial in finished)
        values = [value for value, _ in points]
        if len(set(values)) < 2 or not all(map(math.isfinite, values)):
            continue
        yield line_chart(
            f"Final held-out loss by {key}",
            "nats per token",
            [("finished trials", points)],
            over=key,
            logarithmic=values[0] > 0 and values[-1] / values[0] >= 10,
            joined=len(keys) == 1,
        )
