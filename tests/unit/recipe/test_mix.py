"""The dataset `mix` in a recipe: its sources are plugins with options of their own, checked at their lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import json_schema
from toolkit.recipe.document import parse
from toolkit.recipe.identity import identity, knows
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import ResolvedRecipe, resolve
from toolkit.recipe.schema import validate
from toolkit.registry import Registry
from toolkit.system.device import detect

TEXT = """\
recipe: 1
dataset:
  plugin: mix
  sources:
    - {name: web, weight: 0.7, dataset: {plugin: text-files, files: "*.txt"}}
    - name: docs
      weight: 0.3
      max_passes: 8
      dataset: python-docs
  stages:
    - until: 80%
    - weights: {docs: 1}
tokenizer: {plugin: byte-bpe, vocab_size: 300}
model: {plugin: gpt2, num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 1}
objective: causal-lm
"""


def resolved(text: str = TEXT) -> ResolvedRecipe:
    return resolve(validate(parse(text, "mine.yaml"), Registry.discover()), detect())


def problems(*changes: tuple[str, str]) -> list[str]:
    text = TEXT
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    with pytest.raises(RecipeError) as refused:
        resolved(text)
    return [str(problem).removeprefix("mine.yaml:") for problem in refused.value.problems]


def test_every_option_of_a_source_is_checked_at_its_place() -> None:
    assert problems(("weight: 0.7", "wieght: 0.7"), ("files:", "fles:"), ("dataset: python", "dataset: pythn")) == [
        "5:7: dataset.sources[0].weight: this option is required (Its share of the tokens, in relation to the weights "
        "of the others: 0.7 and 0.3, or 7 and 3)",
        "5:19: dataset.sources[0].wieght: no such option; did you mean 'weight'?",
        "5:32: dataset.sources[0].dataset.files: this option is required (A file, a pattern such as `texts/**/*.txt`, "
        "or a list of these, from the current directory; `~` is your home)",
        "5:62: dataset.sources[0].dataset.fles: no such option; did you mean 'files'?",
        "9:7: dataset.sources[1].dataset.plugin: no dataset plugin is named 'pythn-docs'; did you mean 'python-docs'?",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("name: docs", "name: web"), "6:7: dataset.sources[1].name: two sources are named 'web'; give each a name"),
        (("weight: 0.3", "weight: -1"), "7:7: dataset.sources[1].weight: input should be greater than or equal to 0"),
        (("weight: 0.3", "weight: .inf"), "7:7: dataset.sources[1].weight: input should be a finite number"),
        (("weight: 0.3", "weight: much"), "7:7: dataset.sources[1].weight: input should be a valid number"),
        (("{docs: 1}", "{dogs: 1}"), "12:17: dataset.stages[1].weights.dogs: no source is called 'dogs'; did you mean"),
        (("{docs: 1}", "{docs: 0, web: 0}"), "12:7: dataset.stages[1].weights: all weights are 0"),
        (("until: 80%", "until: 180%"), "11:7: dataset.stages[0].until: input should be less than or equal to 1"),
        (("until: 80%", "weights: {}"), "11:7: dataset.stages[0]: say where this stage ends: until: 80%"),
        (("- weights: {docs: 1}", "- until: 90%"), "12:7: dataset.stages[1].until: the last stage ends with the run"),
        (("- weights:", "- until: 70%\n    - weights:"), "12:7: dataset.stages[1].until: 0.7 is not after the end of"),
        (
            ("dataset: python-docs", "dataset: {plugin: mix, sources: []}"),
            "9:30: dataset.sources[1].dataset.sources: there are none",
        ),
        (
            ("  stages:", "  eval_fraction: 0.1\n  stages:"),
            "10:3: dataset.eval_fraction: a mixture has no documents of",
        ),
    ],
)
def test_what_a_mixture_cannot_be(change: tuple[str, str], expected: str) -> None:
    found = problems(change)
    assert found[0].startswith(expected), found


def test_a_source_that_never_comes_and_a_mixture_without_sources() -> None:
    (problem,) = problems(("weight: 0.3", "weight: 0"), ("{docs: 1}", "{}"))
    assert problem.startswith("7:7: dataset.sources[1].weight: docs has a weight of 0 throughout the run")
    text = "recipe: 1\ndataset: {plugin: mix, sources: []}\n" + TEXT[TEXT.index("tokenizer:") :]
    with pytest.raises(RecipeError, match=r"^mine.yaml:2:24: dataset.sources: there are none; a mixture has at least"):
        resolved(text)


def test_resolved_it_shows_each_value_of_each_source_with_its_origin_and_is_a_recipe_again() -> None:
    once = resolved()
    origins = {path: origin for path, (_, origin) in once.origins().items()}
    assert origins["dataset.sources[0].dataset.files"] == "line 5"
    assert origins["dataset.sources[0].dataset.encoding"] == "default of text-files"
    assert origins["dataset.sources[1].dataset.plugin"] == "line 9"
    assert origins["dataset.max_passes"] == "default of mix"
    again = resolved(once.to_yaml())
    assert again.data() == once.data()
    assert identity(again) == identity(once)
    assert {name: part.path for name, part in sources_of(once.recipe).items()} == {
        "web": ("dataset", "sources", 0, "dataset"),
        "docs": ("dataset", "sources", 1, "dataset"),
    }


def test_the_identity_holds_what_determines_numbers() -> None:
    settings = identity(resolved())
    assert settings["dataset.sources[0].dataset.files"] == "*.txt"
    assert settings["dataset.sources[1].weight"] == 0.3
    assert not any("max_passes" in key for key in settings)  # it only refuses
    assert knows(resolved(), "dataset.sources[0].dataset.encoding")
    assert not knows(resolved(), "dataset.sources[0].dataset.no_longer_there")


def test_an_editor_completes_the_datasets_of_the_sources() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema, failures = json_schema.schema(Registry.discover())
    assert not failures
    judge = jsonschema.Draft7Validator(schema)
    data: Any = json.loads(json.dumps(parse(TEXT, "mine.yaml").data))
    assert list(judge.iter_errors(data)) == []
    assert list(judge.iter_errors(json.loads(json.dumps(resolved().data())))) == []
    data["dataset"]["sources"][0]["dataset"]["fles"] = "x"
    assert list(judge.iter_errors(data))


def test_a_source_may_come_from_a_folder_of_plugins(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "notes.py").write_text(
        '"""Notes."""\n\nfrom toolkit.api import Dataset\n\n\nclass Notes(Dataset):\n    """Notes."""\n\n'
        "    def load(self, run):\n        raise NotImplementedError\n"
    )
    registry = Registry.discover([tmp_path])
    recipe = validate(parse(TEXT.replace("dataset: python-docs", "dataset: notes"), "mine.yaml"), registry)
    assert sources_of(recipe)["docs"].name == "notes"
