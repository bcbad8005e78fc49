"""`import toolkit`: the commands as functions, which give a script or notebook what the command line gives a person."""

from __future__ import annotations

import inspect
import json
import math
import pkgutil
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests.command_line import toolkit as command
from tests.tiny import assert_same_run, callback, write_recipe
from toolkit.errors import InterruptedRun, RecipeError, RunMismatchError, ToolkitError, UsageError
from toolkit.events import CheckpointSaved, Event, StepDone
from toolkit.lifecycle.sweep_call import SweepResult

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python-api.md"
SHORT = {"training.max_steps": 4, "training.eval_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, in which `stopped` was interrupted and continued, and `whole` was not."""
    folder = tmp_path_factory.mktemp("api")
    recipe, runs = write_recipe(folder), folder / "runs"
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 1:  # noticed at the end of the next step
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        with pytest.raises(InterruptedRun, match="stopped by SIGINT; step 2 is saved") as stopped:
            toolkit.run(recipe, overrides=SHORT, runs=runs, name="stopped", listener=interrupt)
        assert stopped.value.signal_number == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is handler
        toolkit.run(recipe, overrides=SHORT, runs=runs, name="stopped")
        toolkit.run(recipe, overrides=SHORT, runs=runs, name="whole")
    return folder


@pytest.fixture(autouse=True)
def _cache_of_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(folder / "cache"))


def test_interrupted_in_one_call_a_run_is_finished_by_the_next_as_if_it_had_never_stopped(folder: Path) -> None:
    assert_same_run(folder / "runs" / "stopped", folder / "runs" / "whole")
    log = (folder / "runs" / "stopped" / "run.log").read_text(encoding="utf-8")
    assert re.search(r"error: stopped by SIGINT.*\n(.*\n)*.*  finished\n$", log)


def test_called_again_it_finds_the_run_finished_as_the_command_does(folder: Path) -> None:
    again = toolkit.run(folder / "tiny.yaml", overrides=SHORT, runs=folder / "runs", name="whole")
    assert (again.already_finished, again.steps, again.model_folder) == (True, 4, folder / "runs/whole/model")
    assignments = [f"--set={key}={value}" for key, value in SHORT.items()]
    same = command(
        "recipe", "run", str(folder / "tiny.yaml"), *assignments, f"--runs={folder}/runs", "--name=whole", "--json"
    )  # fmt: skip
    assert same.json["already_finished"]
    with pytest.raises(RunMismatchError, match="was made with other settings"):
        toolkit.run(folder / "tiny.yaml", overrides=SHORT | {"model.dropout": 0.2}, runs=folder / "runs", name="whole")


def test_a_run_in_another_thread_trains_without_signals(folder: Path) -> None:
    events: list[Event] = []
    arguments: dict[str, Any] = {
        "overrides": SHORT | {"training.max_steps": 1},
        "runs": folder / "runs",
        "name": "thread",
        "listener": events.append,
    }
    thread = threading.Thread(target=toolkit.run, args=(folder / "tiny.yaml",), kwargs=arguments)
    thread.start()
    thread.join()
    assert toolkit.run(folder / "tiny.yaml", **arguments).already_finished
    assert any(isinstance(event, CheckpointSaved) for event in events)


def test_a_run_begins_at_the_checkpoint_of_another(folder: Path) -> None:
    longer = SHORT | {"training.max_steps": 5}
    child = toolkit.run(
        folder / "tiny.yaml", overrides=longer, runs=folder / "runs", name="child", from_checkpoint="whole@4"
    )
    assert child.steps == 5
    with pytest.raises(UsageError, match="--from whole@3: there is no such checkpoint"):
        toolkit.run(
            folder / "tiny.yaml", overrides=longer, runs=folder / "runs", name="other", from_checkpoint="whole@3"
        )


def test_it_evaluates_and_generates_what_the_commands_do(folder: Path) -> None:
    runs = str(folder / "runs")
    reached = toolkit.evaluate("whole", runs=runs, max_documents=3)
    same = command("evaluate", "whole", "--runs", runs, "--max-documents", "3", "--json").json
    assert (reached.documents, reached.bits_per_byte) == (same["documents"], same["bits_per_byte"])
    text = toolkit.generate(folder / "runs" / "whole", "the cat", max_new_tokens=5, seed=3)
    same = command("generate", "whole", "--runs", runs, "--prompt=the cat", "--max-new-tokens=5", "--seed=3", "--json")
    assert text == same.json["text"]
    assert toolkit.generate("whole", "the", runs=runs, max_new_tokens=5, top_k=None, seed=3).startswith("the")
    with pytest.raises(UsageError, match=r"no run in .* is named 'hole'; did you mean 'whole'"):
        toolkit.generate("hole", "the", runs=runs)
    with pytest.raises(UsageError, match="max_new_tokens is 0, and must be at least 1"):
        toolkit.generate("whole", "the", runs=runs, max_new_tokens=0)


def test_it_plans_what_the_command_plans(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    made = toolkit.plan("./tiny.yaml", overrides=SHORT, device="t4")
    same = command("recipe", "plan", "./tiny.yaml", "--set=training.max_steps=4", "--device=t4", "--json").json
    assert (made.peak_bytes, made.limit_bytes, made.steps) == (same["peak_bytes"], same["limit_bytes"], 4)
    assert made.fits
    small = toolkit.plan("./tiny.yaml", device="t4", memory=10**8)
    assert (small.fits, small.limit_bytes) == (False, 10**8)
    assert toolkit.plan("./tiny.yaml", device="t4", memory="100MB") == small
    with pytest.raises(UsageError, match="--memory much: not a size"):
        toolkit.plan("./tiny.yaml", memory="much")
    with pytest.raises(UsageError, match="--device t5: no such device"):
        toolkit.plan("./tiny.yaml", device="t5")


def test_it_rehearses(folder: Path) -> None:
    result, stand_ins = toolkit.rehearse(folder / "tiny.yaml", runs=folder / "runs", name="tried")
    assert result.folder == folder / "runs" / "tried-rehearsal"
    assert "dataset" in {stand_in.section for stand_in in stand_ins}


def test_the_folder_of_runs_is_the_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_RUNS", str(folder / "runs"))
    assert toolkit.generate("whole", "the cat", max_new_tokens=1).startswith("the cat")
    monkeypatch.delenv("TOOLKIT_RUNS")
    monkeypatch.chdir(folder)
    assert toolkit.generate("whole", "the cat", max_new_tokens=1).startswith("the cat")


VALUES: list[tuple[str, Any, str]] = [
    ("training.max_steps", 3, "3"),
    ("training.learning_rate", 5e-05, "5e-05"),
    ("training.gradient_checkpointing", True, "true"),
    ("training.eval_steps", None, "null"),
    ("training.report_to", ["tensorboard"], "[tensorboard]"),
    ("training.report_to", ("tensorboard",), "[tensorboard]"),
    ("model", {"plugin": "llama", "parameters": "1M"}, "{plugin: llama, parameters: 1M}"),
    ("memory", [], "[]"),
    ("description", 'a "quote" and ü\nline: # 1', r'"a \"quote\" and ü\nline: # 1"'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "text"), VALUES)
def test_an_override_is_the_value_that_set_reads(key: str, value: Any, text: str, folder: Path) -> None:
    recipe = folder / "tiny.yaml"
    one = toolkit.resolve(recipe, overrides={key: value})
    other = toolkit.resolve(recipe, overrides=[f"{key}={text}"])
    assert one.data() == other.data()
    assert one.data() != toolkit.resolve(recipe).data() or key == "memory"


def test_the_origin_of_an_override_is_noted_as_that_of_set(folder: Path) -> None:
    resolved = toolkit.resolve(folder / "tiny.yaml", overrides={"training.max_steps": 3})
    assert resolved.origins()["training.max_steps"] == (3, "--set training.max_steps=3")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"training.max_stps": 3}, RecipeError, "--set training.max_stps=3.*did you mean 'max_steps'"),
        ({"training.max_steps": "many"}, RecipeError, "--set training.max_steps=\"many\".*but this is 'many'"),
        ({"memory.0.r": 3}, UsageError, "--set memory.0.r=3: no item 0 in a list of 0"),
        ({"recipe.x": 3}, UsageError, "--set recipe.x=3: cannot set x inside 1, which is not a mapping"),
        ({"training.learning_rate": float("nan")}, UsageError, "overrides: training.learning_rate is nan; a recipe"),
        ({"training.max_steps": {1}}, UsageError, r"overrides: training.max_steps is \{1\}; a recipe holds numbers"),
        (["training.max_steps"], UsageError, "write it as --set training.max_steps=100"),
    ],
)
def test_a_wrong_override_is_named(overrides: Any, error: type[Exception], message: str, folder: Path) -> None:
    with pytest.raises(error, match=message):
        toolkit.resolve(folder / "tiny.yaml", overrides=overrides)


@pytest.mark.slow
def test_the_example_in_the_documentation_runs_and_shows_what_it_prints_alone(folder: Path) -> None:
    """In a process of its own, as a script; with a recipe that takes seconds in the place of `quickstart`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    script = "\n".join(blocks)
    (in_readme,) = re.findall(r"^result = toolkit\.run.*", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert in_readme in script
    assert script.count('"quickstart"') >= 5
    script = re.sub(r'(resolve|run|sweep)\("quickstart"', r'\1("./tiny.yaml"', script).replace('"quickstart"', '"tiny"')
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.slow
def test_a_sweep_trains_each_value_once_and_says_which_is_best(folder: Path) -> None:
    settings: dict[str, object] = {"training.learning_rate": [1e-3, 1e-2], "training.max_steps": 4}
    told: list[Event] = []

    def sweep() -> SweepResult:
        return toolkit.sweep(folder / "tiny.yaml", settings, runs=folder / "runs", name="swept", listener=told.append)

    swept = sweep()
    assert [(trial.run, trial.how, trial.step) for trial in swept.trials] == [
        ("trial-000", "finished", 4), ("trial-001", "finished", 4),
    ]  # fmt: skip
    assert swept.best == min(swept.trials, key=lambda trial: trial.loss or math.inf)
    assert f"--set=training.learning_rate={swept.best.values['training.learning_rate']}" in (swept.command or "")
    assert swept.report.is_file()
    told.clear()
    assert sweep().trials == swept.trials
    assert not told


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"training.learning_rate": 1e-3}, "nothing is varied"),
        ({"training.learning_rate": [1e-3, -1]}, "greater than 0"),
        ({"training.learning_rate": "1e-2..1e-3", "description": "a, b"}, "from a lower to a higher number"),
        (["training.learning_rate=1e-3,1e-3"], "all values are the same"),
    ],
)
def test_a_sweep_is_checked_before_its_first_trial(
    settings: dict[str, object] | list[str], expected: str, folder: Path
) -> None:
    with pytest.raises(ToolkitError, match=expected):
        toolkit.sweep(folder / "tiny.yaml", settings, runs=folder / "runs", name="refused")
    assert not (folder / "runs/refused").exists()


NAMES: list[str] = toolkit.__all__


def test_no_module_takes_the_place_of_a_function() -> None:
    """A submodule that is imported becomes an attribute of its package, and would hide it."""
    assert not {module.name for module in pkgutil.iter_modules(toolkit.__path__)} & set(NAMES)
    assert set(NAMES) <= set(dir(toolkit))
    with pytest.raises(AttributeError, match="module 'toolkit' has no attribute 'rnu'"):
        attrgetter("rnu")(toolkit)


@pytest.mark.parametrize("function", [name for name in NAMES if name[0].islower()])
def test_each_argument_and_error_is_documented(function: str) -> None:
    code: Callable[..., Any] = getattr(toolkit, function)
    documentation = inspect.getdoc(code) or ""
    arguments = [name for name in code.__annotations__ if name != "return"]
    assert [name for name in arguments if f"    {name}: " not in documentation] == []
    assert "Returns:" in documentation
    assert "Raises:" in documentation


SCRIPT = """
import toolkit

result = toolkit.run("quickstart", overrides={"training.max_steps": 10}, listener=toolkit.LogLines(print))
reveal_type(result)
reveal_type(toolkit.resolve("quickstart", overrides=["training.max_steps=10"]).training.max_steps)
reveal_type(toolkit.plan("quickstart", memory="12GiB").fits)
reveal_type(toolkit.evaluate("quickstart").bits_per_byte)
reveal_type(toolkit.generate("quickstart", "The"))
toolkit.rnu
toolkit.run("quickstart", names="a")
"""


@pytest.mark.slow
def test_a_type_checker_sees_the_types_in_a_users_script(tmp_path: Path) -> None:
    """Checked with our settings, so that what was checked of the toolkit before is not checked again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = ["--strict", "--output=json", "--config-file", str(ROOT / "pyproject.toml"), str(script)]
    done = subprocess.run([sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    found = [(line["line"], line["message"]) for line in map(json.loads, done.stdout.splitlines())]
    revealed = ("toolkit.events.RunResult", "int | None", "bool", "float", "str")
    assert [message for _, message in found[:5]] == [f'Revealed type is "{name}"' for name in revealed], done
    assert [line for line, _ in found[5:]] == [10, 11]
    assert 'has no attribute "rnu"' in found[5][1]
    assert 'Unexpected keyword argument "names"' in found[6][1]


def test_a_run_is_found_with_the_plugins_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback(tmp_path / "given", "made", "pass")
    recipe = write_recipe(tmp_path, callbacks=["made"], exporters=["model-folder"])
    monkeypatch.chdir(tmp_path)
    toolkit.run(recipe, overrides=SHORT, plugin_folders=["given/plugins"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runs = tmp_path / "runs"
    assert toolkit.evaluate("tiny", runs=runs, max_documents=1).documents == 1
    command("run", "verify", "tiny", "--data", "--runs", str(runs))
    command("run", "export", "tiny", "--runs", str(runs))
