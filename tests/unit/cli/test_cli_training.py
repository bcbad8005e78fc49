"""One small run through the real command, in a process of its own: start, finish, ask again, look at the model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.command_line import RECIPE, Answer, process, toolkit

RUN = ["recipe", "run", "mine.yaml"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "mine.yaml").write_text(RECIPE)
    draw = random.Random(0)
    words = ["a", "recipe", "trains", "the", "model", "on", "blocks", "of", "text", "and", "saves", "its", "steps"]
    for number in range(20):
        (folder / f"{number}.txt").write_text(" ".join(draw.choices(words, k=100)))
    return folder


@pytest.fixture(scope="module")
def first(here: Path) -> Answer:
    return process(*RUN, "--json", cwd=here)


def test_json_alone_is_on_standard_output_and_progress_is_beside_it(first: Answer) -> None:
    assert first.status == 0, first.err
    result = first.json
    assert {
        "folder": "runs/mine",
        "name": "mine",
        "already_finished": False,
        "rehearsal": False,
        "steps": 5,
        "model_folder": "runs/mine/model",
    }.items() <= result.items()
    assert result["eval_loss"] > 0
    assert result["perplexity"] > 1
    assert result["seconds"] > 0
    for words in ("data\n", "document ends are training targets", "training ", "validation loss", "model-folder wrote"):
        assert words in first.err


def test_the_libraries_do_not_litter(first: Answer) -> None:
    for words in ("Warning", "warn", "it/s", "%|"):
        assert words not in first.err


def test_the_same_command_says_that_the_run_is_finished(
    here: Path, first: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    answer = toolkit(*RUN, "--quiet")
    assert not answer.err
    assert answer.out.splitlines()[1].startswith("mine has already finished; nothing was changed")
    assert first.json["load_line"] in answer.out


def test_another_recipe_does_not_go_on_with_the_run(here: Path, first: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    answer = toolkit(*RUN, "--set", "training.seed=7", status=2)
    assert answer.err.startswith("error: runs/mine was made with other settings")
    assert "training.seed: the run has 42, the recipe now says 7" in answer.err


def test_a_rehearsal_has_a_folder_of_its_own_and_says_what_it_did_not_test(
    here: Path, first: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    answer = toolkit(*RUN, "--rehearse", "--json")
    assert answer.json["rehearsal"] is True
    assert answer.json["folder"] == "runs/mine-rehearsal"
    assert {
        "section": "dataset",
        "option": None,
        "recipe": "text-files",
        "rehearsal": "python-docs",
    } in answer.json["not_tested"]


def test_the_model_writes_the_same_text_with_the_same_seed(
    here: Path, first: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    words = ["generate", "mine", "--prompt", "a recipe", "--max-new-tokens", "12", "--json"]
    one, two = process(*words, cwd=here), toolkit(*words)
    assert one.status == 0, one.err
    assert one.json.keys() == {"run", "prompt", "text", "seed"}
    assert one.json == two.json


def test_the_model_is_measured(here: Path, first: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    answer = toolkit("evaluate", "mine", "--max-documents", "2", "--json")
    measured = answer.json
    assert measured["run"] == "mine"
    assert measured["documents"] == 2
    assert measured["token_perplexity"] > 1
    assert 0 < measured["bits_per_byte"] < 20
    shown = toolkit("evaluate", "mine", "--max-documents", "2")
    assert "bits per byte" in shown.out
