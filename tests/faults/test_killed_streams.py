"""A run over a stream, killed again and again while its data is still coming, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.streams import BLOCK, NAME, TOKENS, held_from, publish, stream_recipe
from tests.tiny import assert_same_run, command
from toolkit.system.files import read_json_lines


def finished(folder: Path, recipe: Path, cache: str, runs: str) -> None:
    process = command("recipe", "run", str(recipe), "--runs", runs, cwd=folder, TOOLKIT_CACHE=str(folder / cache))
    out, err = process.communicate()
    assert process.returncode == 0, out + err


def last_step(metrics: Path) -> int:
    return max((line["step"] for line in read_json_lines(metrics)), default=0)


@pytest.mark.slow
def test_killed_again_and_again_the_run_is_the_same(hub: HubServer, tmp_path: Path) -> None:
    content = publish(hub)
    recipe = stream_recipe(tmp_path, save_steps=2, logging_steps=1)
    prepared = command("recipe", "prepare", str(recipe), cwd=tmp_path, TOOLKIT_CACHE=str(tmp_path / "before"))
    out, err = prepared.communicate()
    assert prepared.returncode == 0, out + err
    finished(tmp_path, recipe, "before", "runs-before")
    metrics, seen = tmp_path / "runs-beside" / "stream" / "metrics.jsonl", 0
    draw = random.Random(0)
    for come in (2, 3, 4):  # files, which are enough for 4, 8 and 14 of the 20 steps
        with held_from(hub, recipe, come):
            words = ("recipe", "run", str(recipe), "--runs", "runs-beside")
            process = command(*words, cwd=tmp_path, TOOLKIT_CACHE=str(tmp_path / "beside"))
            while (step := last_step(metrics)) <= seen:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            seen = step
            time.sleep(draw.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            (state,) = (tmp_path / "beside").glob("streams/*/state.json")
            assert json.loads(state.read_text())["blocks"] < TOKENS // BLOCK
    finished(tmp_path, recipe, "beside", "runs-beside")
    assert_same_run(tmp_path / "runs-beside" / "stream", tmp_path / "runs-before" / "stream")
    (one,), (other,) = ((tmp_path / cache).glob("streams/*/train.tokens") for cache in ("beside", "before"))
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_size < sum(map(len, content.values()))
    assert not list(Path(os.environ["HF_HOME"]).rglob(f"*{NAME.partition('/')[2]}*.parquet"))
