"""What does not go together with a stream is said before anything is read, at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.streams import stream_recipe
from tests.tiny import resolved
from toolkit.errors import RecipeError
from toolkit_plugins.dataset.hub import Hub


@pytest.mark.parametrize(
    ("override", "place", "words"),
    [
        ("dataset.max_samples=5", "dataset", "remove max_samples"),
        ("dataset.eval_fraction=0.1", "dataset", "set eval_samples"),
        ("dataset.streaming=false", "dataset", "add streaming: true"),
        ("dataset.cut_at_end_token=true", "dataset", "not cut at end tokens"),
        ("dataset.filters=[exact-duplicates]", "dataset.filters[0]", "compares documents with one another"),
        ("dataset.filters=[decontamination]", "dataset.filters[0]", "other texts"),
        ("objective.packing=best-fit", "objective.packing", "leave out"),
        ("training.dataloader_num_workers=2", "training.dataloader_num_workers", "dataloader_num_workers: 0"),
        ("dataset.max_tokens=many", "dataset.max_tokens", "2B"),
    ],
)
def test_what_a_stream_does_not_go_with(tmp_path: Path, override: str, place: str, words: str) -> None:
    with pytest.raises(RecipeError) as refused:
        resolved(stream_recipe(tmp_path), override)
    (problem,) = refused.value.problems
    assert problem.path == place
    assert words in problem.message


def test_what_a_stream_in_a_mixture_does_not_go_with(tmp_path: Path) -> None:
    one: dict[str, Any] = {"plugin": "hub", "path": "example/corpus", "streaming": True, "max_tokens": "1M"}
    sources = [{"name": "web", "weight": 1, "dataset": one | {"filters": ["exact-duplicates"]}}]
    recipe = stream_recipe(tmp_path, dataset={"plugin": "mix", "sources": sources}, dataloader_num_workers=2)
    with pytest.raises(RecipeError) as refused:
        resolved(recipe, "objective.packing=best-fit")
    places = {problem.path for problem in refused.value.problems}
    assert places == {"dataset.sources[0].dataset.filters[0]", "objective.packing"}


def test_tokens_are_written_as_people_write_them(tmp_path: Path) -> None:
    dataset = resolved(stream_recipe(tmp_path), "dataset.max_tokens=2B").recipe.dataset.plugin
    assert isinstance(dataset, Hub)
    assert dataset.max_tokens == 2_000_000_000


def test_options_of_a_stream_are_for_streams() -> None:
    with pytest.raises(ValueError, match="eval_samples: only of a stream"):
        Hub(path="example/corpus", eval_samples=3)
