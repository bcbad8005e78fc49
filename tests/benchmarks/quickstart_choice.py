"""Trains one candidate for the recipe quickstart and prints its held-out bits per byte: docs/quickstart-choice.md.

    python tests/benchmarks/quickstart_choice.py --optimizer muon --layers 2 --width 128 --learning-rate 2e-2

A bare loop with the toolkit's own plugins, on one thread and by the processor's time, so that other work on the
machine does not decide what is chosen.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from datasets import DatasetDict

from toolkit.api import RunContext
from toolkit.data.documents import contents_of
from toolkit.data.packed_dataset import PackedBlocks
from toolkit.data.packing import PackedData, prepare
from toolkit.system.device import detect
from toolkit_plugins.dataset.python_docs import PythonDocs
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.optimizer.adamw import AdamW
from toolkit_plugins.optimizer.muon import Muon
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

WARM_UP = 0.05
"""Share of the steps."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["llama", "gpt2"], default="llama")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=None, help="default: the plugin's, or width / 32 for gpt2")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--tokens", type=int, default=560_000, help="tokens to train on")
    parser.add_argument("--learning-rate", type=float, default=2e-2)
    parser.add_argument("--hidden-learning-rate", type=float, default=0.02, help="of muon")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    with tempfile.TemporaryDirectory() as folder:
        run = RunContext("choice", Path(folder), Path(folder), chosen.seed, detect(), "causal-lm", chosen.block_size)
        documents = PythonDocs().load(run)["train"].train_test_split(test_size=0.05, seed=42)
        data = DatasetDict(train=documents["train"], validation=documents["test"])
        tokenizer = ByteBPE(vocab_size=chosen.vocabulary).build(data["train"]["text"], run)
        objective = CausalLM(block_size=chosen.block_size)
        packed = prepare(data, contents_of(data), tokenizer, objective, replace(run, seed=42))
        bytes_per_token = sum(len(text.encode()) for text in data["validation"]["text"]) / held_out_tokens(packed)
        begun = time.process_time()
        model, curve = train(chosen, run, tokenizer, packed, bytes_per_token)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{parameters:,} parameters, {time.process_time() - begun:.0f} s of processor time")
        for step, bits in curve:
            print(f"step {step}: {bits:.3f} bits per byte")


def held_out_tokens(packed: PackedData) -> int:
    assert packed.account.validation is not None
    return packed.account.validation.tokens


def train(
    chosen: argparse.Namespace, run: RunContext, tokenizer: Any, packed: PackedData, bytes_per_token: float
) -> tuple[torch.nn.Module, list[tuple[int, float]]]:
    """Train the candidate; return it and its held-out bits per byte at each fifth of the way."""
    torch.manual_seed(chosen.seed)
    sizes = {"num_hidden_layers": chosen.layers, "hidden_size": chosen.width}
    heads = (
        {"num_attention_heads": chosen.heads or chosen.width // 32} if chosen.heads or chosen.model == "gpt2" else {}
    )
    model = {"llama": Llama, "gpt2": GPT2}[chosen.model](**sizes, **heads).build(tokenizer, run)
    plugin = Muon(hidden_learning_rate=chosen.hidden_learning_rate) if chosen.optimizer == "muon" else AdamW()
    optimizer = plugin.build(model, learning_rate=chosen.learning_rate, weight_decay=0.0, run=run)
    steps = chosen.tokens // (chosen.batch * chosen.block_size)
    warm_up = WARM_UP * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warm_up + 1), max(0.0, (steps - step) / (steps - warm_up)))
    )
    draw = torch.Generator().manual_seed(chosen.seed)
    order: list[int] = []
    curve = []
    for step in range(1, steps + 1):
        if len(order) < chosen.batch:
            order += torch.randperm(len(packed.train), generator=draw).tolist()
        inputs, order = batch(packed.train, order[: chosen.batch]), order[chosen.batch :]
        loss_of(model, inputs, run).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            curve.append((step, held_out_loss(model, packed, run) / math.log(2) / bytes_per_token))
    return model, curve


def batch(blocks: PackedBlocks, indices: list[int]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(blocks[index]["input_ids"]) for index in indices])


def loss_of(model: Any, inputs: torch.Tensor, run: RunContext) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=run.device.bf16):
        loss: torch.Tensor = model(input_ids=inputs, labels=inputs, use_cache=False).loss
    return loss


def held_out_loss(model: torch.nn.Module, packed: PackedData, run: RunContext, most: int | None = None) -> float:
    """Nats per token; of the first `most` blocks, if given."""
    blocks = packed.validation
    assert blocks is not None
    number = min(len(blocks), most or len(blocks))
    model.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, number, 32):
            inputs = batch(blocks, list(range(start, min(start + 32, number))))
            total += float(loss_of(model, inputs, run)) * len(inputs)
    model.train()
    return total / number


if __name__ == "__main__":
    main()
