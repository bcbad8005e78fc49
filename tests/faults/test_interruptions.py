"""Real processes and real signals: what a person finds afterwards, and what the same command does then."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.tiny import assert_same_run, command, losses, train, train_in_two, wait_for, write_recipe
from toolkit.errors import InterruptedRun, RunMismatchError, UnavailableError
from toolkit.events import Message

# On a machine that is slow enough, steps would be compiled to save time.
LONG = {"max_steps": 3000, "eval_steps": 3000, "torch_compile": False}


def test_killed_between_saves_it_goes_on_from_the_last_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={**LONG, "save_steps": 4})
    process = command("recipe", "run", str(recipe), "--quiet", cwd=tmp_path)
    run = tmp_path / "runs" / "tiny"
    wait_for('"step": 8, "kind": "save"', process, run / "metrics.jsonl")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = max(int(folder.name.removeprefix("checkpoint-")) for folder in (run / "checkpoints").glob("checkpoint-*"))
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "running"
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=saved + 3)
    with pytest.raises(InterruptedRun):
        train(recipe, name="never-killed", stop_after=saved + 3)
    assert losses(run) == losses(tmp_path / "runs" / "never-killed")
    assert [step for step, *_ in losses(run)] == list(range(1, saved + 4))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_saves_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    recipe = write_recipe(tmp_path, training=LONG)
    process = command("recipe", "run", str(recipe), cwd=tmp_path)
    run = tmp_path / "runs" / "tiny"
    wait_for('"step": 3', process, run / "metrics.jsonl")
    process.send_signal(number)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 128 + number, out + err
    (saved,) = (run / "checkpoints").iterdir()
    step = saved.name.removeprefix("checkpoint-")
    assert f"stopped by {number.name}; step {step} is saved; the same command resumes from there" in err
    assert "Traceback" not in out + err
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["attempts"][-1]["how"], record["attempts"][-1]["step"]) == (
        "interrupted",
        "interrupted",
        int(step),
    )


def test_a_damaged_checkpoint_is_skipped_aloud_and_the_end_is_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"save_steps": 2})
    whole, _ = train(recipe, name="whole")
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=4)
    weights = tmp_path / "runs" / "tiny" / "checkpoints" / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    resumed, events = train(recipe)
    told = [event.text for event in events if isinstance(event, Message)]
    assert "skipped checkpoint-4: the content of model.safetensors has changed on disk" in told
    assert_same_run(whole.folder, resumed.folder)


def test_checkpoints_of_another_run_are_not_taken(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    other, _ = train(recipe, "training.seed=1", name="other")
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    foreign = tmp_path / "runs" / "tiny" / "checkpoints" / "checkpoint-8"
    shutil.copytree(other.folder / "checkpoints" / "checkpoint-8", foreign)
    result, events = train(recipe)
    assert "skipped checkpoint-8: it belongs to another run" in [e.text for e in events if isinstance(e, Message)]
    whole, _ = train(recipe, name="whole")
    assert_same_run(whole.folder, result.folder)


def test_killed_after_its_last_save_it_only_exports(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    whole, _ = train(recipe, name="whole")
    result, _ = train(recipe)
    record = json.loads((result.folder / "run.json").read_text(encoding="utf-8"))
    shutil.rmtree(result.folder / "model")
    (result.folder / "run.json").write_text(
        json.dumps(record | {"status": "running", "results": None}), encoding="utf-8"
    )
    again, events = train(recipe)
    assert (again.steps, again.tokens_seen) == (8, result.tokens_seen)
    assert not [event for event in events if type(event).__name__ == "StepDone"]
    assert_same_run(whole.folder, again.folder)


def test_finished_it_says_so_and_changes_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    first, _ = train(recipe)
    before = {file: file.stat().st_mtime_ns for file in first.folder.rglob("*") if file.name != "lock"}
    second, events = train(recipe)
    assert (first.already_finished, second.already_finished) == (False, True)
    assert second.eval_loss == first.eval_loss
    assert events == []
    assert before == {file: file.stat().st_mtime_ns for file in first.folder.rglob("*") if file.name != "lock"}


def test_fresh_starts_beside_the_old_run_and_the_command_goes_on_with_the_new(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    first, _ = train(recipe)
    second, _ = train(recipe, fresh=True)
    assert second.folder.name == "tiny-2"
    assert_same_run(first.folder, second.folder)
    assert train(recipe)[0].folder == second.folder


def test_changed_settings_are_named_with_both_values(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    with pytest.raises(RunMismatchError) as error:
        train(recipe, "training.learning_rate=1e-4", "model.dropout=0", "objective.block_size=16")
    assert set(error.value.differences) == {
        "training.learning_rate: the run has 0.001, the recipe now says 0.0001",
        "model.dropout: the run has 0.1, the recipe now says 0.0",
        "objective.block_size: the run has 32, the recipe now says 16",
    }
    # How often it is watched and saved is not part of what it is.
    train(recipe, "training.eval_steps=1", "training.save_steps=3", "callbacks=[samples]")


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("dataset.max_samples=150", "dataset.max_samples: the run has None, the recipe now says 150"),
        ("dataset.seed=1", "dataset.seed: the run has 42, the recipe now says 1"),
        ("dataset.eval_fraction=0.2", "dataset.eval_fraction: the run has 0.1, the recipe now says 0.2"),
        ("tokenizer.vocab_size=290", "tokenizer.vocab_size: the run has 300, the recipe now says 290"),
        ("model.dropout=0.2", "model.dropout: the run has 0.1, the recipe now says 0.2"),
        ("model.num_hidden_layers=3", "model.num_hidden_layers: the run has 2, the recipe now says 3"),
        ("objective.block_size=16", "objective.block_size: the run has 32, the recipe now says 16"),
        ("objective.document_mask=true", "objective.document_mask: the run has False, the recipe now says True"),
        ("optimizer=muon", "optimizer.plugin: the run has 'adamw', the recipe now says 'muon'"),
        ("memory=[{plugin: small-batch, micro_batch_size: 2}]",
         "training.micro_batch_size: the run has None, the recipe now says 2"),
        ("memory=[lora]", "memory.lora.plugin: the run has nothing, the recipe now says 'lora'"),
        ("training.seed=1", "training.seed: the run has 42, the recipe now says 1"),
        ("training.learning_rate=1e-4", "training.learning_rate: the run has 0.001, the recipe now says 0.0001"),
        ("training.lr_scheduler_type=cosine",
         "training.lr_scheduler_type: the run has 'linear', the recipe now says 'cosine'"),
        ("training.global_batch_size=8", "training.global_batch_size: the run has 4, the recipe now says 8"),
        ("training.max_steps=9", "training.max_steps: the run has 8, the recipe now says 9"),
        ("training.precision=bf16", "training.precision: the run has 'fp32', the recipe now says 'bf16'"),
        ("training.on_spike=skip-batch", "training.on_spike: the run has 'warn', the recipe now says 'skip-batch'"),
    ],
)  # fmt: skip
def test_every_setting_that_changes_a_number_is_an_error_and_nothing_trains(
    tmp_path: Path, override: str, difference: str
) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    before = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    with pytest.raises(RunMismatchError) as error:
        train(recipe, override)
    assert difference in error.value.differences
    assert "--fresh" in str(error.value)
    assert before == {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}


def test_another_tokenizer_under_the_same_path_is_noticed(tmp_path: Path) -> None:
    made, _ = train(write_recipe(tmp_path, "made", training={"max_steps": 1}))
    folder = shutil.copytree(made.model_folder, tmp_path / "tokenizer")
    recipe = write_recipe(tmp_path, tokenizer={"plugin": "pretrained", "path": str(folder)})
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunMismatchError, match=r"the prepared tokens: the run has .*, the data now gives"):
        train(recipe)


def test_changed_texts_are_noticed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    with (tmp_path / "texts.txt").open("a", encoding="utf-8") as file:
        file.write("One more sentence that was not there before.\n")
    with pytest.raises(RunMismatchError, match="the prepared tokens"):
        train(recipe)


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    from toolkit.storage.run_directory import RunDirectory

    recipe = write_recipe(tmp_path)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=2)
    with RunDirectory(tmp_path / "runs" / "tiny").locked(), pytest.raises(UnavailableError, match="another process"):
        train(recipe)


def test_leftovers_of_a_crash_are_cleaned_and_never_read(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=4)
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    half = checkpoints / ".staging" / "checkpoint-6"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (checkpoints / ".removing-checkpoint-2").mkdir()
    result, _ = train(recipe)
    assert {folder.name for folder in checkpoints.iterdir()} == {"checkpoint-4", "checkpoint-8"}
    assert result.steps == 8


def test_older_checkpoints_make_room(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, memory=[{"plugin": "frequent-saves", "save_steps": 2, "save_total_limit": 3}])
    result, _ = train(recipe)
    assert {folder.name for folder in (result.folder / "checkpoints").iterdir()} == {
        "checkpoint-4",
        "checkpoint-6",
        "checkpoint-8",
    }


def test_saves_by_the_clock(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"save_minutes": 1e-9, "save_total_limit": 100})
    result, _ = train(recipe)
    assert len(list((result.folder / "checkpoints").iterdir())) == 8


def test_a_checkpoint_is_the_trainers_own_and_holds_no_arguments(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result, _ = train(write_recipe(tmp_path))
    saved = result.folder / "checkpoints" / "checkpoint-8"
    assert not (saved / "training_args.bin").exists()
    assert {oct(file.stat().st_mode & 0o777) for file in saved.iterdir()} == {oct(0o666 & ~umask())}
    model = AutoModelForCausalLM.from_pretrained(saved)
    exported = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    assert all(bool((a == b).all()) for a, b in zip(model.parameters(), exported.parameters(), strict=True))


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_interrupted_twice_it_still_ends_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    whole, _ = train(recipe, name="whole")
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=3)
    resumed = train_in_two(recipe, stop_after=5)
    assert_same_run(whole.folder, resumed.folder)
    assert resumed.seconds > 0


BUSY = '''
"""Documents that take minutes."""

import hashlib
from pathlib import Path

from toolkit.api import Dataset


class Busy(Dataset):
    """Stays in native code, which looks for no signal."""

    def load(self, run):
        Path("loading").write_text("here")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
'''


@pytest.mark.slow
def test_a_signal_to_native_code_before_training_ends_the_run_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "dataset"
    folder.mkdir(parents=True)
    (folder / "busy.py").write_text(BUSY, encoding="utf-8")
    recipe = write_recipe(tmp_path, dataset={"plugin": "busy"}, plugin_paths=["own"])
    process = command("recipe", "run", str(recipe), cwd=tmp_path)
    wait_for("here", process, tmp_path / "loading")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=180)
    words = "error: stopped by SIGTERM; before training, so there was nothing to save"
    assert (process.returncode, err.splitlines()[-1]) == (128 + signal.SIGTERM, words)
    run = tmp_path / "runs" / "tiny"
    assert (run / "run.log").read_text(encoding="utf-8").splitlines()[-1].endswith(words)
    attempt = json.loads((run / "run.json").read_text(encoding="utf-8"))["attempts"][-1]
    assert (attempt["how"], attempt["error"]) == ("interrupted", words.removeprefix("error: "))
