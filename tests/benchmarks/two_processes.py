"""Tokens per second of a recipe in two processes with one thread each, against one process with one thread.

    python -m tests.benchmarks.two_processes --recipe quickstart --steps 60 --rounds 2
    python -m tests.benchmarks.two_processes --set training.global_batch_size=32      # fewer exchanges of gradients

In turn, so that other work on the machine meets all alike. The rate is the median of the steps after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.random_models import device_and_versions

MAIN = "from toolkit.cli.main import main; main()"
WAYS: dict[str, list[str]] = {
    "one process": [],
    "two processes": ["--processes", "2"],
    "two processes, shard": ["--processes", "2", "--set", "memory=[mixed-precision, shard]"],
}
WARM_UP = 20
"""Steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    asked = parser.parse_args()
    print(f"{' '.join((asked.recipe, *asked.set))}, {device_and_versions()}, one thread in each process")
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.rounds):
            for way, options in WAYS.items():
                rates[way].append(rate(asked, options, Path(folder)))
    one = statistics.median(rates["one process"])
    for way, found in rates.items():
        words = ", ".join(f"{each:,.0f}" for each in found)
        print(f"{way:22} {statistics.median(found):9,.0f} tokens/s {statistics.median(found) / one:6.2f}   ({words})")


def rate(asked: argparse.Namespace, options: list[str], folder: Path) -> float:
    """Median tokens per second of a run of its own."""
    settings = {
        "training.max_steps": asked.steps,
        "training.logging_steps": 5,
        "training.eval_steps": asked.steps,
        "training.torch_compile": "false",
        "exporters": "[]",
        "callbacks": "[]",
    }
    words = [sys.executable, "-c", MAIN, "recipe", "run", asked.recipe, "--fresh", "--runs", str(folder), *options]
    for override in (*(f"{key}={value}" for key, value in settings.items()), *asked.set):
        words += ["--set", override]
    before = set(folder.glob("*/metrics.jsonl"))
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    (metrics,) = set(folder.glob("*/metrics.jsonl")) - before
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return statistics.median(
        line["tokens_per_second"] for line in lines if line["kind"] == "train" and line["step"] > WARM_UP
    )


if __name__ == "__main__":
    main()
