"""Runs that another version has begun: they go on where nothing that determines numbers differs, and say why not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import toolkit
from tests.tiny import losses, resolved, train
from toolkit import __version__
from toolkit.errors import RunMismatchError, UnavailableError
from toolkit.lifecycle.comparison import differences, require_same
from toolkit.storage.records import FORMATS, Manifest, RunRecord, TrainingState
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.files import read_json, write_json

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_of_0_1_0"
LATER_LOSSES = [
    (4, "train", 5.556365013122559),
    (5, "train", 5.541847229003906),
    (6, "train", 5.529720306396484),
    (6, "eval", 5.532715445351003),
]
"""Of the same run when version 0.1.0 was left alone with it."""

KINDS: dict[str, type[Any]] = {
    "run.json": RunRecord,
    "manifest.json": Manifest,
    "toolkit_state.json": TrainingState,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    for name in ("texts.txt", "old.yaml", "tokenizer"):
        copy: Callable[..., Any] = shutil.copytree if (FIXTURE / name).is_dir() else shutil.copy
        copy(FIXTURE / name, tmp_path / name)
    shutil.copytree(FIXTURE / "run", tmp_path / "runs" / "old")
    monkeypatch.chdir(tmp_path)
    return RunDirectory(tmp_path / "runs" / "old")


def edit(run: RunDirectory, *, identity: dict[str, Any] | None = None, **fields: Any) -> None:
    """Change run.json; an identity of None removes the key."""
    record = read_json(run.folder / "run.json")
    for key, value in (identity or {}).items():
        record["identity"] = {k: v for k, v in record["identity"].items() if k != key} | (
            {} if value is None else {key: value}
        )
    write_json(run.folder / "run.json", record | fields)


def test_a_run_that_names_no_format_goes_on_to_the_same_losses(run: RunDirectory, tmp_path: Path) -> None:
    result, _ = train(tmp_path / "old.yaml")
    assert result.folder == run.folder
    later = [line for line in losses(run.folder) if line[0] > 3]
    assert [line[:2] for line in later] == [line[:2] for line in LATER_LOSSES]
    # To the last bit on the same machine; another processor may round a sum differently.
    assert [line[2] for line in later] == pytest.approx([line[2] for line in LATER_LOSSES], rel=1e-6)
    written = [run.folder / "run.json", *(max(run.checkpoints.iterdir()) / name for name in list(KINDS)[1:])]
    assert [(read_json(file)["format"], read_json(file)["toolkit"]) for file in written] == [
        (FORMATS[KINDS[file.name]], __version__) for file in written
    ]


@pytest.mark.parametrize("name", KINDS)
def test_a_record_of_a_later_format_is_refused_and_names_its_version(
    name: str, run: RunDirectory, tmp_path: Path
) -> None:
    from toolkit.storage import checkpoint

    folder = run.checkpoints / "checkpoint-3"
    file = run.folder / name if name == "run.json" else folder / name
    write_json(file, read_json(file) | {"format": FORMATS[KINDS[name]] + 1, "toolkit": "9.1.0"})
    if name == "toolkit_state.json":
        checkpoint.commit(folder.rename(run.folder / "changed"), folder, run_id=run.id, step=3)  # its checksum, too
    before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    with pytest.raises(UnavailableError) as caught:
        train(tmp_path / "old.yaml")
    assert f"{name} was written by pretrain-toolkit 9.1.0 in format 2, and this is {__version__}" in str(caught.value)
    assert before.items() <= {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}.items()


def test_runs_of_later_versions_do_not_hide_the_others_from_the_list(run: RunDirectory) -> None:
    shutil.copytree(run.folder, run.folder.with_name("other"))
    edit(run, format=99, toolkit="9.1.0")
    answer = toolkit("run", "list", "--json")
    assert [entry["name"] for entry in answer.json] == ["other"]
    assert "written by pretrain-toolkit 9.1.0" in answer.err


def test_a_setting_that_the_run_lacks_is_its_present_default(run: RunDirectory, tmp_path: Path) -> None:
    edit(run, identity={"training.weight_decay": None, "model.max_position_embeddings": None})
    assert differences(run, resolved(tmp_path / "old.yaml")) == {}
    edit(run, identity={"model.dropout": None})
    assert differences(run, resolved(tmp_path / "old.yaml")) == {
        "model.dropout": "the run has its default, 0.0, the recipe now says 0.1"
    }


def test_a_default_that_has_changed_is_named_with_the_cure(run: RunDirectory, tmp_path: Path) -> None:
    recipe = tmp_path / "old.yaml"
    edit(run, identity={"training.weight_decay": 0.1})
    key, cure = "training.weight_decay", "to resume, write weight_decay: 0.1 there"
    # The run's version has not noted what was left to defaults, so it may have been written out.
    unknown = f"the run has 0.1, and the recipe leaves it to the default, now 0.0; {cure}"
    assert differences(run, resolved(recipe)) == {key: unknown}
    edit(run, defaults=[key])
    changed = f"its default has changed from 0.1 to 0.0 since the run began; {cure}"
    assert differences(run, resolved(recipe)) == {key: changed}
    assert differences(run, resolved(recipe, "training.weight_decay=0.1")) == {}
    edit(run, defaults=[])
    assert differences(run, resolved(recipe)) == {key: "the run has 0.1, the recipe now says 0.0"}


def test_a_setting_that_this_version_does_not_know_is_named_unless_nobody_had_set_it(
    run: RunDirectory, tmp_path: Path
) -> None:
    recipe = tmp_path / "old.yaml"
    edit(run, identity={"training.sharpness": 5, "model.old_name": "a"}, toolkit="0.0.9")
    gone = (
        f"pretrain-toolkit {__version__} no longer has this option; resume with the version that began the run, 0.0.9"
    )
    assert differences(run, resolved(recipe)) == {
        "training.sharpness": f"the run has 5, and {gone}",
        "model.old_name": f"the run has 'a', and {gone}",
    }
    edit(run, defaults=["training.sharpness", "model.old_name"])
    assert differences(run, resolved(recipe)) == {}


def test_of_a_replaced_plugin_the_name_is_told_and_not_every_option(run: RunDirectory, tmp_path: Path) -> None:
    found = differences(run, resolved(tmp_path / "old.yaml", "optimizer=muon", "memory=[]"))
    assert found == {
        "optimizer.plugin": "the run has 'adamw', the recipe now says 'muon'",
        "optimizer.betas": "the run has [0.9, 0.999], and the recipe leaves it to the default, now [0.9, 0.95]; "
        "to resume, write betas: [0.9, 0.999] there",
        "memory.small-batch.plugin": "the run has 'small-batch', the recipe now says nothing",
        "training.micro_batch_size": "the run has 2, and the recipe leaves it to the default, now None; "
        "to resume, write micro_batch_size: 2 there",
    }


def test_other_settings_offer_a_new_run_at_the_checkpoint(run: RunDirectory, tmp_path: Path) -> None:
    longer = resolved(tmp_path / "old.yaml", "training.max_steps=8")
    with pytest.raises(RunMismatchError, match=re.escape("or start one from its checkpoint with --from old@3")):
        require_same(run, longer)
    edit(run, status="finished")
    finished = (
        f"{run.folder} finished at step 3, and the recipe now says max_steps: 8: with --from old@3 the same "
        f"command continues from there as a new run"
    )
    with pytest.raises(RunMismatchError, match=re.escape(finished)):
        require_same(run, longer)
    for others in (["training.max_steps=2"], ["training.max_steps=8", "training.learning_rate=1"]):
        with pytest.raises(RunMismatchError, match="was made with other settings"):
            require_same(run, resolved(tmp_path / "old.yaml", *others))
    shutil.rmtree(run.checkpoints / "checkpoint-3")
    with pytest.raises(RunMismatchError) as caught:
        require_same(run, longer)
    assert "--from" not in str(caught.value)


def test_documents_that_another_version_cuts_otherwise_are_named(run: RunDirectory, tmp_path: Path) -> None:
    data = read_json(run.folder / "data.json")
    data["train"]["documents"] += 1
    (run.folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    edit(run, data_key="0-0123456789abcdef")
    with pytest.raises(RunMismatchError) as caught:
        train(tmp_path / "old.yaml")
    assert caught.value.differences == ("the prepared tokens: train.documents: the run has 55, the data now gives 54",)
