"""The command itself: help everywhere, misspelt commands, and what becomes of each kind of exception."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.command_line import process, toolkit
from toolkit import __version__
from toolkit.cli import main
from toolkit.errors import InterruptedRun, TrainingError, UnavailableError, UsageError


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child
            yield from commands(child, (*path, name))


EVERY = dict(commands(main.toolkit))


def test_the_commands_are_those_of_the_documentation() -> None:
    leaves = {" ".join(path) for path, command in EVERY.items() if not isinstance(command, click.Group)}
    assert leaves == {
        *(f"recipe {name}" for name in ("list", "show", "validate", "new", "plan", "run", "verify-resume", "schema")),
        *("recipe prepare", "recipe suggest", "recipe sweep", "recipe launch"),
        *("data inspect", "data export-tokens"),
        *(f"plugin {name}" for name in ("list", "show", "new", "check")),
        *(f"run {name}" for name in ("list", "show", "report", "verify", "export")),
        *("generate", "evaluate", "doctor", "completion"),
    }


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_help_is_everywhere_and_has_an_example(path: tuple[str, ...]) -> None:
    short, long = toolkit(*path, "-h").out, toolkit(*path, "--help").out
    assert short == long
    example = short.partition("Examples:\n")[2]
    assert "toolkit " + " ".join(path) in example or isinstance(EVERY[path], click.Group)
    assert "toolkit " in example


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_summaries_fit_the_list_of_commands(path: tuple[str, ...]) -> None:
    assert not EVERY[path].get_short_help_str(50).endswith("...")


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_options_are_explained(path: tuple[str, ...]) -> None:
    for parameter in EVERY[path].params:
        assert not isinstance(parameter, click.Option) or parameter.help


def test_version() -> None:
    assert toolkit("--version").out == f"toolkit {__version__}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["recipy"], "no such command 'recipy'; did you mean 'recipe'?"),
        (["recipe", "validat"], "did you mean 'validate'?"),
        (["plugin", "xyz"], "known: check, list, new, show"),
        (["recipe", "list", "--jsn"], "--json"),
        (["plugin", "show", "memori", "lora"], "memory"),
    ],
)
def test_a_misspelt_word_gets_the_nearest(words: list[str], text: str) -> None:
    assert text in toolkit(*words, status=2).err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("the loss is not a number"), 1),
        (UsageError("no such run"), 2),
        (UnavailableError("the disk is full"), 3),
        (InterruptedRun("step 7 is saved", signal_number=1), 129),
        (InterruptedRun("step 7 is saved", signal_number=2), 130),
        (InterruptedRun("step 7 is saved", signal_number=15), 143),
    ],
)
def test_an_error_for_a_person_is_words_and_a_status(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("toolkit.storage.runs_folder.all_runs", fail)
    assert toolkit("run", "list", status=status).err == f"error: {error}\n"


@pytest.mark.parametrize("place", ["make_context", "invoke"])
def test_a_signal_outside_a_run_is_one_word_at_any_moment(tmp_path: Path, place: str) -> None:
    """Also while click still reads the command line."""
    program = f"""
import os, signal
from toolkit.cli import main
main.LazyGroup.{place} = lambda *words, **more: os.kill(os.getpid(), signal.SIGTERM)
main.main()
"""
    words = [sys.executable, "-c", program, "run", "list"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (143, "interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **more: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("toolkit.storage.runs_folder.all_runs", fail)
    assert isinstance(CliRunner().invoke(main.toolkit, ["run", "list"]).exception, ZeroDivisionError)


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    program = f"{sys.executable} -c 'from toolkit.cli.main import main; main()'"
    line = f"{program} recipe schema -o - | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_terminal_of_another_encoding_gets_what_it_can_show(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: 1 # größer 日本\n", encoding="utf-8")
    answer = process("recipe", "show", "./mine.yaml", cwd=tmp_path, PYTHONIOENCODING="latin-1")
    assert (answer.status, answer.out) == (0, "recipe: 1 # gr\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}er ??\n")


def test_libraries_are_told_to_be_quiet_unless_the_person_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.warnoptions", ["error"])
    monkeypatch.setattr("os.environ", {"TRANSFORMERS_VERBOSITY": "info"})
    main.be_quiet()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["DATASETS_VERBOSITY"] == "error"


def test_the_interrupt_key_stops_a_process(tmp_path: Path) -> None:
    """A command that takes long stops at once, quietly, with the status that a shell expects."""
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "slow.py").write_text("import time; print('here', flush=True); time.sleep(300)")
    words = ["plugin", "show", "model", "slow", "--plugins", "own"]
    # A shell starts background jobs, and so perhaps these tests, with the interrupt key ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    started = subprocess.Popen(
        [sys.executable, "-c", f"{heard}; from toolkit.cli.main import main; main()", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout
    assert started.stdout.readline() == "here\n"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=120)
    assert (started.returncode, err) == (130, "interrupted\n")


@pytest.mark.skipif(find_spec("triton") is None, reason="triton comes with a torch for GPUs")
def test_the_last_line_is_the_commands_own_with_triton_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import triton; from toolkit.cli.main import main; main()", "recipe", "shwo"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean 'show'" in done.stderr.splitlines()[-1]
