"""The best learning rate at three widths, with muP and without: does that of the smallest carry over?

    python -m tests.benchmarks.learning_rate_transfer                   # 25 models, hours on two cores
    python -m tests.benchmarks.learning_rate_transfer --model gpt2 --widths 128 256 512 --seed 2
    python -m tests.benchmarks.learning_rate_transfer --output tests/benchmarks/results/learning_rate_transfer.txt

Models on the documentation of Python, with a head of their own, in fp32, by the toolkit's own plugins in a bare loop:
warm-up over a tenth of the steps, linear decay to zero, gradients clipped to 1. The widths differ, and nothing else:
layers, head size, tokens and seed are the same. The smallest width is the base, where muP changes nothing, so it is
trained once.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict

from tests.benchmarks.quickstart_choice import batch, held_out_loss, loss_of
from tests.benchmarks.random_models import device_and_versions, show
from toolkit.api import Optimizer, RunContext
from toolkit.data.documents import contents_of
from toolkit.data.packing import PackedData, prepare
from toolkit.system.device import detect
from toolkit_plugins.dataset.python_docs import PythonDocs
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.optimizer.adamw import AdamW
from toolkit_plugins.optimizer.muon import Muon
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

HEAD_SIZE = 16
BLOCK_SIZE, WARM_UP = 128, 0.1
MODELS = {"llama": Llama, "gpt2": GPT2}
OPTIMIZERS: dict[str, Optimizer] = {"adamw": AdamW(betas=(0.9, 0.95)), "muon": Muon()}


@dataclass(frozen=True)
class Trial:
    """One model to train."""

    width: int
    base: int | None
    """The width from which muP scales; None without it."""
    learning_rate: float


Losses = Mapping[Trial, float]
"""The held-out loss of each, in nats per token."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="llama")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256], help="the smallest is the base")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=8, help=f"per step, of {BLOCK_SIZE} tokens each")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="append the table to this file")
    return parser.parse_args()


def trials(asked: argparse.Namespace) -> list[Trial]:
    base = min(asked.widths)
    return [
        Trial(width, scaled_from, rate)
        for scaled_from in (None, base)
        for width in sorted(asked.widths)
        for rate in asked.learning_rates
        if width != base or scaled_from is None
    ]


class Sweep:
    """The data, and what is trained on them."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked = asked
        device = replace(detect(), bf16=False)
        self.run = RunContext("sweep", folder, folder, asked.seed, device, "causal-lm", BLOCK_SIZE)
        documents = PythonDocs().load(self.run)["train"].train_test_split(test_size=0.02, seed=42)
        data = DatasetDict(train=documents["train"], validation=documents["test"])
        self.tokenizer = ByteBPE(vocab_size=asked.vocabulary).build(data["train"]["text"], self.run)
        objective = CausalLM(block_size=BLOCK_SIZE)
        self.packed: PackedData = prepare(data, contents_of(data), self.tokenizer, objective, self.run)

    def held_out_loss(self, trial: Trial) -> float:
        """Train one model."""
        torch.manual_seed(self.asked.seed)
        options: dict[str, Any] = {
            "num_hidden_layers": self.asked.layers,
            "hidden_size": trial.width,
            "num_attention_heads": trial.width // HEAD_SIZE,
            "tie_word_embeddings": False,
            "mup_base_hidden_size": trial.base,
        }
        model = MODELS[self.asked.model](**options).build(self.tokenizer, self.run)
        plugin = OPTIMIZERS[self.asked.optimizer]
        optimizer = plugin.build(model, learning_rate=trial.learning_rate, weight_decay=0.0, run=self.run)
        steps, warm_up = self.asked.steps, WARM_UP * self.asked.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
        )
        order = torch.randperm(len(self.packed.train), generator=torch.Generator().manual_seed(self.asked.seed))
        for step in range(steps):
            places = [(step * self.asked.sequences + number) % len(order) for number in range(self.asked.sequences)]
            loss_of(model, batch(self.packed.train, order[places].tolist()), self.run).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return held_out_loss(model, self.packed, self.run)


def table(losses: Losses, asked: argparse.Namespace) -> list[str]:
    """A row for each width, a column for each learning rate, and what the best rate of the base costs at the width."""
    rates = list(asked.learning_rates)
    rows: dict[tuple[int | None, int], list[float]] = {}
    for trial, loss in losses.items():
        rows.setdefault((trial.base, trial.width), []).append(loss)
    carried = best(rows[None, min(asked.widths)])
    lines = [
        f"{asked.model}, {asked.layers} layers, vocabulary {asked.vocabulary:,}, {asked.optimizer}, fp32, "
        f"{asked.steps} steps of {asked.sequences} x {BLOCK_SIZE} tokens, seed {asked.seed}",
        "",
        f"{'held-out loss at':18}"
        + "".join(f"{rate:>8g}" for rate in rates)
        + f"{'best':>8}{f'cost of {rates[carried]:g}':>16}",
    ]
    for (scaled_from, width), row in rows.items():
        name = "base" if width == min(asked.widths) else "muP" if scaled_from else "without muP"
        cost = row[carried] - min(row)
        values = "".join(f"{loss:>8.3f}" for loss in row)
        lines.append(f"{name:12}{width:>6}{values}{rates[best(row)]:>8g}{cost:>16.3f}")
    return lines


def best(row: list[float]) -> int:
    """The place of the lowest loss; a model that has diverged has none."""
    return min(range(len(row)), key=lambda number: row[number] if math.isfinite(row[number]) else math.inf)


def main() -> None:
    asked = arguments()
    losses: dict[Trial, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(asked, Path(folder))
        for trial in trials(asked):
            losses[trial] = sweep.held_out_loss(trial)
            print(trial, f"{losses[trial]:.3f}", flush=True)
    show([device_and_versions(), *table(losses, asked), ""], asked.output)


if __name__ == "__main__":
    main()
