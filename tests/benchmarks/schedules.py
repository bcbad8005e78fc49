"""Held-out loss after the same tokens: schedules, averages of the weights, warm-up of the batch and of the length.

    python -m tests.benchmarks.schedules --corpus python-docs
    python -m tests.benchmarks.schedules --corpus wikitext --seed 2 --candidates constant "linear decay"

Model and optimizer are those of the recipe quickstart with half of its vocabulary, in a bare loop on one thread.
Averages are of the weights that their run has anyway, so each costs an evaluation. A decay at the end (WSD) is a branch
of the constant run. docs/learning-sooner.md says what came of it.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from datasets import DatasetDict

from tests.benchmarks.quickstart_choice import batch, held_out_loss, loss_of
from toolkit.api import RunContext
from toolkit.data.documents import contents_of
from toolkit.data.packing import prepare
from toolkit.system.cache import cache_folder
from toolkit.system.device import detect
from toolkit_plugins.dataset.python_docs import PythonDocs
from toolkit_plugins.dataset.wikitext import WikiText
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.optimizer.muon import Muon
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

BATCH, BLOCK = 8, 256
HELD_OUT = 96
"""Blocks that are evaluated."""
"""Sequences of a step and tokens of a sequence, at full size."""
WARM_UP = 0.05
"""Share of all tokens."""
VOCABULARY = 2048
"""Half of the recipe's: a step takes two thirds of the time."""
LEARNING_RATE = 2e-2
EMA_DECAYS = (0.96, 0.98, 0.99)
AVERAGED = ((4, 1), (8, 1), (16, 1), (4, 4), (3, 6))
"""Numbers of checkpoints in an average, and of those from one to the next ..."""
CHECKPOINTS = 40
"""... of so many in the run."""
EVALUATIONS = 4

Course = Callable[[float], float]
"""A number by the share of all tokens that is over."""
Weights = Mapping[str, torch.Tensor]


def decay_over(share: float, shape: Course, floor: float = 0.0) -> Course:
    """The learning rate's factor: constant, then falling from 1 to `floor` over this share of the tokens."""

    def factor(done: float) -> float:
        return floor + (1 - floor) * shape(min(1.0, max(0.0, (done - 1 + share) / share)))

    return factor


def straight(x: float) -> float:
    return 1 - x


def half_cosine(x: float) -> float:
    return (1 + math.cos(math.pi * x)) / 2


def one_minus_root(x: float) -> float:
    return 1 - math.sqrt(x)


@dataclass(frozen=True)
class Candidate:
    """What a run has in place of a constant learning rate, batch and length."""

    rate: Course = field(default=lambda done: 1.0)
    sequences: Callable[[float], int] = field(default=lambda done: BATCH)
    pieces: Callable[[float], int] = field(default=lambda done: 1)
    """Into how many each sequence is cut."""
    begins: float = 0.0
    """Where it leaves the constant run."""


def until(share: float, first: int, then: int) -> Callable[[float], int]:
    return lambda done: first if done < share else then


LINEAR = decay_over(1 - WARM_UP, straight)
CANDIDATES = {
    "constant": Candidate(),
    "linear decay": Candidate(LINEAR),
    "cosine to 0": Candidate(decay_over(1 - WARM_UP, half_cosine)),
    "cosine to 0.1": Candidate(decay_over(1 - WARM_UP, half_cosine, 0.1)),
    "WSD, last 0.2, linear": Candidate(decay_over(0.2, straight), begins=0.8),
    "WSD, last 0.2, 1 - root": Candidate(decay_over(0.2, one_minus_root), begins=0.8),
    "WSD, last 0.5, linear": Candidate(decay_over(0.5, straight), begins=0.5),
    "linear, half the batch first": Candidate(LINEAR, sequences=until(1 / 3, BATCH // 2, BATCH)),
    "linear, quarter batch first": Candidate(LINEAR, sequences=until(1 / 3, BATCH // 4, BATCH)),
    "linear, length 64 first": Candidate(LINEAR, pieces=until(1 / 3, 4, 1)),
}
BRANCHING = sorted({candidate.begins for candidate in CANDIDATES.values()} - {0.0})


class Averages:
    """Exponential moving averages of the weights, and means of the last checkpoints."""

    def __init__(self, weights: Weights) -> None:
        self.moving = {decay: {name: w.clone() for name, w in weights.items()} for decay in EMA_DECAYS}
        self.last: deque[Weights] = deque(maxlen=max(number * every for number, every in AVERAGED))

    def step(self, weights: Weights) -> None:
        for decay, average in self.moving.items():
            for name, w in weights.items():
                average[name].lerp_(w, 1 - decay)

    def checkpoint(self, weights: Weights) -> None:
        self.last.append({name: w.clone() for name, w in weights.items()})

    def __iter__(self) -> Iterator[tuple[str, Weights]]:
        for decay, average in self.moving.items():
            yield f"EMA {decay}", average
        for number, every in AVERAGED:
            if (number - 1) * every < len(self.last):
                chosen = list(self.last)[::-every][:number]
                yield (
                    f"mean of {number}, {every / CHECKPOINTS:.1%} apart",
                    {name: sum(w[name] for w in chosen) / number for name in chosen[0]},
                )


class Corpus:
    """Packed blocks of a corpus, and the model that is trained on them."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.run = RunContext("schedules", folder, cache_folder(), seed, detect(), "causal-lm", BLOCK)
        data = {"python-docs": PythonDocs, "wikitext": WikiText}[name]().load(self.run)
        if "validation" not in data:
            parts = data["train"].train_test_split(test_size=0.05, seed=42)
            data = DatasetDict(train=parts["train"], validation=parts["test"])
        self.tokenizer = ByteBPE(vocab_size=VOCABULARY).build(data["train"]["text"], self.run)
        run = replace(self.run, seed=42)
        self.packed = prepare(data, contents_of(data), self.tokenizer, CausalLM(block_size=BLOCK), run)

    def order(self, number: int) -> list[int]:
        """The first so many blocks of an order that depends on the seed alone."""
        draw = torch.Generator().manual_seed(self.run.seed)
        order: list[int] = []
        while len(order) < number:
            order += torch.randperm(len(self.packed.train), generator=draw).tolist()
        return order[:number]

    def beginning(self) -> tuple[Any, Any]:
        """The model and its optimizer before the first step."""
        torch.manual_seed(self.run.seed)
        model = Llama(num_hidden_layers=2, hidden_size=128).build(self.tokenizer, self.run)
        return model, Muon().build(model, learning_rate=LEARNING_RATE, weight_decay=0.0, run=self.run)

    def loss(self, model: Any, weights: Weights | None = None) -> float:
        """Held-out, in nats per token."""
        if weights is None:
            return held_out_loss(model, self.packed, self.run, HELD_OUT)
        own = {name: w.detach().clone() for name, w in model.named_parameters()}
        model.load_state_dict(weights, strict=False)
        loss = held_out_loss(model, self.packed, self.run, HELD_OUT)
        model.load_state_dict(own, strict=False)
        return loss


def train(corpus: Corpus, candidate: Candidate, steps: int, trunk: dict[float, Any]) -> Iterator[tuple[str, float]]:
    """Train a candidate; at each evaluation, its loss and those of its averages.

    `steps` are of full size. `trunk` holds states of the constant run, which that run puts there for the others.
    """
    model, optimizer = corpus.beginning()
    peaks = [group["lr"] for group in optimizer.param_groups]
    total, done = steps * BATCH, 0
    averages = Averages({name: w.detach() for name, w in model.named_parameters()})
    if candidate.begins:
        done, weights, state, averages = copy.deepcopy(trunk[candidate.begins])
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    order, taken = corpus.order(total), 0
    while done < total:
        share = done / total
        factor = min(1.0, (share + 1 / steps) / WARM_UP) * candidate.rate(share)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        size = min(candidate.sequences(share), total - done)
        inputs = batch(corpus.packed.train, order[done : done + size])
        inputs = inputs.reshape(size * candidate.pieces(share), -1)
        loss_of(model, inputs, corpus.run).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        before, done, taken = done, done + size, taken + 1
        weights = {name: w.detach() for name, w in model.named_parameters()}
        averages.step(weights)
        if crossed(before, done, total, CHECKPOINTS):
            averages.checkpoint(weights)
        if candidate is CANDIDATES["constant"] and done / total in BRANCHING:
            state = (done, model.state_dict(), optimizer.state_dict(), averages)
            trunk[done / total] = copy.deepcopy(state)
        if crossed(before, done, total, EVALUATIONS):
            at = f"{done / total:.2f}"
            yield f"{at} last weights", corpus.loss(model)
            if done == total or (done / total >= 0.5 and candidate is CANDIDATES["constant"]):
                for name, average in averages:
                    yield f"{at} {name}", corpus.loss(model, average)


def crossed(before: int, after: int, total: int, parts: int) -> bool:
    """Whether a multiple of a part lies between the two."""
    return before * parts // total != after * parts // total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=["python-docs", "wikitext"], default="python-docs")
    parser.add_argument("--steps", type=int, default=200, help=f"of {BATCH * BLOCK:,} tokens each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--candidates", nargs="*", choices=list(CANDIDATES), default=list(CANDIDATES), metavar="NAME")
    asked = parser.parse_args()
    trunk: dict[float, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(asked.corpus, asked.seed, Path(folder))
        tokens = len(corpus.packed.train) * BLOCK
        print(f"{asked.corpus}, seed {asked.seed}: {tokens:,} tokens, {asked.steps * BATCH * BLOCK:,} trained on")
        for name in asked.candidates:
            begun = time.process_time()
            for what, loss in train(corpus, CANDIDATES[name], asked.steps, trunk):
                print(f"{name:<30} {what:<27} {loss:.4f}", flush=True)
            print(f"{name:<30} {time.process_time() - begun:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main()
