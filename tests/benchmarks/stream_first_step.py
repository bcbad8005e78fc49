"""From the command to the first step of a run over a stream: beside the preparation, and after it.

    python -m tests.benchmarks.stream_first_step --files 40 --megabytes 4 --rounds 3

Puts a corpus on a Hub of the loopback interface and trains a small model on it. In turn: a run with an empty cache,
which prepares beside its steps; `recipe prepare` with an empty cache, and the run after it. Prints the seconds until
each run's metrics tell of its first step (with those of the preparation before), the largest size of the cache and of
the Hub's libraries' folders, and whether the weights of all runs are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.hub_contents import ADJECTIVES, SUBJECTS, VERBS, fill
from tests.hub_server import HubServer
from tests.streams import parquet_of, stream_recipe

MAIN = "from toolkit.cli.main import main; main()"
WORDS = [*SUBJECTS, *VERBS, *ADJECTIVES]
STEPS = 20
NAME = "example/large"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--megabytes", type=int, default=4, help="text in each file")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    hub, draw = HubServer(), random.Random(0)
    fill(hub)
    files = {}
    for number in range(asked.files):
        texts = [" ".join(draw.choices(WORDS, k=300)) for _ in range(asked.megabytes * 500)]
        files[f"data/train-{number:04}.parquet"] = parquet_of(texts)
    characters = sum(map(len, texts)) * asked.files
    hub.publish("dataset", NAME, files)
    hub.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = characters // 8  # the tests' tokenizer has about seven characters a token here
        dataset = {"path": NAME, "max_tokens": tokens, "shuffle_tokens": tokens // 20}
        recipe = stream_recipe(folder, dataset=dataset, max_steps=STEPS, logging_steps=1)
        recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"exporters": ["model-folder"]}))
        seconds: dict[str, list[float]] = {"beside": [], "prepared, then run": [], "run alone": []}
        weights, largest = set(), 0
        for number in range(asked.rounds):
            for way in ("beside", "before"):
                place = folder / f"{way}-{number}"
                environment = {
                    **os.environ,
                    "HF_ENDPOINT": hub.endpoint,
                    "HF_HOME": str(place / "hub"),
                    "TOOLKIT_CACHE": str(place / "cache"),
                    "OMP_NUM_THREADS": "1",
                }
                begun = time.perf_counter()
                if way == "before":
                    prepare = [sys.executable, "-c", MAIN, "recipe", "prepare", str(recipe)]
                    subprocess.run(prepare, check=True, env=environment, stdout=subprocess.DEVNULL)
                prepared = time.perf_counter()
                command = [sys.executable, "-c", MAIN, "recipe", "run", str(recipe), "--runs", str(place / "runs")]
                first = until_the_first_step(command, place / "runs", environment)
                if way == "beside":
                    seconds["beside"].append(first - begun)
                else:
                    seconds["prepared, then run"].append(first - begun)
                    seconds["run alone"].append(first - prepared)
                (model,) = place.glob("runs/*/model/model.safetensors")
                weights.add(model.read_bytes())
                largest = max(largest, size_of(place / "cache") + size_of(place / "hub"))
        for what, taken in seconds.items():
            words = ", ".join(f"{second:.1f}" for second in taken)
            print(f"{what:20} {statistics.median(taken):6.1f} s to the first step  ({words})")
        text = characters / 1e6
        print(f"{text:.0f} MB of text in {asked.files} files, {tokens:,} tokens; {largest / 1e6:.1f} MB on the disk")
        print("the weights of all runs are equal" if len(weights) == 1 else "THE WEIGHTS DIFFER")
    hub.stop()


def until_the_first_step(command: list[str], runs: Path, environment: dict[str, str]) -> float:
    """Run to the end; the time of the first line of the metrics."""
    first = None
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if first is None and any(file.stat().st_size for file in runs.glob("*/metrics.jsonl")):
                first = time.perf_counter()
            time.sleep(0.05)
    if process.returncode or first is None:
        raise SystemExit(f"the run ended with status {process.returncode}")
    return first


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
