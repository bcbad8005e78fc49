"""Planned against measured seconds of a step, eager and compiled, with the plain loss and in chunks.

    python -m tests.benchmarks.planned_time                                   # gpt2-12M, 8 x 256 tokens a step
    python -m tests.benchmarks.planned_time --micro-batch-size 4 --output tests/benchmarks/results/planned_time.txt

Each contender is a process of its own, as in `throughput.py`, and takes a step in turn with the others. A plan leaves
out waiting and small kernels, and a busy machine makes every step longer: what counts is the last column, how the ratio
to the eager step is planned over how it is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.random_models import device_and_versions, show
from tests.benchmarks.throughput import MODELS, inputs, waiting, write_recipe_of
from tests.tiny import resolved
from toolkit.planning.plan import make_plan
from toolkit.planning.roofline import measured
from toolkit.system.device import detect

EAGER = "toolkit"
CONTENDERS = (EAGER, "toolkit, compiled", "toolkit, chunked loss", "toolkit, compiled, chunked loss")


def planned_seconds(asked: argparse.Namespace) -> dict[str, float]:
    """Of each contender's step, all by the same rates."""
    rates = measured(detect())
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder), asked)
        recipes = {name: resolved(write_recipe_of(name, Path(folder), asked)) for name in CONTENDERS}
        return {name: make_plan(recipe, rates=rates).seconds_per_step for name, recipe in recipes.items()}


def measured_seconds(asked: argparse.Namespace, *, rounds: int) -> dict[str, float]:
    """The median of each contender's steps, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with contextlib.ExitStack() as running:
        steps = {name: running.enter_context(waiting(name, asked)) for name in CONTENDERS}
        for _ in range(rounds):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def table(asked: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, as they come."""
    precision = "bf16" if asked.bf16 else "fp32"
    yield f"{asked.model}, {asked.micro_batch_size} x {asked.block_size} tokens a step, {precision}"
    yield device_and_versions()
    plan, real = planned_seconds(asked), measured_seconds(asked, rounds=asked.rounds)
    yield f"{'':31} {'planned':>15} {'measured':>15}   ratio to eager: planned / measured"
    for name in CONTENDERS:
        ratios = [seconds[name] / seconds[EAGER] for seconds in (plan, real)]
        yield (
            f"{name:31} {plan[name]:8.2f} s {ratios[0]:4.2f} {real[name]:8.2f} s {ratios[1]:4.2f}   "
            f"{ratios[0] / ratios[1]:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="gpt2-12M")
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--micro-batch-size", type=int, default=8, help="all of a step")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=detect().bf16)
    parser.add_argument("--output", type=Path, help="append the table to this file")
    parser.set_defaults(document_length=0, warmup=5)
    asked = parser.parse_args()
    asked.steps = asked.warmup + asked.rounds + 1  # a contender that has no more to do would be gone
    show(table(asked), asked.output)


if __name__ == "__main__":
    main()
