"""`toolkit plugin`: list, show, check; `new` has its own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import process, toolkit
from toolkit.api import KINDS
from toolkit.cli.plugin import KINDS as NAMED
from toolkit.recipe.document import parse
from toolkit.recipe.schema import LIST_SECTIONS
from toolkit.registry import Registry

EVERY = [(offer.kind, offer.name) for offer in Registry.discover().offers()]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "memory").mkdir(parents=True)
    (tmp_path / "own" / "memory" / "my_strategy.py").write_text("""
from pydantic import Field

from toolkit.api import Requirement, Strategy


class MyStrategy(Strategy):
    '''Does nothing yet.'''

    fidelity = "exact"

    size: int = Field(ge=3)
    '''How much of it.'''
    word: str = "so"
    '''A word.'''

    def requires(self):
        return [Requirement("device", "cuda")]
""")
    return tmp_path


def test_the_kinds_of_the_help_text_are_those_of_the_contracts() -> None:
    assert tuple(KINDS) == NAMED


def test_list_names_plugins_who_offers_them_and_what_they_do() -> None:
    entries = toolkit("plugin", "list", "--json").json
    assert [(entry["kind"], entry["name"]) for entry in entries] == EVERY
    assert {entry["distribution"].split()[0] for entry in entries} >= {"pretrain-toolkit"}
    assert all(entry["description"] for entry in entries)
    table = toolkit("plugin", "list").out.splitlines()
    assert len(table) == len(EVERY) + 1
    assert any(line.startswith("optimizer  adamw") and "decoupled weight decay" in line for line in table)


def test_list_shows_a_plugin_that_fails_with_its_failure(here: Path) -> None:
    (here / "own/memory/broken.py").write_text("import no_such_module\n")
    listed = toolkit("plugin", "list", "--kind", "memory", "--plugins", "own").out.splitlines()
    (broken,) = (line for line in listed if " broken " in line)
    assert "FAILS: " in broken
    assert "No module named 'no_such_module'" in broken
    assert any("my-strategy" in line and line.endswith("Does nothing yet.") for line in listed)


def test_list_of_one_kind_with_a_folder_of_ones_own() -> None:
    entries = toolkit("plugin", "list", "--kind", "memory", "--plugins", "own", "--json").json
    assert {entry["kind"] for entry in entries} == {"memory"}
    own = {"kind": "memory", "name": "my-strategy", "distribution": "own/memory/my_strategy.py"}
    assert {**own, "description": "Does nothing yet.", "failure": None} in entries


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_plugin_can_be_shown_and_its_example_is_a_line_of_a_recipe(kind: str, name: str) -> None:
    account = toolkit("plugin", "show", kind, name, "--json").json
    file, _, line = account["place"].rpartition(":")
    assert Path(file).read_text().splitlines()[int(line) - 1].startswith(f"class {account['class'].split(':')[1]}(")
    assert all(option["description"] and option["type"] for option in account["options"])
    if kind == "launcher":
        assert account["example"].startswith(f"toolkit recipe launch NAME --on {name}")
    else:
        example = parse(account["example"], "example").data
        sections = {of: section for section, of in LIST_SECTIONS.items()} | {"filter": "filters"}
        entry = example[sections.get(kind, kind)]
        assert (entry[0] if isinstance(entry, list) else entry)["plugin"] == name
    out = toolkit("plugin", "show", kind, name).out
    assert account["example"] in out
    assert all(option["name"] in out for option in account["options"])


def test_show_tells_facts_types_defaults_and_what_is_required() -> None:
    account = toolkit("plugin", "show", "memory", "my-strategy", "--plugins", "own", "--json").json
    facts = {"claims": [], "requires": ["device cuda"], "fidelity": "exact", "phase": "activations"}
    assert account["facts"] == facts
    assert account["options"] == [
        {"name": "size", "type": "integer >= 3", "required": True, "default": None, "description": "How much of it."},
        {"name": "word", "type": "text", "required": False, "default": "so", "description": "A word."},
    ]
    assert account["example"] == "memory: [{plugin: my-strategy, size: <integer >= 3>, word: so}]"
    out = toolkit("plugin", "show", "memory", "my-strategy", "--plugins", "own").out
    for words in ("Does nothing yet.", "requires     device cuda", "my_strategy.py:7", "required"):
        assert words in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["show", "memory", "small-bath"], "no memory plugin is named 'small-bath'; did you mean 'small-batch'?"),
        (["show", "memory", "lora", "--plugins", "none"], "the plugin folder none does not exist"),
        (["show", "memory", "broken", "--plugins", "own"], "cannot be imported: SyntaxError"),
        (["check", "memory", "small-bath"], "did you mean 'small-batch'?"),
        (["check", "memory", "small-batch", "--set", "size"], "write it as --set"),
        (["new", "memory", "lora"], "already provides a memory plugin 'lora'"),
        (["new", "memory", "json"], "shadow the Python module 'json'"),
        (["new", "memory", "My_Strategy"], "is not a valid plugin name"),
        (["new", "memory", "../up"], "is not a valid plugin name"),
        (["new", "memory", "lambda"], "is not a valid plugin name"),
        (["new", "memory", "2-fast"], "is not a valid plugin name"),
        (["new", "memory", "own"], "own already exists and was not changed"),
    ],
)
def test_wrong_words_are_explained(words: list[str], text: str, here: Path) -> None:
    (here / "own" / "memory" / "broken.py").write_text("def")
    before = sorted(here.rglob("*"))
    assert text in toolkit("plugin", *words, status=2).err
    assert [file for file in sorted(here.rglob("*")) if "__pycache__" not in str(file)] == before


@pytest.mark.slow
def test_check_gives_its_findings() -> None:
    checks = process("plugin", "check", "memory", "small-batch", "--set", "micro_batch_size=1", "--quick", "--json")
    assert checks.status == 0, checks.err
    assert all(check["passed"] for check in checks.json)
    assert {"contract", "light import", "options"} <= {check["name"] for check in checks.json}
    assert [check["detail"] for check in checks.json if not check["tried"]] == [
        "skipped by --quick: whether a run with it that is killed and resumed in a new process ends the same"
    ]
    assert "Traceback" not in checks.err
    failed = toolkit("plugin", "check", "memory", "my-strategy", "--plugins", "own", status=1)  # its size is required
    assert "FAILED" in failed.out
    assert "NOT TRIED  resume" in failed.out
    Path("own/memory/broken.py").write_text("def")
    broken = toolkit("plugin", "check", "memory", "broken", "--plugins", "own", status=1)
    assert "cannot be imported: SyntaxError" in broken.out


def test_new_says_where_it_cannot_write() -> None:
    Path("file").touch()
    assert "is a file" in toolkit("plugin", "new", "memory", "my-strategy", "--directory", "file", status=2).err
    answer = toolkit("plugin", "new", "memory", "my-strategy", "--directory", "file/deep", status=3)
    assert "cannot write file/deep/my-strategy: Not a directory" in answer.err
