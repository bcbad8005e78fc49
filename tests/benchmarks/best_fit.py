"""Best-fit packing beside the plain line of tokens: padding, cut documents, speed, and the held-out loss.

    python -m tests.benchmarks.best_fit --work /tmp/best-fit --output tests/benchmarks/results/best_fit.txt

The corpus is `python-docs`, tokenizer and model are those of the recipe quickstart. Each run of a pair sees the same
number of tokens of documents, so that the padded one takes a few more steps. What is compared is bits per byte of the
held-out documents as `toolkit evaluate` scores them, one by one: it does not depend on how they were packed. A run
whose result is in the work folder is not done again; `--only NUMBER` does the first so many of those that are missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

import toolkit
from tests.benchmarks.random_models import device_and_versions
from toolkit.data import best_fit
from toolkit.training.components import assemble, context_of

RECIPE = "quickstart"
STEPS = 400
SEEDS = (42, 43)
BLOCK_SIZES = (256, 1024, 4096)
WINDOWS = (2**18, 2**20, 2**22, 2**30)
PACKINGS = ("concatenate", "best-fit")
VARIANTS: dict[str, dict[str, Any]] = {"": {}, "document mask": {"objective.document_mask": True}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs and their results, kept")
    parser.add_argument("--only", type=int, default=1000, metavar="NUMBER")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    shares = accounts(asked.work / "accounts.json")
    jobs = [(variant, seed, packing) for seed in SEEDS for variant in VARIANTS for packing in PACKINGS]
    missing = [job for job in jobs if not result_file(asked.work, *job).exists()]
    for job in missing[: asked.only]:
        train(asked.work, shares, *job)
    if len(missing) <= asked.only:
        text = "\n".join(report(asked.work, shares, jobs)) + "\n"
        print(text)
        if asked.output:
            asked.output.write_text(text, encoding="utf-8")


def result_file(work: Path, variant: str, seed: int, packing: str) -> Path:
    return work / f"{packing}-{seed}{'-masked' * bool(variant)}.json"


def accounts(file: Path) -> dict[str, Any]:
    """The training account of python-docs by block size and packing."""
    if not file.exists():
        made = {f"{size} {packing}": account(size, packing) for size in BLOCK_SIZES for packing in PACKINGS}
        file.write_text(json.dumps(made), encoding="utf-8")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def account(block_size: int, packing: str) -> dict[str, Any]:
    overrides = {"objective.packing": packing, "objective.block_size": block_size}
    resolved = toolkit.resolve(RECIPE, overrides=overrides)
    split = assemble(resolved, context_of(resolved, Path("unused"))).data.account.train
    return {
        "padding": split.padding,
        "cut": (split.documents_in_several_blocks or 0) / split.documents,
        "dropped": split.tokens_dropped / split.tokens,
        "blocks": split.blocks,
    }


def train(work: Path, shares: dict[str, Any], variant: str, seed: int, packing: str) -> None:
    padding = shares[f"256 {packing}"]["padding"]
    steps = round(STEPS / (1 - padding))
    name = result_file(work, variant, seed, packing).stem
    overrides = {
        "objective.packing": packing,
        "training.seed": seed,
        "training.max_steps": steps,
        "training.eval_steps": steps,
        "callbacks": [],
        **VARIANTS[variant],
    }
    reached = toolkit.run(RECIPE, overrides=overrides, runs=work / "runs", name=name)
    scored = toolkit.evaluate(name, runs=work / "runs")
    result = {
        "steps": steps,
        "own_loss": reached.eval_loss,
        "bits_per_byte": scored.bits_per_byte,
        "loss": scored.negative_log_likelihood / scored.tokens,
    }
    result_file(work, variant, seed, packing).write_text(json.dumps(result), encoding="utf-8")


def report(work: Path, shares: dict[str, Any], jobs: list[tuple[str, int, str]]) -> Iterator[str]:
    yield f"python -m tests.benchmarks.best_fit: {device_and_versions()}"
    yield ""
    yield "python-docs, training documents"
    yield f"{'block':>6} {'packing':12} {'padding':>8} {'cut documents':>14} {'dropped tokens':>15}"
    for key, found in shares.items():
        size, packing = key.split()
        yield f"{size:>6} {packing:12} {found['padding']:8.2%} {found['cut']:14.1%} {found['dropped']:15.3%}"
    yield ""
    yield "100,000 documents, log-normal (median 400 tokens, sigma 1.2): padding by window, and documents a second"
    yield f"{'block':>6} " + "".join(f"{window:>14,}" for window in WINDOWS) + "   (tokens in a window)"
    sizes = lengths()
    for block in BLOCK_SIZES:
        found = [padding_and_rate(sizes, block, window) for window in WINDOWS]
        yield f"{block:>6} " + "".join(f"{padding:14.3%}" for padding, _ in found)
        yield f"{'':>6} " + "".join(f"{rate:12,.0f}/s" for _, rate in found)
    yield ""
    yield f"quickstart, {STEPS} steps' worth of tokens: held-out documents scored one by one (toolkit evaluate)"
    yield f"{'':14} {'packing':12} {'steps':>6} {'bits per byte, by seed':>30} {'mean':>8} {'nats per token':>15}"
    for variant in VARIANTS:
        for packing in PACKINGS:
            found = [
                json.loads(result_file(work, *job).read_text(encoding="utf-8"))
                for job in jobs
                if job[0] == variant and job[2] == packing
            ]
            bits = [one["bits_per_byte"] for one in found]
            row = "  ".join(f"{value:.4f}" for value in bits)
            mean, loss = statistics.fmean(bits), statistics.fmean(one["loss"] for one in found)
            yield f"{variant:14} {packing:12} {found[0]['steps']:>6} {row:>30} {mean:8.4f} {loss:15.4f}"


def lengths() -> list[int]:
    draw = random.Random(0)
    return [max(1, round(400 * draw.lognormvariate(0, 1.2))) for _ in range(100_000)]


def padding_and_rate(sizes: list[int], block: int, window: int) -> tuple[float, float]:
    """The share of padding when so many tokens are placed at a time, and documents a second."""
    parts = [min(block, size - at) for size in sizes for at in range(0, size, block)]
    starts = numpy.cumsum([0, *parts[:-1]]) // max(window, best_fit.MIN_WINDOW_BLOCKS * block)
    borders = [0, *(numpy.flatnonzero(numpy.diff(starts)) + 1).tolist(), len(parts)]
    begun = time.process_time()
    bins = sum(len(best_fit.best_fit(parts[first:after], block)) for first, after in itertools.pairwise(borders))
    return 1 - sum(parts) / (bins * block), len(sizes) / (time.process_time() - begun)


if __name__ == "__main__":
    main()
