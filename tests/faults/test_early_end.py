"""A callback that ends the training before its last step: the run is finished then, however it was stopped before."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.command_server import CommandServer
from tests.tiny import assert_same_run, callback, steps_of, train, train_in_two, write_recipe
from toolkit.errors import InterruptedRun

STOPPING: dict[str, Any] = {
    "callbacks": [{"plugin": "early-stopping", "patience": 2, "threshold": 100.0}],
    "training": {"max_steps": 40, "eval_steps": 2},
}
"""No loss falls by 100, so the third evaluation ends it."""
KILLED_BEFORE_EXPORT = """
def on_train_end(self, args, state, control, **kwargs):
    kill(9)
"""

ENDING = """
def on_step_end(self, args, state, control, **kwargs):
    control.should_training_stop |= state.global_step == 3
"""


def test_early_stopping_saves_exports_and_finishes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, **STOPPING)
    result, _ = train(recipe)
    assert result.steps == 6
    assert max(steps_of(result.folder)) == 6
    assert (result.folder / "model/model.safetensors").is_file()
    again, _ = train(recipe)
    assert again.already_finished


@pytest.fixture(scope="module")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recipe for all, whose undisturbed run is trained once."""
    return write_recipe(tmp_path_factory.mktemp("stopping"), **STOPPING)


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5])
def test_it_ends_where_the_undisturbed_run_ends(stopping: Path, stop_after: int) -> None:
    """At step 4 the signal has the evaluation left out, which the next attempt makes up for."""
    whole, _ = train(stopping, name="whole")
    resumed = train_in_two(stopping, name=f"stopped-after-{stop_after}", stop_after=stop_after)
    assert resumed.steps == whole.steps == 6
    assert_same_run(whole.folder, resumed.folder)


def test_an_evaluation_that_was_made_up_before_a_kill_counts_again(server: CommandServer, tmp_path: Path) -> None:
    """The next attempt starts from the same checkpoint, whose callbacks have not heard of it."""
    callback(tmp_path, "killing", "def on_step_begin(self, args, state, control, **kwargs):\n    kill(9)")
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], **STOPPING)
    whole, _ = train(recipe, name="whole")
    with pytest.raises(InterruptedRun):
        train(recipe, name="resumed", stop_after=4)
    both = "callbacks=[{plugin: early-stopping, patience: 2, threshold: 100.0}, killing]"
    words = ("recipe", "run", str(recipe), "--name", "resumed", "--set", both)
    outcome = server.start(words, folder=tmp_path, output=tmp_path / "output").wait()
    assert outcome.status == -signal.SIGKILL, outcome.err
    resumed, _ = train(recipe, name="resumed")
    assert resumed.steps == 6
    assert_same_run(whole.folder, resumed.folder)


def test_killed_after_its_last_save_it_finishes_there(server: CommandServer, tmp_path: Path) -> None:
    callback(tmp_path, "killing", KILLED_BEFORE_EXPORT)
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], **STOPPING)
    whole, _ = train(recipe, name="whole")
    both = "callbacks=[{plugin: early-stopping, patience: 2, threshold: 100.0}, killing]"
    words = ("recipe", "run", str(recipe), "--name", "killed", "--set", both)
    outcome = server.start(words, folder=tmp_path, output=tmp_path / "output").wait()
    assert outcome.status == -signal.SIGKILL, outcome.err
    resumed, _ = train(recipe, name="killed")
    assert resumed.steps == 6
    assert_same_run(whole.folder, resumed.folder)


def test_a_callback_that_ends_a_step_has_it_saved(tmp_path: Path) -> None:
    callback(tmp_path, "ending", ENDING)
    result, _ = train(write_recipe(tmp_path, plugin_paths=["plugins"], callbacks=["ending"]))
    assert result.steps == 3
    assert max(steps_of(result.folder)) == 3


def test_a_signal_in_the_last_evaluation_has_the_step_saved_first(tmp_path: Path) -> None:
    """An evaluation may take longer than the grace; the next attempt makes up for it."""
    body = """
def on_prediction_step(self, args, state, control, **kwargs):
    if state.global_step == state.max_steps and not (run.folder / "told").exists():
        (run.folder / "told").touch()
        kill(15)
"""
    callback(tmp_path, "signalling", body)
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"])
    whole, _ = train(recipe, name="whole")
    with pytest.raises(InterruptedRun, match="step 8 is saved"):
        train(recipe, "callbacks=[signalling]", name="stopped")
    assert max(steps_of(tmp_path / "runs/stopped")) == 8
    resumed, _ = train(recipe, "callbacks=[signalling]", name="stopped")
    assert resumed.eval_loss == whole.eval_loss
    assert_same_run(whole.folder, resumed.folder)
    record = json.loads((resumed.folder / "run.json").read_text())
    assert [attempt["how"] for attempt in record["attempts"]] == ["interrupted", "finished"]
