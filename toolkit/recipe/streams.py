"""What a recipe with a stream cannot have, because it would need all documents at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.api import CorpusFilter, Dataset, StreamingDataset
from toolkit.recipe.document import Path_

if TYPE_CHECKING:
    from toolkit.recipe.schema import Recipe


def is_stream(dataset: Dataset) -> bool:
    """Whether a dataset is read as a stream."""
    return isinstance(dataset, StreamingDataset) and dataset.is_stream


def streaming(dataset: Dataset) -> StreamingDataset:
    """The dataset, which is read as a stream."""
    assert isinstance(dataset, StreamingDataset)
    return dataset


def problems_of_streams(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    """What a stream does not go together with, and the path of it in the recipe."""
    from toolkit.recipe.mix import sources_of

    streams = [part for part in sources_of(recipe).values() if is_stream(part.plugin)]
    for part in streams:
        for each in part.filters:
            if isinstance(each.plugin, CorpusFilter):
                yield each.path, f"{each.name} compares documents with one another, and a stream keeps none; remove it"
            elif each.plugin.needs_held_out():
                yield (
                    each.path,
                    f"{each.name} compares documents with those held out, which a stream does not keep; remove it, or "
                    f"set the option that gives it other texts",
                )
    if not streams:
        return
    if recipe.objective.plugin.packing == "best-fit":
        yield (
            (*recipe.objective.path, "packing"),
            "the documents of a stream are packed as they come; leave out packing: best-fit",
        )
    if is_stream(recipe.dataset.plugin) and recipe.training.dataloader_num_workers:
        yield (
            ("training", "dataloader_num_workers"),
            "a stream is waited for by the process that trains; set dataloader_num_workers: 0, which is no slower",
        )
