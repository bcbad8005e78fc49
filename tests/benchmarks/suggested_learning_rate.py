"""Whether the learning rate of `toolkit recipe suggest` is near the best for a small model: the losses around it.

    python -m tests.benchmarks.suggested_learning_rate
    python -m tests.benchmarks.suggested_learning_rate --model-size 1M --rates 1e-3 3e-3 1e-2 --work /tmp/rates

Each rate is one `toolkit recipe run` of the suggested recipe on the documentation of Python, in fp32, on one thread,
two at a time; they differ in the rate alone. The loss is that of the held-out documents at the end.
With --work the same command continues what was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.random_models import device_and_versions, show
from toolkit.planning.suggested_recipe import recipe_text
from toolkit.planning.suggestion import Suggestion, suggest

UNIQUE = 660_000
"""Tokens of the documentation with a vocabulary of 4,096."""
FACTORS = (1, 1 / 3, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-size", default="400K")
    parser.add_argument("--model", choices=["llama", "gpt2"], default="llama")
    parser.add_argument("--flops", default="8e11")
    parser.add_argument(
        "--rates", type=float, nargs="*", help="default: the suggested one, a third of it, three times it"
    )
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the runs here; default: a folder that is removed")
    parser.add_argument("--output", type=Path, help="append the lines to this file")
    asked = parser.parse_args()

    made = suggest(
        tokens=UNIQUE,
        flops=asked.flops,
        model_size=asked.model_size,
        architecture=asked.model,
        vocab_size=4096,
        device="colab-cpu",  # whose speed need not be measured; it decides nothing here
    )
    rates = asked.rates or [float(f"{factor * made.learning_rate:.2g}") for factor in FACTORS]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.parallel) as pool:
        work = asked.work or Path(folder)
        work.mkdir(exist_ok=True)
        (work / "suggested.yaml").write_text(recipe_text(made, command=""), encoding="utf-8")
        losses = dict(zip(rates, pool.map(lambda rate: held_out_loss(work, made, rate), rates), strict=True))
    lines = [
        f"python -m tests.benchmarks.suggested_learning_rate {' '.join(sys.argv[1:])}",
        device_and_versions(),
        f"{made.architecture} {made.layers} x {made.width}, {made.parameters:,} parameters; {made.steps:,} steps of "
        f"{made.sequences_per_step} x {made.block_size}, {made.tokens:,} tokens; suggested rate {made.learning_rate:g}",
        f"{'rate':>8}  {'of the suggested':>16}  {'held-out loss':>13}  {'above the best':>14}",
    ]
    for rate, loss in sorted(losses.items()):
        above = loss / min(losses.values()) - 1
        lines.append(f"{rate:8.2g}  {rate / made.learning_rate:16.2f}  {loss:13.4f}  {above:14.1%}")
    show([*lines, ""], asked.output)


def held_out_loss(work: Path, made: Suggestion, rate: float) -> float:
    """The loss at the end of a run at this rate, in nats per token."""
    settings: dict[str, object] = {"training.learning_rate": rate, "training.eval_steps": made.steps}
    settings["memory"] = "[]"  # one process of a few steps: nothing to choose
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    words = ["recipe", "run", "./suggested.yaml", "--name", f"rate-{rate:g}", "--quiet", "--json", *sets]
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *words],
        cwd=work,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    loss: float = json.loads(done.stdout)["eval_loss"]
    return loss


if __name__ == "__main__":
    main()
