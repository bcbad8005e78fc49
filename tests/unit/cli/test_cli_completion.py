"""What the Tab key offers, asked for as bash does it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.command_line import process, toolkit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "elsewhere"):
        run = tmp_path / folder / f"run-in-{folder}"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({}))
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "own" / "memory").mkdir(parents=True)
    (tmp_path / "own" / "memory" / "my_strategy.py").touch()
    return tmp_path


def offered(line: str, **environment: str) -> list[str]:
    words = line.split(" ")
    asked = {"_TOOLKIT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    answer = process(**asked, **environment)
    assert answer.status == 0, answer.err
    return [given.partition(",")[2] for given in answer.out.splitlines()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("toolkit re", "recipe"),
        ("toolkit recipe va", "validate"),
        ("toolkit recipe run --reh", "--rehearse"),
        ("toolkit recipe run wikitext-gpt2-l", "wikitext-gpt2-lora"),
        ("toolkit recipe run mi", "./mine.yaml"),
        ("toolkit recipe validate my-texts wikitext-b", "wikitext-bert"),
        ("toolkit recipe new x --from my-", "my-texts"),
        ("toolkit plugin show mem", "memory"),
        ("toolkit plugin show memory small", "small-batch"),
        ("toolkit plugin show --plugins own memory my-s", "my-strategy"),
        ("toolkit run show run-", "run-in-runs"),
        ("toolkit run report run-", "run-in-runs"),
        ("toolkit run show --runs elsewhere run-", "run-in-elsewhere"),
        ("toolkit generate run-", "run-in-runs"),
        ("toolkit completion f", "fish"),
    ],
)
def test_names_are_completed(line: str, expected: str) -> None:
    assert offered(line) == [expected]


def test_the_folder_of_runs_may_come_from_the_environment() -> None:
    assert offered("toolkit run show run-", TOOLKIT_RUNS="elsewhere") == ["run-in-elsewhere"]


def test_a_path_is_left_to_the_shell() -> None:
    assert process(
        _TOOLKIT_COMPLETE="bash_complete", COMP_WORDS="toolkit recipe run ./m", COMP_CWORD="3"
    ).out.startswith("file,")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    assert "_TOOLKIT_COMPLETE" in toolkit("completion", shell).out


def test_bash_takes_its_script(tmp_path: Path) -> None:
    script = tmp_path / "complete.sh"
    script.write_text(toolkit("completion", "bash").out)
    done = subprocess.run(
        ["bash", "-c", f"set -eu; source {script}; complete -p toolkit"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "toolkit" in done.stdout
