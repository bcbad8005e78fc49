"""When checkpoints are written, by whom, which are kept, and what signals have to do with it."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.command_server import CommandServer
from tests.tiny import assert_same_run, callback, steps_of, train, train_in_two, write_recipe
from toolkit.errors import InterruptedRun
from toolkit.events import CheckpointSaved, Message


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="full"),
        pytest.param({"memory": [{"plugin": "lora", "lora_dropout": 0.1}], "exporters": ["merge-lora"]}, id="lora"),
        pytest.param({"optimizer": "muon"}, id="muon", marks=pytest.mark.slow),
        pytest.param({"training": {"precision": "bf16"}}, id="bf16", marks=pytest.mark.slow),
    ],
)
def test_what_a_thread_writes_is_what_is_written_in_line(tmp_path: Path, sections: dict[str, Any]) -> None:
    recipe = write_recipe(tmp_path, **sections)
    saves = ["training.save_steps=2", "training.save_total_limit=9"]
    in_line, _ = train(recipe, *saves, "training.save_in_background=false", name="in-line")
    in_background, events = train(recipe, *saves, "training.save_in_background=true", name="in-background")
    assert_same_run(in_line.folder, in_background.folder)
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [2, 4, 6, 8]
    for step in (2, 4, 6, 8):
        one, other = (run.folder / "checkpoints" / f"checkpoint-{step}" for run in (in_line, in_background))
        assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())
        for file in one.glob("*.safetensors"):
            assert file.read_bytes() == (other / file.name).read_bytes()
    lines = [json.loads(line) for line in (in_background.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "save":
            assert 0 < line["stall_seconds"] <= line["seconds"]
            assert line["bytes"] > 10_000


def test_a_resume_from_what_a_thread_wrote_is_exact(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"save_steps": 2, "save_in_background": True})
    whole, _ = train(recipe, name="whole")
    resumed = train_in_two(recipe, name="resumed", stop_after=5)
    # The newest one was written in line by the stop; without it the run goes on from the thread's.
    assert_same_run(whole.folder, resumed.folder)
    record = json.loads((resumed.folder / "run.json").read_text())
    (resumed.folder / "run.json").write_text(json.dumps(record | {"status": "running", "results": None}))
    for step in steps_of(resumed.folder) - {6}:
        (resumed.folder / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt").unlink()
    again, _ = train(recipe, name="resumed")
    assert_same_run(whole.folder, again.folder)


def test_milestones_are_saved_and_kept(tmp_path: Path) -> None:
    memory = [{"plugin": "frequent-saves", "save_steps": 2, "save_total_limit": 1, "keep_every": 3}]
    result, _ = train(write_recipe(tmp_path, memory=memory))
    assert steps_of(result.folder) == {3, 6, 8}


def test_a_checkpoint_that_was_never_verified_does_not_push_a_good_one_out(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"save_steps": 2, "save_total_limit": 1})
    with pytest.raises(InterruptedRun):
        train(recipe, "training.save_total_limit=9", stop_after=5)
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    (checkpoints / "checkpoint-5" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=5)
    # The damaged one of the same step was moved aside, not away.
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-5", ".damaged-checkpoint-5"}
    train(recipe)
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-8"}


def test_sigusr1_saves_and_goes_on(tmp_path: Path) -> None:
    callback(
        tmp_path,
        "asking",
        "def on_step_begin(self, args, state, control, **kwargs):\n    if state.global_step == 3:\n        kill(10)",
    )
    assert signal.SIGUSR1 == 10
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], callbacks=["asking"])
    result, events = train(recipe)
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [4, 8]
    assert result.steps == 8


def test_a_signal_during_an_evaluation_leaves_it_for_the_next_attempt(tmp_path: Path) -> None:
    callback(
        tmp_path,
        "impatient",
        "def on_prediction_step(self, args, state, control, **kwargs):\n"
        "    if state.global_step == 4:\n"
        "        kill(15)",
    )
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], training={"eval_steps": 2})
    whole, _ = train(recipe, name="whole")
    with pytest.raises(InterruptedRun, match="step 4 is saved"):
        train(recipe, "callbacks=[impatient]")
    run = tmp_path / "runs" / "tiny"
    assert steps_of(run) == {4}
    assert not [
        line for line in (run / "metrics.jsonl").read_text().splitlines() if '"step": 4, "kind": "eval"' in line
    ]
    resumed, _ = train(recipe)
    assert_same_run(whole.folder, resumed.folder)


def test_the_needed_grace_is_measured_and_said(tmp_path: Path) -> None:
    result, events = train(write_recipe(tmp_path))
    (grace,) = [e.text for e in events if isinstance(e, Message) and "after SIGTERM" in e.text]
    seconds = json.loads((result.folder / "run.json").read_text())["grace_seconds"]
    assert 3 <= seconds < 60
    assert f"this run needs {seconds} s after SIGTERM: a step takes " in grace


def test_no_copy_is_taken_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.storage.host_copy.available_memory_bytes", lambda: 1000)
    _, events = train(write_recipe(tmp_path, training={"save_steps": 2}))
    assert [e for e in events if isinstance(e, Message) and e.text.startswith("training waits for each save")]
    saves = [event for event in events if isinstance(event, CheckpointSaved)]
    assert [event.stall_seconds == event.seconds for event in saves] == [True] * 4


def test_what_a_kill_has_cost_is_noted(server: CommandServer, tmp_path: Path) -> None:
    callback(
        tmp_path,
        "killing",
        "def on_step_begin(self, args, state, control, **kwargs):\n    if state.global_step == 6:\n        kill(9)",
    )
    recipe = write_recipe(
        tmp_path,
        plugin_paths=["plugins"],
        training={"save_steps": 4, "save_in_background": False},
        callbacks=["killing"],
    )
    outcome = server.start(("recipe", "run", str(recipe)), folder=tmp_path, output=tmp_path / "output").wait()
    assert outcome.status == -signal.SIGKILL, outcome.err
    result, _ = train(recipe, "callbacks=[]")
    first, second = json.loads((result.folder / "run.json").read_text())["attempts"]
    assert (first["how"], first["lost_steps"]) == (None, 2)
    assert first["lost_seconds"] > 0
    assert (second["how"], second["from_step"], "lost_steps" in second) == ("finished", 4, False)


def test_an_evaluation_that_is_interrupted_twice_is_not_lost(tmp_path: Path) -> None:
    callback(
        tmp_path,
        "impatient",
        "def on_prediction_step(self, args, state, control, **kwargs):\n"
        "    if state.global_step == 3 and os.path.exists('impatient'):\n"
        "        os.remove('impatient')\n"
        "        kill(15)",
    )
    recipe = write_recipe(
        tmp_path, plugin_paths=["plugins"], callbacks=["impatient"], training={"max_steps": 4, "eval_steps": 3}
    )
    whole, _ = train(recipe, name="whole")
    with contextlib.chdir(tmp_path):
        for _ in range(2):
            Path("impatient").touch()
            with pytest.raises(InterruptedRun, match="step 3 is saved"):
                train(recipe)
        assert_same_run(whole.folder, train(recipe)[0].folder)


def test_a_signal_that_a_library_takes_for_its_own_error_is_still_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:  # noqa: BLE001 - as transformers does it
            raise OSError("Can't load tokenizer") from None

    recipe = write_recipe(tmp_path, training={"max_steps": 2})
    with monkeypatch.context() as patched:
        patched.setattr("toolkit.lifecycle.attempt.export", interrupted)
        with pytest.raises(InterruptedRun, match="stopped by SIGTERM"):
            train(recipe)
    assert train(recipe)[0].steps == 2
