"""Every recipe that comes with the toolkit: complete, commented, valid, and rehearsed to its end."""

import json
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from toolkit.events import Event
from toolkit.lifecycle.rehearsal import REHEARSAL_STEPS, rehearse
from toolkit.recipe import catalog
from toolkit.recipe.document import parse
from toolkit.recipe.identity import identity
from toolkit.recipe.resolve import load, resolve
from toolkit.recipe.schema import validate
from toolkit.registry import Registry
from toolkit.system.device import detect

NAMES = list(catalog.shipped())
PROMISED = {
    "quickstart",
    "wikitext-gpt2",
    "wikitext-gpt2-lora",
    "wikitext-gpt2-scratch",
    "wikitext103-gpt2",
    "my-texts",
    "python-docs-llama",
    "python-docs-mix",
    "wikitext-bert",
    "fineweb-llama",
}


def test_all_promised_recipes_are_there() -> None:
    assert set(NAMES) == PROMISED


@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_it_is_run_and_explains_itself(name: str) -> None:
    first, second, *rest = catalog.shipped()[name].read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=.toolkit/recipe.schema.json"
    assert second.startswith(f"# toolkit recipe run {name}")
    assert sum("#" in line for line in rest) >= 4
    assert load(name).description


@pytest.mark.parametrize("name", NAMES)
def test_resolved_it_is_a_recipe_that_resolves_to_itself(name: str) -> None:
    device = detect()
    once = resolve(load(name), device)
    again = resolve(validate(parse(once.to_yaml(), f"{name}.yaml"), Registry.discover()), device)
    assert again.data() == once.data()
    assert identity(again) == identity(once)


@pytest.mark.parametrize("name", NAMES)
def test_it_rehearses_to_its_end(name: str, hub: HubServer, tmp_path: Path) -> None:
    events: list[Event] = []
    result, stand_ins = rehearse(load(name), runs=tmp_path / "runs", device=detect(), listener=events.append)
    assert result.steps == REHEARSAL_STEPS
    assert {"model", "training"} <= {stand_in.section for stand_in in stand_ins}
    assert result.model_folder is not None
    assert (result.model_folder / "model.safetensors").is_file()
    record = json.loads((result.folder / "run.json").read_text(encoding="utf-8"))
    assert record["rehearsal"] is True
    assert [attempt["how"] for attempt in record["attempts"]] == ["interrupted", "finished"]
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == [f"{name}-rehearsal"]
