"""What a wrong recipe gets: status 2, the place, what is wrong, the cure; never a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import RECIPE, process, toolkit


@dataclass(frozen=True)
class Case:
    """A change to the good recipe, and what has to be said about it."""

    name: str
    old: str
    new: str
    place: str
    text: str


CASES = [
    Case("section", "memory:", "memroy:", "9:1: memroy", "no such section; did you mean 'memory'?"),
    Case("section missing", "tokenizer: {plugin: byte-bpe, vocab_size: 300}\n", "", "1:1", "'tokenizer' is missing"),
    Case("format", "recipe: 1\n", "recipe: 7\n", "3:1: recipe", "this recipe has 7"),
    Case("no format", "recipe: 1\n", "", "1:1", "recipe: 1"),
    Case("plugin", "plugin: gpt2", "plugin: gtp2", "7:9: model.plugin", "did you mean 'gpt2'?"),
    Case("bare plugin", "- frequent-saves", "- frequent-save", "11:5: memory[1].plugin", "mean 'frequent-saves'?"),
    Case("no plugin", "{plugin: gpt2, ", "{", "7:1: model", "name the plugin"),
    Case("a list for one", "{plugin: causal-lm, block_size: 32}", "[causal-lm]", "8:1: objective", "name the plugin"),
    Case("one for a list", "  - frequent-saves", "  - - frequent-saves", "11:5: memory[1]", "name the plugin"),
    Case("option", "hidden_size: 16", "hiden_size: 16", "7:45: model.hiden_size", "did you mean 'hidden_size'?"),
    Case("option required", ', files: "*.txt"', "", "5:1: dataset.files", "required"),
    Case("type", "hidden_size: 16", "hidden_size: wide", "7:45: model.hidden_size", "'wide'"),
    Case("limit", "vocab_size: 300", "vocab_size: 1", "6:31: tokenizer.vocab_size", "greater than"),
    Case("share", "eval_fraction: 0.2", "eval_fraction: 20", "5:47: dataset.eval_fraction", "less than 1"),
    Case("setting", "max_steps: 5", "max_step: 5", "14:3: training.max_step", "did you mean 'max_steps'?"),
    Case("setting's type", "max_steps: 5", "max_steps: many", "14:3: training.max_steps", "'many'"),
    Case("setting's choice", "max_steps: 5", "precision: fp8", "14:3: training.precision", "'fp8' is not one of"),
    Case(
        "training is no mapping", "training:\n  global_batch_size: 4\n  max_steps: 5", "training: 5", "12:1", "mapping"
    ),
    Case("duplicate key", "  max_steps: 5", "  max_steps: 5\n  max_steps: 6", "15:3: training.max_steps", "line 14"),
    Case("tab", "  max_steps: 5", "\tmax_steps: 5", "14:1", "tab"),
    Case("broken YAML", "vocab_size: 300}", "vocab_size: 300", "7:", "not YAML"),
    Case("broken quotes", '"*.txt"', '"*.txt', "", "not YAML"),
    Case("not a mapping", RECIPE, "- 1\n- 2\n", "1:1", "not a mapping"),
    Case("empty", RECIPE, "", "1:1", "is empty"),
    Case("only comments", RECIPE, "# nothing\n\n", "1:1", "is empty"),
    Case("anchor", "plugin: gpt2,", "plugin: &a gpt2,", "7:", "anchors"),
    Case("control character", "recipe: 1", "recipe: 1\x07", "3:10", "is not allowed in YAML"),
    Case("batch", "micro_batch_size: 2", "micro_batch_size: 3", "10:5: memory[0]", "these do: 1, 2, 4"),
    Case("conflict", "- frequent-saves", "- small-batch", "11:5: memory[1]", "is listed twice"),
    Case("against a setting", "max_steps: 5", "micro_batch_size: 4", "14:3: training.micro_batch_size", "remove one"),
    Case("arguments of nothing", "max_steps: 5", "optim_args: rank=4", "14:3: training.optim_args", "without optim"),
    Case(
        "every n-th of none",
        "max_steps: 5",
        "gradient_checkpointing_every: 2",
        "14:3: training.gradient_checkpointing_every",
        "no effect without gradient_checkpointing",
    ),
    Case("plugin_paths", "recipe: 1", "recipe: 1\nplugin_paths: mine", "4:1: plugin_paths", "list of folders"),
    Case("plugin import", "model: {", "plugin_paths: [bad]\nmodel: {plugin: broken, ", "8:9: model.plugin", "boom"),
    Case(
        "contract", "model: {", "plugin_paths: [bad]\nmodel: {plugin: empty, ", "8:9: model.plugin", "0 model plugins"
    ),
    Case(
        "method missing",
        "- frequent-saves",
        "- frequent-saves\n  - odd\nplugin_paths: [bad]",
        "12:5: memory[2].plugin",
        "breaks its contract",
    ),
    Case(
        "strategies",
        "- frequent-saves",
        "- frequent-saves\n  - rival\nplugin_paths: [bad]",
        "12:5: memory[2]",
        "exclude each other: both manage the saves",
    ),
]

PLUGINS = {
    "model/broken.py": "raise ValueError('boom')",
    "model/empty.py": "",
    "memory/odd.py": """
from toolkit.api import Strategy

class Odd(Strategy):
    '''No fidelity, and an option without a description.'''

    size: int = 1
""",
    "memory/rival.py": """
from toolkit.api import Strategy

class Rival(Strategy):
    '''Saves too.'''

    claims = frozenset({"saves"})
    fidelity = "exact"
""",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in PLUGINS.items():
        file = tmp_path / "bad" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_the_recipe_that_the_cases_change_is_good(here: Path) -> None:
    Path("mine.yaml").write_text(RECIPE)
    assert toolkit("recipe", "validate", "mine.yaml").out == "mine.yaml is valid\n"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_recipe_is_explained(case: Case, here: Path) -> None:
    assert RECIPE.count(case.old) == 1
    changed = RECIPE.replace(case.old, case.new)
    if case.name in ("plugin import", "contract"):
        changed = changed.replace(", plugin: gpt2", "")
    Path("mine.yaml").write_text(changed)
    answer = toolkit("recipe", "validate", "mine.yaml", status=2)
    assert f"mine.yaml:{case.place}" in answer.err
    assert case.text in answer.err
    assert not answer.out

    problems = toolkit("recipe", "validate", "mine.yaml", "--json", status=2).json[0]["problems"]
    assert any(case.text in problem["message"] for problem in problems)
    assert all(problem["file"] == "mine.yaml" and problem["line"] >= 1 for problem in problems)


def test_run_and_show_explain_it_too(here: Path) -> None:
    Path("mine.yaml").write_text(RECIPE.replace("plugin: gpt2", "plugin: gtp2"))
    for words in (["run"], ["run", "--json"], ["run", "--rehearse"], ["show", "--resolved"]):
        answer = toolkit("recipe", *words, "mine.yaml", status=2)
        assert answer.err.startswith("error: mine.yaml:7:9: model.plugin: no model plugin is named 'gtp2'")
        assert not answer.out
    assert not Path("runs").exists()


def test_all_problems_are_shown_at_once_each_on_its_line(here: Path) -> None:
    Path("mine.yaml").write_text(RECIPE.replace("gpt2", "gtp2").replace("max_steps", "max_step").replace("300", "x"))
    lines = toolkit("recipe", "validate", "mine.yaml", status=2).err.splitlines()
    assert lines[0] == "error: 3 problems in the recipe"
    assert [line.split(": ")[0] for line in lines[1:]] == ["mine.yaml:6:31", "mine.yaml:7:9", "mine.yaml:14:3"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["quikstart"], "no recipe is named 'quikstart'; did you mean 'quickstart'?"),
        (["./none.yaml"], "there is no recipe file ./none.yaml"),
        (["mine"], "for a file write its path, ./mine.yaml"),
        (["latin.yaml"], "not UTF-8"),
        (["bad"], "no recipe is named 'bad'"),
        (["mine.yaml", "--plugins", "none"], "the plugin folder none does not exist"),
        (["mine.yaml", "--plugins", "bad"], "plugins belong in folders named after their kind"),
        (["mine.yaml", "--set", "training.max_steps"], "write it as --set training.max_steps=100"),
        (["mine.yaml", "--set", "=5"], "write it as --set training.max_steps=100"),
        (["mine.yaml", "--set", "training.max_step=5"], "--set training.max_step=5: training.max_step: no such option"),
        (["mine.yaml", "--set", "trainig.max_steps=5"], "trainig: no such section; did you mean 'training'?"),
        (["mine.yaml", "--set", "training.max_steps=few"], "--set training.max_steps=few: training.max_steps: "),
        (["mine.yaml", "--set", "memory.7.save_steps=1"], "no item 7 in a list of 2"),
        (["mine.yaml", "--set", "recipe.a=1"], "which is not a mapping"),
        (["mine.yaml", "--set", "model.plugin=gtp2"], "did you mean 'gpt2'?"),
        (["mine.yaml", "--set", "training.max_steps={"], "not YAML"),
    ],
)
def test_wrong_words_are_explained(words: list[str], text: str, here: Path) -> None:
    Path("mine.yaml").write_text(RECIPE)
    Path("latin.yaml").write_bytes("recipe: 1 # ä".encode("latin-1"))
    Path("bad", "deep").mkdir()
    Path("bad", "deep", "x.py").write_text("")
    for command in ("validate", "run"):
        answer = toolkit("recipe", command, *words, status=2)
        assert answer.err.startswith("error: ")
        assert text in answer.err
        assert ":1:1" not in answer.err or "--set" not in answer.err


def test_two_distributions_with_one_name_are_both_named(here: Path) -> None:
    for distribution in ("alpha", "beta"):
        folder = here / "site" / f"{distribution}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text("[toolkit.model]\ntwins = nowhere:Twin\n")
    (here / "mine.yaml").write_text(RECIPE.replace("plugin: gpt2", "plugin: twins"))
    answer = process("recipe", "validate", "mine.yaml", cwd=here, PYTHONPATH=str(here / "site"))
    assert answer.status == 2
    assert "mine.yaml:7:9: model.plugin: " in answer.err
    assert "alpha 1.0" in answer.err
    assert "beta 1.0" in answer.err
    assert "Traceback" not in answer.err


def test_a_distribution_that_cannot_be_imported_is_named(here: Path) -> None:
    folder = here / "site" / "alpha-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: alpha\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[toolkit.model]\nlost = nowhere_at_all:Lost\n")
    (here / "mine.yaml").write_text(RECIPE.replace("plugin: gpt2", "plugin: lost"))
    answer = process("recipe", "run", "mine.yaml", cwd=here, PYTHONPATH=str(here / "site"))
    assert answer.status == 2
    assert "mine.yaml:7:9: model.plugin: the model plugin 'lost' of alpha 1.0 cannot be imported" in answer.err
    assert "nowhere_at_all" in answer.err
    assert "Traceback" not in answer.err
