"""From the command to the end of the first step, with a warm cache, against the bare import of torch and Trainer.

    pytest tests/benchmarks/test_first_step.py --benchmark-only

Documents, tokenizer and tokens are cached, and the model is so small that its step takes no time. The bare import is
timed before each round, so that both see the same machine. The line above the table has the ratio of the times, and
that of the processor time, which other programs disturb less. The same for compiled steps: an empty cache of compiled
kernels is before each round what the bare import is above.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import callback, write_recipe

ROUNDS = 5
COMPILED_ROUNDS = 3
"""To compile takes half a minute."""
BARE = "import torch; from transformers import Trainer"
TOOLKIT = "from toolkit.cli.main import main; main()"
MEMORY: dict[str, list[Any]] = {"strategies given": [], "auto": ["mixed-precision", "auto"]}


def seconds_of(code: str, *words: str, cwd: Path) -> tuple[float, float]:
    """Seconds that Python takes for this code, and its processor time with that of its own children."""
    # With .pyc files, as an installed toolkit has them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env=environment | {"TOOLKIT_CACHE": str(cwd / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.benchmark(group="from the command to the end of the first step")
@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
def test_first_step(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], memory: list[Any], request: Any
) -> None:
    callback(tmp_path, "leave", "def on_step_end(self, args, state, control, **rest):\n    os._exit(0)")
    recipe = write_recipe(tmp_path, callbacks=["leave"], memory=memory)
    command = ("recipe", "run", str(recipe), "--plugins", "plugins", "--runs", "runs")
    bare, ours = list[tuple[float, float]](), list[tuple[float, float]]()

    def bare_import() -> None:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        bare.append(seconds_of(BARE, cwd=tmp_path))

    benchmark.pedantic(
        lambda: ours.append(seconds_of(TOOLKIT, *command, cwd=tmp_path)),
        setup=bare_import,
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    warm = slice(1, None)
    wall, processor = (
        statistics.median(one[kind] / other[kind] for one, other in zip(ours[warm], bare[warm], strict=True))
        for kind in (0, 1)
    )
    benchmark.extra_info.update({"times the bare import": round(wall, 2), "of its processor time": round(processor, 2)})
    with capsys.disabled():
        print(
            f"\nfirst step, {request.node.callspec.id}: {wall:.2f} times the bare import of torch and Trainer, "
            f"{processor:.2f} times its processor time (median of {ROUNDS})"
        )


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.benchmark(group="from the command to the end of the first compiled step")
def test_first_compiled_step(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback(tmp_path, "leave", "def on_step_end(self, args, state, control, **rest):\n    os._exit(0)")
    recipes = {
        compiled: write_recipe(
            tmp_path, name=f"compiled-{compiled}", callbacks=["leave"], training={"torch_compile": compiled}
        )
        for compiled in (False, True)
    }
    found: dict[str, list[tuple[float, float]]] = {"not compiled": [], "cold": [], "warm": []}

    def start(how: str) -> None:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        recipe = recipes[how != "not compiled"]
        command = ("recipe", "run", str(recipe), "--plugins", "plugins", "--runs", "runs")
        found[how].append(seconds_of(TOOLKIT, *command, cwd=tmp_path))

    def others() -> None:
        start("not compiled")
        shutil.rmtree(tmp_path / "cache" / "compiled", ignore_errors=True)
        start("cold")

    benchmark.pedantic(lambda: start("warm"), setup=others, rounds=COMPILED_ROUNDS, warmup_rounds=1)
    wall, processor = (
        {
            how: statistics.median(
                one[kind] / warm[kind] for one, warm in zip(times[1:], found["warm"][1:], strict=True)
            )
            for how, times in found.items()
        }
        for kind in (0, 1)
    )
    benchmark.extra_info.update({f"{how}, of the warm start": round(ratio, 2) for how, ratio in wall.items()})
    with capsys.disabled():
        for how in ("cold", "not compiled"):
            print(
                f"\nfirst compiled step: {how} takes {wall[how]:.2f} of the time with a warm cache, "
                f"{processor[how]:.2f} of its processor time (median of {COMPILED_ROUNDS})"
            )
