"""What a recipe with a stream cannot have, because it would need all documents at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.api import Dataset, StreamingDataset
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

    streams = {name: part for name, part in sources_of(recipe).items() if is_stream(part.plugin)}
    for name, part in streams.items():
        if name:
            yield (*part.path, "max_tokens"), "a stream cannot be a source of a mixture; train on it alone"
        for each in part.filters:
            yield (
                each.path,
                "the documents of a stream cannot be filtered; remove the filter",
            )
    if not streams:
        return
    if recipe.objective.plugin.packing == "best-fit":
        yield (
            (*recipe.objective.path, "packing"),
            "the documents of a stream are packed as they come; leave out packing: best-fit",
        )
    if recipe.training.dataloader_num_workers:
        yield (
            ("training", "dataloader_num_workers"),
            "a stream is waited for by the process that trains; set dataloader_num_workers: 0, which is no slower",
        )
