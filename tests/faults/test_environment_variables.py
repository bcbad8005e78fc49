"""What variables may not do: change a run's numbers, or let it wait for processes that never come."""

from __future__ import annotations

import getpass
import os
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from tests.command_line import toolkit
from tests.group import free_port
from tests.tiny import assert_same_run, resolved, train, write_recipe
from toolkit.cli.main import be_somebody
from toolkit.errors import UnavailableError
from toolkit.events import Message
from toolkit.lifecycle.launch import run
from toolkit.system import distributed, environment_variables
from toolkit.system.launchers import LAUNCHERS_VARIABLES

ALL = (
    *distributed.RANK_VARIABLES,
    *distributed.RENDEZVOUS_VARIABLES,
    *LAUNCHERS_VARIABLES,
    "LOCAL_WORLD_SIZE",
)


@pytest.fixture(autouse=True)
def nothing_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    for name in ALL:
        monkeypatch.delenv(name, raising=False)


def test_variables_of_accelerate_change_no_number_and_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, training={"max_steps": 2, "eval_steps": 2})
    without, _ = train(recipe, name="without")
    left_over = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_TORCH_DEVICE": "meta",
        "FSDP_VERSION": "2",
        "NVIDIA_TF32_OVERRIDE": "1",
    }
    for name, value in left_over.items():
        monkeypatch.setenv(name, value)
    beside, events = train(recipe, name="beside")
    assert_same_run(without.folder, beside.folder)
    told = [event.text for event in events if isinstance(event, Message) and "environment" in event.text]
    assert told == [f"ignored, because the recipe decides: {', '.join(sorted(left_over))} (set in the environment)"]
    assert {name: os.environ[name] for name in left_over} == left_over  # the person's again


def test_a_plan_is_that_of_the_recipe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    without = toolkit("recipe", "plan", str(recipe), "--json").json
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    beside = toolkit("recipe", "plan", str(recipe), "--json").json
    assert beside["peak_bytes"] == without["peak_bytes"]


def test_what_the_libraries_set_for_themselves_does_not_outlive_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with environment_variables.set_aside():
        assert "ACCELERATE_MIXED_PRECISION" not in os.environ
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = "inductor"
    assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize("value", ["0", "100m", "all", "2,1"])
def test_a_number_of_threads_that_is_none_is_not_used(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with environment_variables.set_aside():
        assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == value


WHOLE = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**WHOLE, "RANK": "4"}, "RANK is set to 4, but the ranks of 4 processes end at 3"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "env -u PMI_SIZE -u PMI_RANK toolkit"),
    ],
)
def test_processes_that_cannot_meet_are_answered_before_any_wait(
    given: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole table is that of distributed's own tests."""
    recipe = write_recipe(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError) as error:
        train(recipe)
    assert message in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_processes_that_never_come_are_waited_for_aloud_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    recipe = write_recipe(tmp_path)
    resolved(recipe)  # its imports are not what is waited for
    for name, value in {**WHOLE, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT", timedelta(seconds=2))
    events: list[object] = []
    with pytest.raises(UnavailableError, match="the rendezvous of the 4 processes at"):
        run(resolved(recipe), runs=tmp_path / "runs", listener=events.append)
    assert events[-1] == Message(f"waiting for 3 other processes at 127.0.0.1:{port}")  # and before it, of the data


def test_a_user_without_a_name_and_a_home_gets_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def unknown(*_: object) -> None:
        raise KeyError

    for function in ("pwd.getpwuid", "pwd.getpwnam"):
        monkeypatch.setattr(function, unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    monkeypatch.setattr("os.environ", dict(os.environ))  # what it sets is gone with the test
    be_somebody()
    user = f"user-{os.getuid()}"
    assert getpass.getuser() == user
    assert Path.home() == tmp_path / f"toolkit-{user}"
    assert Path.home().stat().st_mode & 0o777 == 0o700
    be_somebody()


LONG = "n" * 300


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("recipe", "run", "{recipe}", "--name", LONG), 2, "has at most 200 bytes here, and this one has 300"),
        (("recipe", "run", f"./{LONG}.yaml"), 2, "there is no recipe file"),
        (("run", "show", LONG), 2, "no run in runs is named"),
        (("recipe", "run", "{recipe}", "--runs", LONG), 3, "File name too long"),
        (("recipe", "validate", "{recipe}", "--set", f"dataset.files={LONG}"), 0, ""),
        (("recipe", "validate", "{recipe}", "--plugins", LONG), 3, "File name too long"),
    ],
)
def test_a_name_of_300_characters_is_answered_in_a_sentence(
    words: tuple[str, ...], status: int, message: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    assert message in toolkit(*(word.format(recipe=recipe) for word in words), status=status).err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[wandbb]", "training.report_to[0]: no tracker is named 'wandbb'; did you mean 'wandb'?"),
        ("tensorbord", "no tracker is named 'tensorbord'; did you mean 'tensorboard'?"),
        ("comet_ml", "training.report_to: comet_ml is not installed here: pip install comet-ml, or remove it"),
        ("[dagshub]", "dagshub is not installed here: pip install dagshub mlflow"),
    ],
)
def test_a_tracker_that_is_not_here_is_found_by_validation(
    value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = write_recipe(tmp_path)
    assert message in toolkit("recipe", "validate", str(recipe), "--set", f"training.report_to={value}", status=2).err


def test_a_bare_tracker_is_a_list_of_one_and_none_is_none(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert resolved(recipe, "training.report_to=tensorboard").training.report_to == ("tensorboard",)
    assert resolved(recipe, "training.report_to=none").training.report_to == ()


class FailingTracker(TrainerCallback):
    """A tracker whose server is there until `fails_at`."""

    fails_at = "on_log"
    told: ClassVar[list[str]] = []

    def on_train_begin(self, *_: object, **known: object) -> None:
        self._tell("on_train_begin")

    def on_log(self, *_: object, **known: object) -> None:
        self._tell("on_log")

    def _tell(self, event: str) -> None:
        self.told.append(event)
        if event == self.fails_at:
            raise ConnectionError("api_key not configured")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingTracker]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", FailingTracker)
    monkeypatch.setattr("toolkit.recipe.trackers.missing", lambda tracker: ())
    monkeypatch.setattr(FailingTracker, "told", [])
    return FailingTracker


def test_a_tracker_that_fails_in_a_run_is_told_of_once_and_costs_nothing(
    failing: type[FailingTracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    result, events = train(write_recipe(tmp_path), "training.report_to=wandb")
    assert result.steps == 8
    assert failing.told == ["on_train_begin", "on_log"]
    said = [event.text for event in events if isinstance(event, Message) and "wandb" in event.text]
    assert said == ["wandb failed, so nothing more is reported to it: api_key not configured; training continues"]


def test_a_tracker_that_refuses_ends_the_run_before_its_first_step(
    failing: type[FailingTracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(failing, "fails_at", "on_train_begin")
    with pytest.raises(UnavailableError, match="wandb cannot be reported to: api_key not configured; log in to it"):
        train(write_recipe(tmp_path), "training.report_to=wandb")


def test_the_names_of_trackers_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from toolkit.recipe.trackers import TRACKER_PACKAGES

    assert INTEGRATION_TO_CALLBACK.keys() <= TRACKER_PACKAGES.keys()
