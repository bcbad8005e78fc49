"""The report of a sweep, and charts over something other than steps."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from toolkit.report.chart import decades, line_chart
from toolkit.report.sweep import SweepTrial, best, ranked, write_sweep

RATES = ("0.0001", "0.001", "0.01", "0.1")
TRIALS = [
    SweepTrial("trial-000", {"training.learning_rate": RATES[0]}, "finished", 3.0, 100),
    SweepTrial("trial-001", {"training.learning_rate": RATES[1]}, "finished", 2.0, 100),
    SweepTrial("trial-002", {"training.learning_rate": RATES[2]}, "stopped early", 2.5, 40),
    SweepTrial("trial-003", {"training.learning_rate": RATES[3]}, "failed", math.nan, 60, "the <loss> is nan"),
]


def test_finished_trials_come_first_and_then_those_that_came_far() -> None:
    assert [trial.run[-1] for trial in ranked(TRIALS)] == ["1", "0", "3", "2"]
    leader = best(TRIALS)
    assert leader
    assert leader.run == "trial-001"
    assert best(TRIALS[2:]) is None
    assert best([]) is None


def test_the_page_is_whole(tmp_path: Path) -> None:
    page = write_sweep(tmp_path, TRIALS, command="toolkit recipe run mine").read_text()
    HTMLParser().feed(page)
    assert "Held-out loss 2.0000 with training.learning_rate 0.001." in " ".join(page.split())
    assert "the &lt;loss&gt; is nan" in page
    assert "toolkit recipe run mine" in page
    assert page.count("<figure") == 1  # no run is there, and so no curve
    assert "No trial has finished." in write_sweep(tmp_path, TRIALS[2:], command=None).read_text()
    assert "No trial has finished." in write_sweep(tmp_path, [], command=None).read_text()
    just_begun = SweepTrial("trial-004", {}, "running")
    page = write_sweep(tmp_path, [just_begun, *TRIALS], command=None).read_text()
    assert "Final held-out loss by training.learning_rate" in page
    assert "trial-004" in page


def test_a_logarithmic_axis() -> None:
    points = [(1e-4, 3.0), (1e-3, 2.0), (1e-2, 2.5)]
    chart = line_chart("Loss", "", [("trials", points)], over="rate", logarithmic=True, joined=False)
    assert chart
    assert [(tick.label, round(tick.at)) for tick in chart.x_ticks] == [("1e-4", 4), ("0.001", 50), ("0.01", 96)]
    (curve,) = chart.curves
    assert "L" not in curve.path
    assert curve.dots.count("M") == 3
    assert json.loads(chart.data)["log"] is True
    assert json.loads(chart.data)["curves"] == [[list(point) for point in points]]
    assert "over rate. trials: 3 at rate 0.0001, 2.5 at rate 0.01." in chart.description


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(-3.1, -1.9, [1e-3, 2e-3, 5e-3, 1e-2]), (0.0, 3.0, [1.0, 10.0, 100.0, 1000.0])],
)
def test_ticks_between_powers_of_ten(low: float, high: float, ticks: list[float]) -> None:
    assert decades(low, high) == ticks
