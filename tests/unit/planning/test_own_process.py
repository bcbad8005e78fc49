"""A plan is made in a process of its own, which says what it has to say and ends when it should."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.planned import RATES
from tests.tiny import command, resolved, write_recipe
from toolkit.api import Progress
from toolkit.api.context import nobody_watches
from toolkit.errors import Place, PlanTooLongError, PluginError, Problem, RecipeError, ToolkitError, UnavailableError
from toolkit.planning import fake_step, own_process, variants
from toolkit.planning.choose import resolve_auto
from toolkit.planning.fake_step import trace
from toolkit.planning.own_process import FAULTS_OF_A_FORK, in_own_process, started_beside
from toolkit.planning.trace import Trace
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.registry import Registry

MODEL = '''
"""A model whose making is disturbed."""

from toolkit.api import Model


class Own(Model):
    """Llama."""

    def build(self, tokenizer, run):
        import os, pathlib, time
        from transformers import LlamaConfig, LlamaForCausalLM

        {disturbance}
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        ))
'''


def process_of_work() -> int:
    return os.getpid()


def nested() -> tuple[int, int]:
    return os.getpid(), in_own_process(process_of_work)


def failing(error: Exception) -> None:
    raise error


def telling(progress: Progress) -> None:
    progress("planning memory", 3, unit="tried")
    logging.getLogger("toolkit.of-a-plugin").warning("%s is odd", "this")


def refusing_a_fork() -> str:
    """As autograd does in the fork of a process that has trained beside a GPU."""
    if multiprocessing.parent_process() is not None:
        raise RuntimeError(FAULTS_OF_A_FORK[0])
    return "not in a fork"


def ending(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def computing() -> None:
    while True:
        pass


def beside(work: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    begun = started_beside(work, *args)
    return os.getpid(), begun and begun()


def stay(file: Path) -> None:
    file.write_text(f"{os.getpid()}\n")
    time.sleep(60)


def leave_behind(file: Path, *, killed: bool) -> None:
    begun = started_beside(stay, file)
    assert begun
    while not (file.exists() and file.read_text().endswith("\n")):
        time.sleep(0.02)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)


def noting_its_process(recipe: ResolvedRecipe, **sizes: int) -> Trace:
    with Path(recipe.recipe.document.source).with_name("processes").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return trace(recipe, **sizes)


def own_model(folder: Path, disturbance: str) -> Path:
    (folder / "plugins/model").mkdir(parents=True)
    (folder / "plugins/model/own.py").write_text(MODEL.replace("{disturbance}", disturbance), encoding="utf-8")
    return write_recipe(folder, plugin_paths=["plugins"], model={"plugin": "own"})


def test_work_is_done_in_another_process_and_what_it_asks_for_in_the_same() -> None:
    outer, inner = in_own_process(nested)
    assert outer == inner != os.getpid()


def test_work_beside_that_of_a_plan_is_done_in_a_third_process(caplog: pytest.LogCaptureFixture) -> None:
    plan, other = in_own_process(beside, process_of_work)
    assert len({os.getpid(), plan, other}) == 3
    with pytest.raises(PluginError, match="no plan can be made"):
        in_own_process(beside, failing, PluginError("no plan can be made"))
    in_own_process(beside, telling, nobody_watches)
    assert [record.getMessage() for record in caplog.records] == ["this is odd"]


def test_nothing_is_started_beside_on_one_processor_or_outside_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_beside(process_of_work) is None
    monkeypatch.setattr(own_process, "processors", lambda: 1)
    assert in_own_process(beside, process_of_work)[1] is None


@pytest.mark.parametrize("killed", [True, False])
def test_what_was_started_beside_a_plan_ends_with_it(tmp_path: Path, killed: bool) -> None:
    file = tmp_path / "process"
    with pytest.raises(PluginError) if killed else contextlib.nullcontext():
        in_own_process(leave_behind, file, killed=killed)
    until = time.monotonic() + 30
    while Path(f"/proc/{file.read_text().strip()}/cmdline").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert time.monotonic() < until


def test_auto_traces_side_by_side_what_it_traces_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = resolved(write_recipe(tmp_path, memory=["auto"]))
    monkeypatch.setattr(fake_step, "trace", noting_its_process)
    choices = []
    for number in (2, 1):
        monkeypatch.setattr(own_process, "processors", lambda number=number: number)
        monkeypatch.setattr(variants, "processors", lambda number=number: number)
        choices.append(resolve_auto(recipe, 10**12, rates=RATES)[1])
    processes = (tmp_path / "processes").read_text().split()
    assert len(processes) == 4
    assert processes[0] != processes[1]
    assert processes[2] == processes[3]
    assert choices[0] == choices[1]


@pytest.mark.parametrize(
    "error",
    [
        RecipeError([Problem(Place("mine.yaml", 3, 1), "model.hidden_size", "is odd")]),
        PluginError("no plan can be made"),
        UnavailableError("the Hub cannot be reached", option="path"),
        PlanTooLongError("no plan after 5 min"),
    ],
)
def test_errors_for_the_user_come_back_as_themselves(error: ToolkitError) -> None:
    with pytest.raises(type(error)) as raised:
        in_own_process(failing, error)
    assert str(raised.value) == str(error)
    told = {name: value for name, value in vars(raised.value).items() if name != "__notes__"}
    assert told == vars(error)


def test_a_bug_comes_back_with_where_it_is() -> None:
    with pytest.raises(ZeroDivisionError, match="by what") as raised:
        in_own_process(failing, ZeroDivisionError("by what?"))
    assert "in failing" in raised.value.__notes__[0]


def test_progress_and_messages_reach_the_one_who_watches(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    in_own_process(telling, progress=lambda *words, **more: seen.append((words, more)))
    assert seen == [(("planning memory", 3), {"unit": "tried"})]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("toolkit.of-a-plugin", "this is odd")]


def test_a_process_that_is_killed_is_told_in_a_sentence() -> None:
    with pytest.raises(PluginError, match=r"the process that traced the step was ended by SIGKILL; .* memory runs out"):
        in_own_process(ending, signal.SIGKILL)


def test_work_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "MAX_SECONDS_BETWEEN_MESSAGES", 0.2)
    with pytest.raises(PlanTooLongError, match="too large to be traced"):
        in_own_process(computing)


def test_started_anew_it_traces_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parent cannot be forked, plugins of folders have to be found again."""
    refused = tmp_path / "refused" / "memory" / "later.py"
    refused.parent.mkdir(parents=True)
    refused.write_text("from toolkit.api import Strategy\n\n\nclass Later(Strategy):\n    api_version = 2\n")
    with pytest.raises(PluginError, match="upgrade"):  # what was refused here is not asked for there
        Registry.discover([tmp_path / "refused"]).load("memory", "later")
    recipe = resolved(own_model(tmp_path, ""))
    forked = in_own_process(fake_step.trace, recipe, micro_batch_size=2, accumulation=2)
    monkeypatch.setattr(own_process, "_forked", own_process._started_anew)
    assert in_own_process(fake_step.trace, recipe, micro_batch_size=2, accumulation=2) == forked


def test_what_torch_refuses_in_a_fork_is_started_anew() -> None:
    assert in_own_process(refusing_a_fork) == "not in a fork"


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("run", signal.SIGTERM),
        pytest.param("run", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("run", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("plan", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("plan", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("plan", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_plan_at_once(word: str, number: signal.Signals, tmp_path: Path) -> None:
    """The model never comes, so the command ends only if the plan does not have to."""
    note = tmp_path / "planning"
    recipe = own_model(tmp_path, f"pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(3600)")
    process = command("recipe", word, str(recipe), cwd=tmp_path)
    planning = int(_written(note, process))
    assert planning != process.pid
    process.send_signal(number)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 128 + number
    run = f"error: stopped by {number.name}; before training, so there was nothing to save"
    assert err.splitlines()[-1] == (run if word == "run" else "interrupted")
    _end_of(planning)


@pytest.mark.slow
def test_a_plan_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    note, after = tmp_path / "planning", tmp_path / "after"
    lines = (
        f"parent = os.getppid(); pathlib.Path({str(note)!r}).write_text(str(os.getpid()))",
        "while os.getppid() == parent: time.sleep(0.01)",
        f"time.sleep(2); pathlib.Path({str(after)!r}).touch()",
    )
    model = own_model(tmp_path, "\n        ".join(lines))
    process = command("recipe", "run", str(model), cwd=tmp_path)
    planning = int(_written(note, process))
    process.kill()
    process.communicate()
    _end_of(planning)
    assert not after.exists()


def _end_of(planning: int) -> None:
    """Wait for the end of the plan's process, which is nobody's child if the command has left it behind."""
    end = time.monotonic() + 60
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(planning).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "the plan goes on without its command"
            time.sleep(0.02)


def _written(note: Path, process: subprocess.Popen[str]) -> str:
    while not (note.is_file() and note.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return note.read_text()
