"""A corpus to be streamed: files of made-up sentences on the tests' Hub, and the recipe that trains on it."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.hub_contents import ADJECTIVES, SUBJECTS, VERBS
from tests.hub_server import HubServer
from tests.tiny import resolved, write_recipe
from toolkit.api import StreamingDataset

NAME = "example/corpus"
FILES = 12
TOKENS = 10_240
"""Those of the first six files, with the documents held out."""
BLOCK = 64
BATCH = 8
"""Blocks of a step: 20 steps for all tokens."""


def sentences(seed: int, count: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices([*SUBJECTS, *VERBS, *ADJECTIVES], k=draw.randint(5, 60))) for _ in range(count)]


def parquet_of(texts: list[str]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.table({"text": texts}), out)
    return out.getvalue()


def publish(hub: HubServer, name: str = NAME, *, files: int = FILES, **others: bytes) -> dict[str, bytes]:
    """Put a corpus of so many Parquet files on the Hub, of about 2,100 tokens each."""
    content = {f"data/train-{number:02}.parquet": parquet_of(sentences(number)) for number in range(files)}
    content |= {f"data/{file}.parquet": data for file, data in others.items()}
    hub.publish("dataset", name, content)
    return content


def in_order(recipe: Path) -> list[str]:
    """The files of the corpus in the order in which a recipe reads them."""
    dataset = resolved(recipe).recipe.dataset.plugin
    assert isinstance(dataset, StreamingDataset)
    names = [f"data/train-{number:02}.parquet" for number in range(FILES)]
    return dataset.training_files(SimpleNamespace(files=names))  # type: ignore[arg-type] # all that it looks at


@contextmanager
def held_from(hub: HubServer, recipe: Path, number: int) -> Iterator[None]:
    """Let no more than so many files come, of which each has about 33 blocks."""
    # The columns of the whole corpus are read from its first file, which therefore always comes.
    hub.held = set(in_order(recipe)[number:]) - {"data/train-00.parquet"}
    try:
        yield
    finally:
        hub.held = set()


def stream_recipe(
    folder: Path, name: str = "stream", *, dataset: dict[str, Any] | None = None, **training: Any
) -> Path:
    options: dict[str, Any] = {
        "plugin": "hub",
        "path": NAME,
        "streaming": True,
        "max_tokens": TOKENS,
        "shuffle_tokens": 1000,
        "eval_samples": 20,
    }
    given = dataset or {}
    return write_recipe(
        folder,
        name,
        dataset=given if given.get("plugin") == "mix" else options | given,
        tokenizer={"plugin": "pretrained", "path": "openai-community/gpt2"},
        objective={"block_size": BLOCK},
        training={"max_steps": None, "global_batch_size": BATCH, "eval_steps": 10, **training},
    )
