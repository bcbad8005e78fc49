"""A run over a mixture: its order is a function of the position alone, and each source is counted and evaluated."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.numerics.test_processes import torchrun
from tests.tiny import WORDS, assert_same_run, callback, train, train_in_two, write_recipe
from toolkit.data.mixture_plan import planned
from toolkit.errors import RecipeError
from toolkit.events import DataPrepared, Evaluated, Event, Message
from toolkit.inference.evaluation import evaluate
from toolkit.lifecycle.rehearsal import rehearse
from toolkit.recipe.mix import Mix
from toolkit.recipe.resolve import load
from toolkit.report.lines import filters
from toolkit.report.lines import told as lines_of
from toolkit.report.page import render
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.device import detect

WEIGHTS = {"web": 0.5, "code": 0.3, "books": 0.15, "math": 0.05}
STAGES: list[dict[str, Any]] = [{"until": "40%"}, {"until": "80%", "weights": {"math": 0.4}}, {"weights": {"web": 0}}]

ORDER = """
def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
    blocks = train_dataloader.dataset
    class Noted(type(blocks)):
        def __getitem__(self, position):
            block = super().__getitem__(position)
            with open(args.output_dir + f"/../order-{args.process_index}", "a") as file:
                print(position, *self.place(position), block["seed"], block["input_ids"].sum(), file=file)
            return block
    blocks.__class__ = Noted
"""
"""Notes each block that is read: its position, source, pass and index, its seed, and a sum of its tokens."""


def sources(folder: Path, **lines: int) -> list[dict[str, Any]]:
    """A file of sentences for each source, in words of its own, so that their losses differ."""
    written = []
    for number, (name, count) in enumerate(lines.items()):
        draw = random.Random(number)
        words = WORDS[4 * number : 4 * number + 6]
        sentences = (" ".join(draw.choices(words, k=draw.randint(8, 30))) for _ in range(count))
        (folder / f"{name}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        dataset = {"plugin": "text-files", "files": str(folder / f"{name}.txt"), "sample_by": "line"}
        written.append({"name": name, "weight": WEIGHTS[name], "dataset": {**dataset, "eval_fraction": 0.2}})
    written[1]["dataset"]["filters"] = [{"plugin": "length", "min_words": 10}, "exact-duplicates"]
    return written


def mixture(folder: Path, name: str = "mixed", *, math: int = 50, **options: Any) -> Path:
    made = sources(folder, web=120, code=80, books=60, math=math)
    dataset = {"plugin": "mix", "sources": made, "stages": STAGES, **options}
    callback(folder, "noting", ORDER)
    return write_recipe(
        folder,
        name,
        dataset=dataset,
        plugin_paths=["plugins"],
        callbacks=["noting"],
        model={"dropout": 0.0},
        training={"max_steps": 20, "eval_steps": 10, "save_steps": 10},
    )


def order(run: Path, process: int = 0) -> list[str]:
    return (run / f"order-{process}").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Event]]:
    """The recipe, and a run of it that nothing disturbed."""
    recipe = mixture(tmp_path_factory.mktemp("mixture"))
    result, events = train(recipe, name="whole")
    return recipe, result.folder, events


def test_20_steps_are_10_and_10(whole: tuple[Path, Path, list[Event]]) -> None:
    recipe, folder, _ = whole
    parts = train_in_two(recipe, name="parts", stop_after=10)
    assert_same_run(folder, parts.folder)
    read = order(folder)
    assert [int(line.split()[0]) for line in read] == list(range(80))
    in_parts = order(parts.folder)
    again = in_parts.index(read[40], 41) if in_parts.count(read[40]) > 1 else 40  # a block may be read ahead
    assert in_parts[:40] + in_parts[again:] == read


def test_the_run_takes_of_each_source_what_the_plan_says(whole: tuple[Path, Path, list[Event]]) -> None:
    recipe, folder, events = whole
    (prepared,) = [event for event in events if isinstance(event, DataPrepared)]
    assert prepared.mixture is not None
    read = Counter(line.split()[1] for line in order(folder))
    assert read == prepared.mixture.blocks
    mix = load(str(recipe)).dataset.plugin
    assert isinstance(mix, Mix)
    available = {name: len_of["train"]["blocks"] for name, len_of in prepared.account.sources.items()}
    assert prepared.mixture == planned(mix, blocks=80, block_size=32, available=available)
    data = json.loads((folder / "data.json").read_text())
    assert data["mixture"]["sources"]["web"]["tokens"] == 32 * read["web"]
    assert data["train"]["tokens"] == sum(source["train"]["tokens"] for source in data["sources"].values())
    assert prepared.epochs == 20 / -(-sum(available.values()) // 4)


def test_what_filters_did_is_told_of_the_source_that_has_them(whole: tuple[Path, Path, list[Event]]) -> None:
    _, folder, events = whole
    data = json.loads((folder / "data.json").read_text())
    assert (data["filters"], data["shared_text"], data["sources"]["web"]["filters"]) == ([], None, [])
    assert [one["name"] for one in data["sources"]["code"]["filters"]] == ["length", "exact-duplicates"]
    told = filters(data)
    assert list(told) == ["code: length", "code: exact-duplicates"]
    assert told["code: length"].startswith("dropped")
    (prepared,) = [event for event in events if isinstance(event, DataPrepared)]
    assert any("code: length" in line and "dropped" in line for line in lines_of(prepared))
    assert told["code: length"] in render(RunDirectory(folder))


def test_the_held_out_loss_is_by_source_and_in_all(whole: tuple[Path, Path, list[Event]]) -> None:
    _, folder, events = whole
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    data = json.loads((folder / "data.json").read_text())
    blocks = {name: source["validation"]["blocks"] for name, source in data["sources"].items()}
    for event in evaluations:
        assert list(event.by_source) == list(WEIGHTS)
        together = sum(event.by_source[name] * count for name, count in blocks.items()) / sum(blocks.values())
        assert event.eval_loss == pytest.approx(together, rel=1e-6)
        assert len(set(event.by_source.values())) == 4
    run = RunDirectory(folder)
    lines = [line for line in run.metrics() if line["kind"] == "eval"]
    assert [line["by_source"] for line in lines] == [event.by_source for event in evaluations]
    results = run.record["results"]
    assert results is not None
    assert results["eval_loss_by_source"] == evaluations[-1].by_source
    page = render(run)
    assert "Held-out loss by source" in page
    assert f"{evaluations[-1].by_source['math']:.4f}" in page
    reached = evaluate(run, max_documents=5, listener=[].append)
    assert list(reached.by_source) == list(WEIGHTS)
    assert reached.documents == sum(own.documents for own in reached.by_source.values()) == 20
    assert reached.negative_log_likelihood == sum(own.negative_log_likelihood for own in reached.by_source.values())


def test_a_source_that_is_too_small_or_empty_is_told_at_its_place_before_the_run(tmp_path: Path) -> None:
    recipe = mixture(tmp_path, math=20)
    longer = ("training.max_tokens=20000", "training.max_steps=null")
    with pytest.raises(RecipeError) as refused:
        train(recipe, *longer, "dataset.max_passes=1")
    assert "dataset.sources[3]" in {problem.path for problem in refused.value.problems}
    assert "math is too small: its share of the run is" in str(refused.value)
    longer = (*longer, "dataset.max_passes=100")
    result, events = train(recipe, *longer, name="allowed")
    assert result.steps == -(-20_000 // 128)
    assert any(isinstance(event, Message) and event.text.startswith("math is repeated") for event in events)
    (tmp_path / "books.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mixed.yaml:\d+:\d+: dataset.sources\[2\].dataset"):
        train(recipe, *longer, name="empty")


@pytest.mark.slow
def test_a_rehearsal_mixes_stand_ins(tmp_path: Path) -> None:
    recipe = mixture(tmp_path)
    _, stand_ins = rehearse(load(str(recipe)), runs=tmp_path / "runs", device=detect(), listener=[].append)
    replaced = [stand_in for stand_in in stand_ins if stand_in.section == "dataset"]
    assert [stand_in.option for stand_in in replaced] == list(WEIGHTS)
    assert {stand_in.rehearsal for stand_in in replaced} == {"python-docs"}
    data = json.loads((tmp_path / "runs" / "mixed-rehearsal" / "data.json").read_text())
    assert list(data["mixture"]["sources"]) == list(WEIGHTS)
    assert len(data["mixture"]["stages"]) == 3


@pytest.mark.slow
def test_two_processes_read_the_blocks_that_one_reads(whole: tuple[Path, Path, list[Event]]) -> None:
    recipe, folder, _ = whole
    done = torchrun(recipe, "--name", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    two = recipe.parent / "runs" / "two"
    one = order(folder)
    first, second = order(two, 0), order(two, 1)
    for step in range(20):
        blocks = first[2 * step : 2 * step + 2] + second[2 * step : 2 * step + 2]
        assert sorted(blocks, key=lambda line: int(line.split()[0])) == one[4 * step : 4 * step + 4]
    alone, shared = ([line for line in RunDirectory(run).metrics() if line["kind"] == "eval"] for run in (folder, two))
    for own, together in zip(alone, shared, strict=True):
        assert together["by_source"] == pytest.approx(own["by_source"], rel=1e-4)
