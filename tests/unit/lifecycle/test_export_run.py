"""`toolkit run export`: exporters on a run that has finished, and on a checkpoint of one that has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file

from tests.command_line import toolkit
from tests.tiny import train, write_recipe
from toolkit.errors import InterruptedRun
from toolkit.storage.run_directory import RunDirectory

PUSH = {"plugin": "push-to-hub", "repo_id": "me/mine"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_finished_run_says_which_exporter_its_recipe_has_gained_and_carries_it_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"max_steps": 4, "save_steps": 2}
    recipe = write_recipe(folder, exporters=["model-folder"], training=training)
    toolkit("recipe", "run", str(recipe), "--json")
    model = folder / "runs" / "tiny" / "model"
    before = content(model)
    assert "nothing was changed" in toolkit("recipe", "run", str(recipe)).out

    calls: list[Any] = []
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *args, **kwargs: "the Hub")
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", lambda self, *args, **kwargs: calls.append(args))
    write_recipe(folder, exporters=["model-folder", PUSH], training=training)
    answer = toolkit("recipe", "run", str(recipe))
    assert "has not run: push-to-hub" in answer.out
    assert f"toolkit run export tiny --recipe {recipe}" in answer.out
    assert toolkit("recipe", "run", str(recipe), "--json").json["not_exported"] == ["push-to-hub"]

    # It needs no data, and gives what the run itself has exported.
    (folder / "texts.txt").unlink()
    exported = toolkit("run", "export", "tiny", "--json").json
    assert exported["step"] == 4
    assert [entry["exporter"] for entry in exported["exported"]] == ["model-folder", "push-to-hub"]
    (pushed,) = calls
    assert {Path(operation.path_or_fileobj).parent.name for operation in pushed[1][1:]} == {"model"}
    again = content(model)
    assert {name for name in before if before[name] != again[name]} <= {"README.md"}
    assert not [path.name for path in model.parent.iterdir() if path.name.startswith(".")]
    toolkit("run", "verify", "tiny")
    assert toolkit("recipe", "run", str(recipe), "--json").json["not_exported"] == []

    # A checkpoint's folder stands beside the last step's.
    assert toolkit("run", "export", "tiny", "--checkpoint", "2", "--exporter", "model-folder", "--json").json == {
        "run": "tiny",
        "step": 2,
        "exported": [{"exporter": "model-folder", "folder": "runs/tiny/model-2"}],
    }
    assert content(model)["model.safetensors"] == again["model.safetensors"]
    assert content(model.with_name("model-2"))["model.safetensors"] != again["model.safetensors"]
    assert "eval loss" not in (model.with_name("model-2") / "README.md").read_text(encoding="utf-8")

    # What somebody has changed is not replaced.
    (model / "config.json").write_text("{}", encoding="utf-8")
    refused = toolkit("run", "export", "tiny", status=2)
    assert "has changed since it was exported (config.json has" in refused.err
    (model.with_name("model-2") / "notes.txt").write_text("mine", encoding="utf-8")
    refused = toolkit("run", "export", "tiny", "--checkpoint", "2", "--exporter", "model-folder", status=2)
    assert "notes.txt was added" in refused.err


def test_an_adapter_of_an_unfinished_run_is_exported_and_its_run_goes_on(folder: Path) -> None:
    recipe = write_recipe(folder, memory=[{"plugin": "lora", "r": 2}], exporters=["merge-lora"])
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=4)
    run = RunDirectory(folder / "runs" / "tiny")
    exported = toolkit("run", "export", "tiny", "--json").json
    assert exported["exported"] == [{"exporter": "merge-lora", "folder": "runs/tiny/model-4"}]
    card = (run.folder / "model-4" / "README.md").read_text(encoding="utf-8")
    assert "LoRA on a model of this run, merged" in card
    assert run.status == "interrupted"
    result, _ = train(recipe)
    assert result.steps == 8
    assert set(run.record["exports"]) == {"model", "model-4"}
    merged = (folder / "runs" / "tiny" / "model" / "model.safetensors").read_bytes()
    toolkit("run", "export", "tiny", "--json")
    assert (run.folder / "model" / "model.safetensors").read_bytes() == merged


def test_the_mean_of_the_last_checkpoints(folder: Path) -> None:
    training = {"max_steps": 8, "keep_every": 2, "lr_scheduler_type": "constant"}
    recipe = write_recipe(folder, exporters=["model-folder"], training=training)
    toolkit("recipe", "run", str(recipe), "--json")
    run = RunDirectory(folder / "runs" / "tiny")
    before = content(run.model)
    exported = toolkit("run", "export", "tiny", "--average", "3", "--json").json
    assert exported["averaged"] == [4, 6, 8]
    assert exported["exported"] == [{"exporter": "model-folder", "folder": "runs/tiny/model-8-average-3"}]
    mean = load_file(run.folder / "model-8-average-3" / "model.safetensors")
    parts = [load_file(run.checkpoints / f"checkpoint-{step}" / "model.safetensors") for step in (4, 6, 8)]
    assert mean.keys() == parts[0].keys()
    for name, tensor in mean.items():
        expected = numpy.mean([part[name].astype(numpy.float64) for part in parts], axis=0)
        numpy.testing.assert_allclose(tensor, expected, rtol=1e-6, atol=1e-8)
    assert any((mean[name] != part[name]).any() for part in parts for name in mean)
    card = (run.folder / "model-8-average-3" / "README.md").read_text(encoding="utf-8")
    assert "the mean of the last 3 checkpoints" in card
    assert "validation loss" not in card  # the last step's
    assert content(run.model) == before
    toolkit("run", "verify", "tiny")

    earlier = toolkit("run", "export", "tiny", "--checkpoint", "6", "--average", "2")
    assert "the mean of the steps 4, 6 of tiny" in earlier.out
    scores = [
        toolkit("evaluate", "tiny", "--json", *words).json["bits_per_byte"]
        for words in ([], ["--model", "model-8-average-3"], ["--model", "model-6-average-2"])
    ]
    assert len(set(scores)) == 3
    assert (
        "did you mean 'model-8-average-3'?" in toolkit("evaluate", "tiny", "--model", "model-8-average", status=2).err
    )

    (run.checkpoints / "checkpoint-4" / "model.safetensors").write_bytes(b"")
    refused = toolkit("run", "export", "tiny", "--average", "4", status=2)
    assert "tiny has 3 that are intact (2, 6, 8)" in refused.err
    assert toolkit("run", "export", "tiny", "--average", "3", "--json").json["averaged"] == [2, 6, 8]


def test_no_mean_of_adapters(folder: Path) -> None:
    training = {"max_steps": 2, "keep_every": 1}
    recipe = write_recipe(folder, memory=[{"plugin": "lora", "r": 2}], exporters=["merge-lora"], training=training)
    train(recipe)
    assert "trains an adapter" in toolkit("run", "export", "tiny", "--average", "2", status=2).err


def damage(run: RunDirectory) -> None:
    (run.checkpoints / "checkpoint-1" / "model.safetensors").write_bytes(b"")


REFUSED: dict[str, tuple[Callable[[RunDirectory], None], list[str], int, str]] = {
    "no such checkpoint": (lambda run: None, ["--checkpoint", "7"], 2, "tiny has checkpoints at the steps 1"),
    "no such exporter": (lambda run: None, ["--exporter", "model-foldr"], 2, "did you mean 'model-folder'?"),
    "a recipe without exporters": (lambda run: None, ["--recipe", "bare.yaml"], 2, "has no exporters"),
    "a damaged checkpoint": (damage, ["--checkpoint", "1"], 2, "model.safetensors has 0 bytes"),
    "no intact checkpoint": (damage, [], 2, "no checkpoint of tiny is intact: checkpoint-1"),
}


def test_what_cannot_be_exported(folder: Path) -> None:
    recipe = write_recipe(folder, training={"max_steps": 1, "eval_steps": 1}, exporters=["model-folder"])
    result, _ = train(recipe)
    write_recipe(folder, "bare", exporters=[])
    run = RunDirectory(result.folder)
    for prepare, words, status, message in REFUSED.values():
        prepare(run)
        assert message in toolkit("run", "export", "tiny", *words, status=status).err, words
    with run.locked():
        assert "another process is working on" in toolkit("run", "export", "tiny", status=3).err
    assert json.loads((run.folder / "run.json").read_text())["status"] == "finished"
