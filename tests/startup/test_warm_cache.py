"""What a second start asks the Hub, once data, tokenizer, model and tokens are in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.tiny import command, write_recipe

GPT2 = "openai-community/gpt2"


def asked(hub: HubServer, recipe: Path, *words: str) -> list[str]:
    """What a run asks the Hub, without the parameters."""
    hub.requests.clear()
    folder = recipe.parent
    caches = {"TOOLKIT_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "huggingface")}
    process = command("recipe", "run", str(recipe), "--quiet", *words, cwd=folder, **caches)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return [f"{request.method} {request.path.partition('?')[0]}" for request in hub.requests]


def test_a_second_start_asks_only_which_commit_is_the_newest(hub: HubServer, tmp_path: Path) -> None:
    """Of tokenizer and model, in the plan and in the run. The files of a commit never change."""
    pretrained = {"plugin": "pretrained", "path": GPT2}
    recipe = write_recipe(tmp_path, tokenizer=pretrained, model=pretrained, training={"max_steps": 1})
    assert len(asked(hub, recipe)) > 10
    assert set(asked(hub, recipe, "--fresh")) == {f"GET /api/models/{GPT2}"}


@pytest.mark.slow
def test_a_commit_that_is_new_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    files = dict(hub.repositories["model", GPT2].revisions["main"].files)
    hub.publish("model", "example/moving", files)
    tokenizer = {"plugin": "pretrained", "path": "example/moving"}
    recipe = write_recipe(tmp_path, tokenizer=tokenizer, training={"max_steps": 1})
    asked(hub, recipe)
    hub.publish("model", "example/moving", files | {"README.md": b"newer"})
    assert any("tokenizer.json" in request for request in asked(hub, recipe, "--fresh"))
