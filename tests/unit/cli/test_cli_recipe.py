"""`toolkit recipe`: list, show, new, schema, and the words of run; what is wrong with recipes is elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import RECIPE, process, toolkit
from toolkit.api import KINDS
from toolkit.recipe import catalog
from toolkit.recipe.json_schema import DESCRIPTIONS
from toolkit.recipe.schema import SECTIONS
from toolkit.registry import Registry

pytestmark = pytest.mark.usefixtures("here")


def test_list_names_every_recipe_and_what_it_does() -> None:
    entries = toolkit("recipe", "list", "--json").json
    assert [entry["name"] for entry in entries] == list(catalog.shipped())
    assert all(entry["description"] and Path(entry["file"]).is_file() for entry in entries)
    lines = toolkit("recipe", "list").out.splitlines()
    assert len(lines) == 1 + len(entries)
    assert all(
        entry["name"] in line and entry["description"] in line for entry, line in zip(entries, lines[1:], strict=True)
    )


def test_show_prints_the_text_as_it_is_written() -> None:
    assert toolkit("recipe", "show", "./mine.yaml").out == RECIPE
    shown = toolkit("recipe", "show", "./mine.yaml", "--json").json
    assert shown["recipe"]["memory"][1] == "frequent-saves"


def test_the_resolved_recipe_is_a_recipe_again_with_origins() -> None:
    text = toolkit("recipe", "show", "./mine.yaml", "--resolved", "--set", "training.seed=7").out
    assert "seed: 7 # --set training.seed=7" in text
    assert "max_steps: 5 # line 14" in text
    Path("again.yaml").write_text(text)
    assert toolkit("recipe", "validate", "again.yaml").out == "again.yaml is valid\n"
    again = toolkit("recipe", "show", "again.yaml", "--resolved", "--json").json["recipe"]
    assert again == toolkit("recipe", "show", "mine.yaml", "--set", "training.seed=7", "--json").json["recipe"]


def test_set_alone_shows_the_resolved_recipe() -> None:
    shown = toolkit("recipe", "show", "mine.yaml", "--set", "training.max_steps=9", "--json").json
    assert shown["recipe"]["training"]["max_steps"] == 9
    assert shown["origins"]["training.max_steps"] == "--set training.max_steps=9"
    assert shown["fidelity"] == "exact"


def test_validate_gives_a_verdict_on_each_recipe() -> None:
    Path("bad.yaml").write_text(RECIPE.replace("gpt2", "gtp2"))
    answer = toolkit("recipe", "validate", "mine.yaml", "bad.yaml", "./none.yaml", status=2)
    assert answer.out == "mine.yaml is valid\n"
    assert answer.err.count("error: ") == 2
    verdicts = toolkit("recipe", "validate", "mine.yaml", "bad.yaml", "--json", status=2).json
    assert [verdict["valid"] for verdict in verdicts] == [True, False]
    assert verdicts[1]["problems"][0] | {"message": ""} == {
        "file": "bad.yaml",
        "line": 7,
        "column": 9,
        "path": "model.plugin",
        "message": "",
    }


def test_new_copies_with_comments_and_its_own_command() -> None:
    answer = toolkit("recipe", "new", "my-run", "--from", "wikitext-gpt2")
    assert "toolkit recipe run ./my-run.yaml" in answer.out
    copied, source = Path("my-run.yaml").read_text(), catalog.shipped()["wikitext-gpt2"].read_text()
    assert copied.splitlines()[1] == "# toolkit recipe run ./my-run.yaml"
    assert "recipe run wikitext-gpt2" not in copied
    assert copied.replace("./my-run.yaml", "wikitext-gpt2") == source
    toolkit("recipe", "validate", "./my-run.yaml")


def test_new_copies_a_file_of_ones_own() -> None:
    toolkit("recipe", "new", "second.yaml", "--from", "./mine.yaml")
    assert Path("second.yaml").read_text() == RECIPE.replace("./mine.yaml", "./second.yaml")


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("mine", 2, "./mine.yaml already exists and was not changed"),
        ("a b", 2, "is not a valid recipe name"),
        (".hidden", 2, "is not a valid recipe name"),
        ("", 2, "is not a valid recipe name"),
        ("none/new", 3, "cannot write ./none/new.yaml: No such file or directory"),
    ],
)
def test_new_overwrites_nothing(name: str, status: int, text: str, here: Path) -> None:
    assert text in toolkit("recipe", "new", name, "--from", "my-texts", status=status).err
    assert [file.name for file in here.iterdir()] == ["mine.yaml"]
    assert Path("mine.yaml").read_text() == RECIPE


def test_schema_knows_every_section_plugin_and_option() -> None:
    toolkit("recipe", "schema")
    schema = json.loads(Path(".toolkit/recipe.schema.json").read_text())
    assert schema == toolkit("recipe", "schema", "--output", "-").json
    assert tuple(schema["properties"]) == SECTIONS == tuple(DESCRIPTIONS)
    assert schema["required"] == ["recipe", "dataset", "tokenizer", "model", "objective"]
    registry = Registry.discover()
    for kind in KINDS:
        names, *objects = schema["$defs"][kind]["oneOf"]
        assert names["enum"] == registry.names(kind)
        assert [entry["$ref"] for entry in objects] == [f"#/$defs/{kind}.{name}" for name in registry.names(kind)]
        for name in registry.names(kind):
            definition = schema["$defs"][f"{kind}.{name}"]
            shared = {"plugin", "filters"} if kind == "dataset" else {"plugin"}
            assert definition["properties"].keys() == shared | registry.load(kind, name).model_fields.keys()
            assert all(option.get("description") for option in definition["properties"].values())


def test_schema_refers_to_nothing_that_is_not_in_it() -> None:
    schema = toolkit("recipe", "schema", "-o", "-").json

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            here = [value["$ref"]] if "$ref" in value else []
            return here + [ref for child in value.values() for ref in references(child)]
        return [ref for child in value for ref in references(child)] if isinstance(value, list) else []

    found = references(schema)
    assert len(found) > 20
    assert {ref.removeprefix("#/$defs/") for ref in found} <= schema["$defs"].keys()


def test_the_schema_accepts_the_recipes_and_refuses_mistakes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = toolkit("recipe", "schema", "-o", "-").json
    jsonschema.Draft7Validator.check_schema(schema)
    judge = jsonschema.Draft7Validator(schema)
    for name in catalog.shipped():
        assert not list(judge.iter_errors(toolkit("recipe", "show", name, "--json").json["recipe"])), name
        assert not list(judge.iter_errors(toolkit("recipe", "show", name, "--resolved", "--json").json["recipe"])), name
    data = toolkit("recipe", "show", "mine.yaml", "--json").json["recipe"]
    assert judge.is_valid(data)
    assert not judge.is_valid(data | {"model": {"plugin": "gpt2", "hiden_size": 3}})
    assert not judge.is_valid(data | {"optimizer": "none"})
    assert not judge.is_valid(data | {"memroy": []})
    assert judge.is_valid(data | {"dataset": data["dataset"] | {"filters": ["exact-duplicates", {"plugin": "length"}]}})
    assert not judge.is_valid(data | {"dataset": data["dataset"] | {"filters": ["exact-duplicate"]}})


def test_schema_goes_on_without_a_plugin_that_cannot_be_imported(here: Path) -> None:
    (here / "own" / "model").mkdir(parents=True)
    (here / "own" / "model" / "broken.py").write_text("import nowhere_at_all")
    answer = toolkit("recipe", "schema", "-o", "-", "--plugins", "own")
    assert "nowhere_at_all" in answer.err
    assert "broken" in answer.json["$defs"]["model"]["oneOf"][0]["enum"]


def test_schema_says_where_it_cannot_write() -> None:
    Path(".toolkit").touch()
    assert "cannot write .toolkit/recipe.schema.json" in toolkit("recipe", "schema", status=3).err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--rehearse", "--fresh"], "remove --fresh and --from"),
        (["--rehearse", "--profile", "5"], "remove --profile"),
        (["--name", "a/b"], "--name a/b: "),
        (["--name", ""], "--name : "),
        (["--name", ".."], "--name ..: "),
        (["--nmae", "x"], "--name"),
        (["--runs", "mine.yaml"], "is a file"),
    ],
)
def test_run_refuses_words_that_make_no_sense(words: list[str], text: str) -> None:
    assert text in toolkit("recipe", "run", "mine.yaml", *words, status=2).err


def test_another_process_says_the_same() -> None:
    answer = process("recipe", "run", "./none.yaml")
    assert (answer.status, answer.out, answer.err) == (2, "", "error: there is no recipe file ./none.yaml\n")
