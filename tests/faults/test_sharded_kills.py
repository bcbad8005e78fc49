"""One of two processes killed, or both, at moments that nobody chose: the same command, until it is finished.

`TOOLKIT_TEST_KILLS=50` for more than the four of the slow suite.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import psutil
import pytest

from tests.command_line import process
from tests.tiny import assert_same_run, command, write_recipe

KILLS = int(os.environ.get("TOOLKIT_TEST_KILLS", "4"))
"""Half of them of a sharded run, half of a run of copies (DDP)."""
MOST_PER_RUN = 5
STEPS = 60


def start_and_kill(recipe: Path, draw: random.Random, *words: str) -> bool:
    """Start two processes, kill one or both after some steps, or before the first; False if they were finished."""
    metrics = recipe.parent / "runs" / "killed" / "metrics.jsonl"
    lines = lines_of(metrics)
    running = command(
        "recipe", "run", recipe.name, "--processes", "2", "--name", "killed", *words, cwd=recipe.parent,
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    while len(ranks := psutil.Process(running.pid).children()) < 2 and running.poll() is None:
        time.sleep(0.01)
    if draw.random() < 0.2:
        time.sleep(draw.uniform(0, 5))
    else:
        lines += draw.randint(1, STEPS // 3)
        while running.poll() is None and lines_of(metrics) < lines:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.2))
    for rank in draw.choice([ranks[:1], ranks[1:], ranks]):
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()
    _, err = running.communicate(timeout=600)
    assert running.returncode in (0, 137), err
    return running.returncode != 0


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["[shard]", "[]"])
def test_processes_killed_at_any_moment_end_the_same(memory: str, tmp_path: Path) -> None:
    draw = random.Random(memory)
    recipe = write_recipe(
        tmp_path,
        dataset={"max_samples": 13},  # epochs of four steps, whose last one is not full
        model={"dropout": 0.1},
        training={"max_steps": STEPS, "save_steps": 2, "eval_steps": 20},
    )
    words = ("--set", f"memory={memory}")
    whole = process("recipe", "run", str(recipe), "--processes", "2", "--name", "whole", *words, cwd=tmp_path)
    assert whole.status == 0, whole
    kills = 0
    while kills < KILLS // 2:
        for _ in range(min(MOST_PER_RUN, KILLS // 2 - kills)):
            if not start_and_kill(recipe, draw, *words):
                break
            kills += 1
        ended = process("recipe", "run", str(recipe), "--processes", "2", "--name", "killed", *words, cwd=tmp_path)
        assert ended.status == 0, ended
        assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "killed")
        shutil.rmtree(tmp_path / "runs" / "killed")
