"""`toolkit recipe validate --data` and `recipe plan` find out before a run what is wrong with the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import toolkit

pytestmark = pytest.mark.usefixtures("here")

VALIDATE = ("recipe", "validate", "mine.yaml")


def test_the_first_rows_are_shown() -> None:
    Path("a.txt").write_text("Once upon\na time. " + "And so on. " * 30)
    assert toolkit(*VALIDATE).out == "mine.yaml is valid\n"
    told, shown = toolkit(*VALIDATE, "--data").out.splitlines()
    assert told == "mine.yaml is valid"
    assert shown.startswith("  text-files: 1 file for train; first document: Once upon a time. And so on. And")
    assert shown.endswith("...")
    assert len(shown) < 150
    (verdict,) = toolkit(*VALIDATE, "--data", "--json").json
    assert verdict["data"]["source"] == "1 file for train"
    assert verdict["data"]["document"].startswith("Once upon\na time.")


@pytest.mark.parametrize(
    ("name", "content", "path", "message"),
    [
        ("a.md", "", "dataset.files", "no file matches '*.txt'"),
        ("a.txt", " \n", "dataset.files", "there is no text in a.txt"),
        ("a.csv", "id,content\n1,a\n", "dataset.column", "its first row names no column 'text'"),
        ("a.csv", "id;text\n1;a\n", "dataset.delimiter", "separated by ';' and not by ','"),
        ("a.jsonl", "", "dataset.files", "there is no text in a.jsonl"),
    ],
)
def test_what_a_run_would_refuse_is_found(name: str, content: str, path: str, message: str) -> None:
    Path(name).write_text(content)
    words = () if name in ("a.txt", "a.md") else ("--set", f"dataset.files={name}")
    toolkit(*VALIDATE, *words)
    assert message in toolkit(*VALIDATE, *words, "--data", status=2).err
    (verdict,) = toolkit(*VALIDATE, *words, "--data", "--json", status=2).json
    assert verdict["valid"] is False
    (problem,) = verdict["problems"]
    assert problem["path"] == path
    assert message in problem["message"]


def test_what_the_network_lacks_is_another_status(hub: object, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("hub.yaml").write_text(Path("mine.yaml").read_text().replace('text-files, files: "*.txt"', "hub, path: a/b"))
    assert "has no dataset 'a/b'" in toolkit("recipe", "validate", "hub.yaml", "--data", status=2).err
    words = ("recipe", "validate", "hub.yaml", "--data", "--set", "dataset.path=example/gated")
    assert "is gated" in toolkit(*words, status=3).err


def test_a_plugin_that_shows_nothing_says_so() -> None:
    Path("own/dataset").mkdir(parents=True)
    Path("own/dataset/mine.py").write_text(
        """'''A dataset.'''
from toolkit.api import Dataset


class Mine(Dataset):
    '''Nothing to see.'''

    def load(self, run):
        raise AssertionError("it was loaded")
"""
    )
    words = ("--set", "dataset={plugin: mine}", "--plugins", "own", "--data")
    assert "  mine: this plugin has no preview" in toolkit(*VALIDATE, *words).out


def test_a_plan_tells_what_a_run_would_refuse_and_is_made_all_the_same() -> None:
    answer = toolkit("recipe", "plan", "mine.yaml", "--device", "t4")
    assert "a run would be refused here: mine.yaml:5:31: dataset.files: no file matches" in answer.err
    assert "no file matches" in answer.out
    Path("a.txt").write_text("Once upon a time.")
    answer = toolkit("recipe", "plan", "mine.yaml", "--device", "t4")
    assert "refused" not in answer.err
    assert "text-files: 1 file for train; first document: Once upon a time." in answer.out
