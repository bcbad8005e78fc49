"""From the command to the first step of a run whose data is prepared, for a large corpus and for one of 1 MB.

    python tests/benchmarks/warm_start.py --megabytes 100 --rounds 3

Prepares both, trains the smallest model on both in turn, each time in a new run with one process and with two, and
takes the time until the run's metrics tell of its first step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from preparation import write

MAIN = "from toolkit.cli.main import main; main()"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]
PROCESSES = {1: [sys.executable], 2: [sys.executable, *TORCHRUN]}
SETTINGS = ["--set", "training.logging_steps=1", "--set", "training.max_steps=2", "--set", "exporters=[]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=Path, help="folder of the text, which is made once")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = asked.texts or Path(folder)
        environment = {**os.environ, "TOOLKIT_CACHE": str(texts / "cache"), "OMP_NUM_THREADS": "1"}
        recipes = {megabytes: write(texts, megabytes) for megabytes in (1, asked.megabytes)}
        for recipe in recipes.values():
            command = [sys.executable, "-c", MAIN, "recipe", "prepare", recipe]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        for count, start in PROCESSES.items():
            seconds: dict[int, list[float]] = {megabytes: [] for megabytes in recipes}
            for number in range(asked.rounds):
                for megabytes, recipe in recipes.items():
                    runs = Path(folder) / f"runs-{count}-{megabytes}-{number}"
                    command = [*start, "-c", MAIN, "recipe", "run", str(recipe), "--runs", str(runs), *SETTINGS]
                    seconds[megabytes].append(until_the_first_step(command, runs, environment))
            medians = {megabytes: statistics.median(taken) for megabytes, taken in seconds.items()}
            for megabytes, taken in seconds.items():
                words = ", ".join(f"{second:.2f}" for second in taken)
                print(f"{count} process{'es' * (count > 1)}, {megabytes:5} MB: {medians[megabytes]:.2f} s  ({words})")
            print(f"  ratio {medians[asked.megabytes] / medians[1]:.2f}", flush=True)


def until_the_first_step(command: list[str], runs: Path, environment: dict[str, str]) -> float:
    """Seconds from the command to the first line of the metrics."""
    begun = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not any(file.stat().st_size for file in runs.glob("*/metrics.jsonl")):
            if process.poll() is not None:
                raise SystemExit(f"the run has ended with {process.returncode}")
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        process.terminate()  # a hundredth of the text is held out, and takes minutes to evaluate
        process.wait()
    return seconds


if __name__ == "__main__":
    main()
