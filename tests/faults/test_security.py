"""Nothing that a run reads may run code, and nothing secret that it is given may be written."""

import json
import os
import pickle
from pathlib import Path

import pytest

from tests.command_line import toolkit
from tests.hub_server import HubServer
from tests.tiny import command, train, write_recipe
from toolkit.errors import InterruptedRun, TrainingError
from toolkit.storage.checkpoint import MANIFEST

CANARY = "hf_CANARYtokenThatNobodyMayEverSee"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("manifest", ["as it was", "made to fit"])
def test_a_malicious_pickle_in_a_checkpoint_is_not_run(folder: Path, name: str, manifest: str) -> None:
    """The manifest finds it; and where its author has mended that too, torch opens it as data alone."""
    from toolkit.storage.checkpoint import listed

    recipe = write_recipe(folder)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=4)
    saved = folder / "runs" / "tiny" / "checkpoints" / "checkpoint-4"
    trace = folder / "code-was-run"
    import torch

    torch.save({"state": Malicious(trace), "param_groups": []}, saved / name)
    if manifest == "made to fit":
        written = json.loads((saved / MANIFEST).read_text())
        (saved / MANIFEST).write_text(json.dumps(written | {"files": listed(saved)}))
        with pytest.raises(TrainingError, match="checkpoint-4 contains code or other objects"):
            train(recipe)
    else:
        assert train(recipe)[0].steps == 8
    assert not trace.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "pytorch_model.bin", "adapter_model.bin", "scaler.pt"])
def test_a_pickle_that_is_put_beside_a_checkpoint_is_not_read(folder: Path, name: str) -> None:
    recipe = write_recipe(folder)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=4)
    trace = folder / "code-was-run"
    (folder / "runs" / "tiny" / "checkpoints" / "checkpoint-4" / name).write_bytes(pickle.dumps(Malicious(trace)))
    assert train(recipe)[0].steps == 8
    assert not trace.exists()


@pytest.mark.slow
def test_a_token_in_the_environment_is_written_nowhere(folder: Path) -> None:
    recipe = write_recipe(folder, training={"save_steps": 2}, callbacks=["samples"])
    secrets = dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"), CANARY)
    process = command("recipe", "run", str(recipe), cwd=folder, **secrets)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    page = command("run", "report", "tiny", cwd=folder, **secrets)
    shown = "".join(page.communicate(timeout=300))
    files = [file for root in ("runs", "cache") for file in (folder / root).rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
    assert CANARY not in out + err + shown


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("os.system", "no dataset plugin is named"),
        ("os:system", "no dataset plugin is named"),
        ("subprocess:Popen", "no dataset plugin is named"),
        ("../../etc/passwd", "no dataset plugin is named"),
        ("evil.py", "no dataset plugin is named"),
        ("!!python/object/apply:os.system", "no dataset plugin is named"),
    ],
)
def test_a_recipe_names_plugins_and_no_code(folder: Path, plugin: str, words: str) -> None:
    (folder / "evil.py").write_text("import os\nos.mkdir('code-was-run')\n")
    recipe = write_recipe(folder, dataset={"plugin": plugin})
    assert words in toolkit("recipe", "run", str(recipe), status=2).err
    assert not (folder / "code-was-run").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [code-was-run]", "!!python/name:os.system ''"])
def test_yaml_is_data(folder: Path, tag: str) -> None:
    recipe = folder / "evil.yaml"
    recipe.write_text(f"recipe: 1\ndataset: {tag}\n")
    answer = toolkit("recipe", "run", str(recipe), status=2)
    assert "evil.yaml:2:" in answer.err
    assert not (folder / "code-was-run").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "..", ".hidden", "a/b", ""])
def test_a_run_stays_in_the_folder_of_runs(folder: Path, name: str) -> None:
    recipe = write_recipe(folder)
    before = set(folder.rglob("*"))
    assert "--name" in toolkit("recipe", "run", str(recipe), "--name", name, status=2).err
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize("climbing", ["../secret", "sub/../../secret", "/secret"])
def test_a_manifest_does_not_lead_out_of_its_checkpoint(folder: Path, climbing: str) -> None:
    from toolkit.storage.checkpoint import fault

    train(write_recipe(folder))
    saved = folder / "runs" / "tiny" / "checkpoints" / "checkpoint-8"
    written = json.loads((saved / MANIFEST).read_text())
    (saved.parent / "secret").write_text("x")
    written["files"][climbing] = {"bytes": 1, "sha256": "0" * 64}
    (saved / MANIFEST).write_text(json.dumps(written))
    assert fault(saved, run_id=written["run_id"]) == f"its manifest names {climbing}, which is not one of its files"


CODE = "import os\nos.mkdir('code-was-run')\nfrom transformers import GPT2LMHeadModel as Evil\n"


def test_a_model_folder_with_code_in_it_is_data(folder: Path) -> None:
    result, _ = train(write_recipe(folder))
    model = result.folder / "model"
    config = json.loads((model / "config.json").read_text())
    remote = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (model / "config.json").write_text(json.dumps(config | remote))
    (model / "evil.py").write_text(CODE)
    recipe = write_recipe(folder, "next", model={"plugin": "pretrained", "path": str(model)})
    answer = toolkit("recipe", "run", str(recipe), status=2)
    assert "next.yaml:" in answer.err
    assert "Traceback" not in answer.err
    assert not (folder / "code-was-run").exists()


def test_a_tokenizer_folder_with_code_in_it_is_data(folder: Path) -> None:
    result, _ = train(write_recipe(folder))
    model = result.folder / "model"
    settings = json.loads((model / "tokenizer_config.json").read_text())
    remote = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings | remote))
    (model / "evil.py").write_text(CODE)
    recipe = write_recipe(folder, "next", tokenizer={"plugin": "pretrained", "path": str(model)},
                          training={"max_steps": 1})  # fmt: skip
    toolkit("recipe", "run", str(recipe))  # transformers may still know how to read the rest of it
    assert not (folder / "code-was-run").exists()


def test_weights_in_a_pickle_are_not_run(folder: Path) -> None:
    result, _ = train(write_recipe(folder))
    model = result.folder / "model"
    (model / "model.safetensors").unlink()
    trace = folder / "code-was-run"
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious(trace)}))
    recipe = write_recipe(folder, "next", model={"plugin": "pretrained", "path": str(model)})
    answer = toolkit("recipe", "run", str(recipe), status=2)
    assert "next.yaml:" in answer.err
    assert not trace.exists()


def test_a_dataset_with_a_loading_script_is_not_run(folder: Path, hub: HubServer) -> None:
    script = b"import os\nos.mkdir('code-was-run')\n"
    hub.publish("datasets", "example/scripted", {"scripted.py": script, "README.md": b"# scripted\n"})
    recipe = write_recipe(folder, dataset={"plugin": "hub", "path": "example/scripted"})
    answer = toolkit("recipe", "run", str(recipe), status=2)
    assert "tiny.yaml:" in answer.err
    assert "example/scripted" in answer.err
    assert "Traceback" not in answer.err
    assert not (folder / "code-was-run").exists()
