"""The report of a run is one page that needs nothing else, whatever the run has and lacks."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import resolved, train_in_two, write_recipe
from toolkit import formatting
from toolkit.errors import UnavailableError
from toolkit.recipe.provenance import settings
from toolkit.report.chart import line_chart, short, thinned, ticks
from toolkit.report.page import render, write
from toolkit.storage import run_directory
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.run_directory import RunDirectory

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a reader sees, and whether every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source, self.words, self.open, self.attributes = text, list[str](), list[str](), list[tuple[str, str]]()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def charts(self) -> dict[str, list[list[Any]]]:
        """The points of every curve, by its label."""
        data = [json.loads(value) for name, value in self.attributes if name == "data-chart"]
        return {label: curve for chart in data for label, curve in zip(chart["labels"], chart["curves"], strict=True)}


def page_of(run: RunDirectory) -> Page:
    return Page(render(run))


def begun(folder: Path, *overrides: str, description: str = "") -> RunDirectory:
    """A run's folder before its first step."""
    recipe = write_recipe(folder, description=description)
    found = resolved(recipe, *overrides)
    return run_directory.create(
        folder / "runs/begun", found, {"python": "3.11", "packages": {"torch": "2.13"}}, series="begun"
    )


def step(number: int, **more: Any) -> dict[str, Any]:
    numbers = {"loss": 5.0 / number, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens_per_second": 100.0}
    return {"step": number, "kind": "train", "tokens_seen": 128 * number, "seconds": 2.0 * number, **numbers, **more}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("reported")
    recipe = write_recipe(folder, callbacks=[{"plugin": "samples", "every_steps": 4, "max_new_tokens": 4}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        return RunDirectory(train_in_two(recipe, "training.learning_rate=0.002", stop_after=5).folder)


def test_a_finished_run_is_told_whole(finished: RunDirectory, tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    write(finished, target)
    page, results = Page(target.read_text(encoding="utf-8")), finished.record["results"]
    assert (
        f"Held-out loss {results['eval_loss']:.4f}, perplexity {results['perplexity']:.1f}, after 8 steps." in page.text
    )
    assert "Uniform guessing over the vocabulary of 300 tokens" in page.text
    assert f"Peak memory {formatting.size(results['peak_memory_bytes'])} planned" in page.text
    assert "resumed at step 5" in page.text
    assert "stopped by" not in page.text.partition("Attempts")[0]
    assert "finished" in page.text.partition("how it ended")[2]
    for heading in ("Curves", "Samples", "Data", "Attempts", "Environment", "Settings"):
        assert f"<h2>{heading}</h2>" in page.source
    measured = [
        [line["step"], pytest.approx(line["loss"], rel=1e-5)] for line in finished.metrics() if line["kind"] == "train"
    ]
    assert page.charts["training"] == measured
    assert [point[0] for point in page.charts["held out"]] == [4, 8]
    assert re.search(r"device\.memory \d[\d.]* [GT]B", page.text)
    assert "print-color-adjust: exact" in page.source
    assert set(page.charts) == {"training", "held out", "learning rate", "throughput", "gradient norm"}


def test_the_tokens_add_up_in_words(finished: RunDirectory) -> None:
    sentence = re.search(
        r"([\d,]+) tokens in = ([\d,]+) trained on \+ ([\d,]+) held out \+ ([\d,]+) dropped\.", page_of(finished).text
    )
    assert sentence
    total, *parts = (int(number.replace(",", "")) for number in sentence.groups())
    assert total == sum(parts) > 0


def test_every_setting_is_there_with_who_set_it(finished: RunDirectory) -> None:
    found = {
        setting.path: setting for values in settings(finished.folder / "resolved.yaml").values() for setting in values
    }
    assert found["training.learning_rate"].value == 0.002
    assert found["training.learning_rate"].origin == "--set training.learning_rate=0.002"
    assert found["training.max_steps"].origin.startswith("line ")
    assert not found["training.weight_decay"].chosen
    assert found["optimizer.betas"].value == [0.9, 0.999]
    page = page_of(finished)
    assert all(path in page.text for path in found)


def test_a_page_needs_nothing_but_itself(finished: RunDirectory) -> None:
    page = page_of(finished)
    assert "default-src 'none'" in page.source
    assert not [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert not re.search(r"https?://|@import|url\(", page.source.partition("<section")[0])
    assert len(page.source) < 300_000


def test_those_who_cannot_see_the_curves_get_words_and_numbers(finished: RunDirectory) -> None:
    page = page_of(finished)
    assert page.source.count('role="img"') == page.source.count("<desc") == 4
    assert re.search(r"Loss \(nats per token\) over optimizer steps\. training: [\d.]+ at step 1", page.text)
    identifiers = [value for name, value in page.attributes if name == "id"]
    named = [part for name, value in page.attributes if name == "aria-labelledby" for part in value.split()]
    assert len(set(identifiers)) == len(identifiers)
    assert set(named) == set(identifiers)
    assert f"{finished.metrics()[0]['loss']:.4f}" in page.text


def test_nothing_that_a_run_holds_becomes_markup(tmp_path: Path) -> None:
    attack = "</pre><script>alert('x')</script><!-- \" ' &amp;"
    run = begun(tmp_path, description=attack)
    run.begin_attempt(from_step=0)
    MetricsLog(run, print).write(step(1))
    (run.folder / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": attack, "text": f"{attack} {attack}"}))
    (run.folder / "environment.json").write_text(json.dumps({attack: [attack, None]}))
    (run.folder / "recipe.yaml").write_text(attack)
    numbers = dict.fromkeys(("steps", "tokens_seen", "seconds", "peak_memory_bytes", "parameters"), 1)
    losses = {"eval_loss": None, "perplexity": None}
    run.update(results={**numbers, **losses, "memory_was_short": False, "sample": attack}, id=attack)
    run.end_attempt(how="failed", step=1, error=attack)
    page = page_of(run)
    assert page.source.count("<script>") == 1
    assert page.text.count("alert('x')") >= 8


def test_a_run_that_has_only_begun_is_told_as_far_as_it_got(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert "nothing has been measured yet" in page_of(run).text
    run.begin_attempt(from_step=0)
    MetricsLog(run, print).write(step(1))
    page = page_of(run)
    assert "At step 1, with a training loss of 5.0000." in page.text
    assert "still running, or killed" in page.text
    assert page.charts["training"] == [[1, 5.0]]
    run.end_attempt(how="failed", step=1, error="the disk is full")
    assert "Failed at step 1" in page_of(run).text
    assert "failed: the disk is full" in page_of(run).text


def test_without_an_evaluation_it_says_that_nothing_was_held_out(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.begin_attempt(from_step=0)
    for number in (1, 2):
        MetricsLog(run, print).write(step(number))
    run.end_attempt(how="finished", step=2)
    page = page_of(run)
    assert "Finished 2 steps at a training loss of 2.5000." in page.text
    assert "Nothing was held out" in page.text
    assert "Perplexity" not in page.text


def test_a_rehearsal_is_not_mistaken_for_the_run(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.update(rehearsal=True)
    assert "This is a rehearsal" in page_of(run).text


def test_the_best_evaluation_is_named_when_it_was_not_the_last(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for number, loss in ((2, 4.0), (4, 3.5), (6, 3.75)):
        MetricsLog(run, print).write(
            {"step": number, "kind": "eval", "eval_loss": loss, "perplexity": math.exp(loss), "seconds": 1}
        )
    assert "The lowest held-out loss was 3.5000, at step 4." in page_of(run).text


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for number, loss in ((1, 5.0), (2, 4.0), (3, math.nan), (4, 3.0), (5, 2.0)):
        MetricsLog(run, print).write(step(number, loss=loss))
    page = page_of(run)
    assert page.charts["training"] == [[1, 5.0], [2, 4.0], [3, None], [4, 3.0], [5, 2.0]]
    (path,) = re.findall(r'class="curve c1" d="([^"]+)"', page.source.partition("Learning rate")[0])
    assert path.count("M") == 2
    assert "nan" not in path.lower()


def test_an_unwritable_place_is_told_with_its_name(finished: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot write the report"):
        write(finished, tmp_path / "file" / "page.html")


def test_it_reads_files_and_imports_nothing_heavy(finished: RunDirectory, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from toolkit.report import page;"
        "from toolkit.storage import run_directory;"
        "page.write(run_directory.RunDirectory(Path(sys.argv[1])), Path(sys.argv[2]));"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()))"
    )
    words = [sys.executable, "-c", program, str(finished.folder), str(tmp_path / "page.html")]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (3.4, 8.6, [4, 6, 8]),
        (0, 5e-4, [0, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, count=5) == pytest.approx(expected)


def test_steps_are_whole_numbers() -> None:
    assert ticks(1, 3, count=6, smallest=1) == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5e-4, "5e-4"), (0.02, "0.02"), (4000, "4000"), (25_000, "25K"), (1_500_000, "1.5M"), (2e9, "2B")],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_thinning_keeps_the_ends_and_the_spikes() -> None:
    points = [(index, 1.0) for index in range(100_000)]
    points[54_321] = (54_321, 99.0)
    points[77_777] = (77_777, math.nan)
    kept = thinned(points)
    assert len(kept) < 1000
    assert {points[0], points[-1], points[54_321]} <= set(kept)
    assert any(math.isnan(y) for _, y in kept)


def test_a_chart_of_nothing_is_none() -> None:
    assert line_chart("Loss", "nats", [("training", []), ("held out", [(1, math.nan)])]) is None
