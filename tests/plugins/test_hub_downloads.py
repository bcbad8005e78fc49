"""What comes from the Hub is counted while it comes: without a word, hours of it would look like a hang."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.hub_server import SLICE, HubServer
from toolkit.api import RunContext
from toolkit.registry import Registry

GPT2 = "openai-community/gpt2"


class Told(list[tuple[str, int, int | None]]):
    def __call__(self, phase: str, done: int = 0, total: int | None = None, *, unit: str = "") -> None:
        assert unit == "bytes"
        self.append((phase, done, total))


@pytest.fixture
def slow(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub behind a slow line."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", SLICE)
    monkeypatch.setattr("toolkit.system.threads.PROGRESS_SECONDS", 0.02)
    hub.seconds_per_slice = 0.1
    yield hub
    hub.seconds_per_slice = 0.0


def assert_counted(told: Told, phase: str, size: int, *, total: int | None) -> None:
    counts = [done for name, done, _ in told if name == phase]
    assert len(set(counts)) > 2
    assert counts == sorted(counts)
    assert size / 2 < counts[-1] <= size + 2 * SLICE  # some of it is the small files beside it
    # The end of a fast download may be seen together with its size.
    assert {total} <= {expected for name, _, expected in told if name == phase} <= {total, size}


def test_weights_are_counted_up_to_their_size(slow: HubServer, run_context: RunContext) -> None:
    files = slow.repositories["model", GPT2].at("main")
    assert files
    weights = files.files["model.safetensors"] + bytes(8 * SLICE)  # which safetensors refuses, after the download
    slow.publish("model", "example/large", {**files.files, "model.safetensors": weights})
    told = Told()
    context = replace(run_context, progress=told)
    load = Registry.discover().load
    tokenizer = cast(Any, load("tokenizer", "pretrained").model_validate({"path": GPT2})).build((), context)
    with pytest.raises(Exception, match="example/large"):
        cast(Any, load("model", "pretrained").model_validate({"path": "example/large"})).build(tokenizer, context)
    assert_counted(told, "downloading example/large", len(weights), total=len(weights))


def test_a_dataset_is_counted(slow: HubServer, run_context: RunContext, tmp_path: Path) -> None:
    text = b"some words of a line\n" * 8000
    slow.publish("dataset", "example/large", {"train.txt": text})
    told = Told()
    plugin = Registry.discover().load("dataset", "hub").model_validate({"path": "example/large"})
    assert cast(Any, plugin).load(replace(run_context, progress=told))["train"].num_rows == 8000
    assert_counted(told, "downloading example/large", len(text), total=None)
