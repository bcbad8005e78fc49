"""Tokens per second of a training step: the toolkit against the Trainer and against a bare loop, on this machine.

    python tests/benchmarks/throughput.py                                     # on a GPU GPT-2 124M, on a CPU 12M
    python tests/benchmarks/throughput.py --model gpt2-1M --steps 100         # where overhead shows
    python tests/benchmarks/throughput.py --model llama-1B --block-size 2048 --micro-batch-size 4
    python tests/benchmarks/throughput.py --document-length 300               # and with a mask between documents
    python tests/benchmarks/throughput.py --contenders bare "toolkit, compiled" --output results.txt

Each contender trains the same model, without dropout, on random tokens, in a process of its own, one after the other.
The rate is that of the steps after the warm-up, between two synchronizations of the device. MFU is model FLOPs
(6 per parameter and token, attention 12 x layers x width x block; Chowdhery and others 2022, appendix B,
https://arxiv.org/abs/2204.02311) over the rate of a large matrix product, measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from tests.benchmarks.random_models import device_and_versions, show, tokenizer_folder
from tests.tiny import callback, resolved
from toolkit.api.context import Precision
from toolkit.data.packed_dataset import BLOCK_NUMBERS, IndexedCollator
from toolkit.system.device import detect
from toolkit.system.host_memory import peak_resident_bytes

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 50257
SMALL_VOCABULARY = 4096
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 0.1, 1.0
MODELS: dict[str, dict[str, Any]] = {
    "gpt2-1M": {"plugin": "gpt2", "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4},
    "gpt2-12M": {"plugin": "gpt2", "num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 6},
    "gpt2-124M": {"plugin": "gpt2", "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
    "gpt2-350M": {"plugin": "gpt2", "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16},
    "llama-1B": {
        "plugin": "llama",
        "num_hidden_layers": 20,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "intermediate_size": 5632,
        "tie_word_embeddings": True,
    },
}
TOOLKIT: dict[str, dict[str, Any]] = {
    "toolkit": {"training": {"torch_compile": False}},
    "toolkit, compiled": {"training": {"torch_compile": True}},
    "toolkit, chunked loss": {"training": {"torch_compile": False}, "memory": ["chunked-loss"]},
    "toolkit, compiled, chunked loss": {"training": {"torch_compile": True}, "memory": ["chunked-loss"]},
    "toolkit, compiled, chunked loss, two at a time": {
        "training": {"torch_compile": True},
        "memory": ["chunked-loss", {"plugin": "small-batch", "micro_batch_size": 2}],
    },
    "toolkit, compiled, within 4 GB": {
        "training": {"torch_compile": True},
        "memory": [{"plugin": "auto", "budget": "4GB"}],
    },
    "toolkit, compiled, fp8": {"training": {"torch_compile": True}, "memory": ["fp8"]},
    "toolkit, deterministic": {"training": {"deterministic": True}},
}
"""What a recipe has beside the model and mixed precision."""
TRAINER: dict[str, dict[str, Any]] = {
    "notebook": {"bf16": False},
    "Trainer, fp32": {"bf16": False},
    "Trainer": {},
    "Trainer, compiled": {"torch_compile": True},
}
"""Flags beside bf16 and the fused AdamW."""
NOTEBOOK_USEFUL_SHARE = 0.066
"""The notebook pads every line of WikiText-2 to 1,024 tokens: python tests/benchmarks/notebook_padding.py."""
PACED = "THROUGHPUT_PACED"
"""Environment variable with two file descriptors, by which another process times each step: `waiting`."""
BARE = {"bare": True, "bare, not compiled": False}
SAME_STEP: dict[str, str] = {"bare, the toolkit's step": "toolkit"}
"""The recipe whose model, loss and optimizer a bare loop has: what it is faster by is what surrounds the step."""


@dataclass
class Clock:
    """Times the steps between the warm-up and the end."""

    first: int
    last: int
    output: Path
    begun: float = 0.0
    created: float = 0.0

    def after(self, step: int) -> None:
        """Called after each step."""
        if PACED in os.environ and step >= self.first:
            self._wait_to_go_on()
        if step == 1:
            self._synchronized()
            self.created = time.time()
        if step == self.first:
            self.begun = self._synchronized()
        if step == self.last:
            seconds = (self._synchronized() - self.begun) / (self.last - self.first)
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident_bytes()
            found = {"seconds": seconds, "peak": peak, "first_step": self.created}
            self.output.write_text(json.dumps(found), encoding="utf-8")

    @classmethod
    def _wait_to_go_on(cls) -> None:
        """Say that a step is over, and wait for the word to take the next one; end when nobody will say it."""
        cls._synchronized()
        told, heard = map(int, os.environ[PACED].split())
        os.write(told, b".")
        if not os.read(heard, 1):
            os._exit(0)

    @staticmethod
    def _synchronized() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class ClockCallback(TrainerCallback):
    """The clock of a Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.after(state.global_step)


TIMED = """
def on_train_begin(self, args, state, control, **kwargs):
    from pathlib import Path

    from tests.benchmarks.throughput import Clock

    self.clock = Clock({first}, {last}, Path({output!r}))
def on_step_end(self, args, state, control, **kwargs):
    self.clock.after(state.global_step)
"""
"""The same in a plugin of the recipe."""
END = 0
"""The token that ends a document, where the toolkit makes none of the blocks."""
HELD_OUT = 4
"""Texts beside those that are trained on; a recipe evaluates at its end."""


def vocabulary_of(model: str) -> int:
    """Rows of the embedding: those of GPT-2's tokenizer, except where they would be most of the model."""
    return SMALL_VOCABULARY if model in ("gpt2-1M", "gpt2-12M") else VOCABULARY


def inputs(work: Path, asked: argparse.Namespace) -> None:
    """Write a tokenizer, and texts of random letters, each of which is a token."""
    tokenizer_folder(work / "tokenizer", vocabulary_of(asked.model))
    draw, letters = random.Random(0), "abcdefghijklmnopqrstuvwxyz"
    left = _blocks(asked) * asked.block_size
    with (work / "texts.txt").open("w", encoding="utf-8") as texts:
        while left > 0:
            length = asked.block_size
            if asked.document_length:
                length = 1 + int(draw.expovariate(1 / asked.document_length))
            texts.write("".join(draw.choices(letters, k=length)) + "\n")
            left -= length


def _blocks(asked: argparse.Namespace) -> int:
    return int(asked.steps * asked.micro_batch_size + 2 * HELD_OUT)  # a block is lost to each split


def write_recipe_of(name: str, work: Path, asked: argparse.Namespace) -> Path:
    """The recipe of one of `TOOLKIT`, in a folder that has its `inputs`."""
    sections = TOOLKIT[name]
    callback(work, "timed", TIMED.format(first=asked.warmup, last=asked.steps, output=str(work / f"{name}.json")))
    recipe = {
        "recipe": 1,
        "plugin_paths": ["plugins"],
        "dataset": {
            "plugin": "text-files",
            "files": str(work / "texts.txt"),
            "sample_by": "line",
            "eval_fraction": HELD_OUT / _blocks(asked),
        },
        "tokenizer": {"plugin": "pretrained", "path": str(work / "tokenizer")},
        "model": _model(asked),
        "objective": {
            "plugin": "causal-lm",
            "block_size": asked.block_size,
            "document_mask": bool(asked.document_length),
        },
        "memory": [*(["mixed-precision"] if asked.bf16 else []), *sections.get("memory", [])],
        "callbacks": ["timed"],
        "training": {
            "max_steps": asked.steps,
            "eval_steps": asked.steps + 1,  # none between the timed steps
            "global_batch_size": asked.micro_batch_size,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": CLIP,
            **sections.get("training", {}),
        },
    }
    file = work / "timed.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return file


def run_toolkit(name: str, work: Path, asked: argparse.Namespace) -> None:
    """Train by a recipe."""
    file = write_recipe_of(name, work, asked)
    from toolkit.cli.main import main

    sys.argv = ["toolkit", "recipe", "run", str(file)]
    os.chdir(work)
    main()


def run_same_step(name: str, work: Path, asked: argparse.Namespace) -> None:
    """Train the model of a recipe by the loop that people write by hand; nothing checks, counts, logs or saves."""
    file = write_recipe_of(SAME_STEP[name], work, asked)
    os.chdir(work)
    from toolkit.memory.allocator import FreedMemory
    from toolkit.training.components import assemble, context_of
    from toolkit.training.loss import predicted_tokens

    recipe = resolved(file)
    context = context_of(recipe, work)
    components = assemble(recipe, context)
    model, device = components.model.to(context.device.kind).train(), context.device.kind
    plain = recipe.recipe.optimizer.plugin.build(
        model, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, run=context
    )
    optimizer = components.wrap_optimizer(plain)
    collate = IndexedCollator(components.objective, components.tokenizer)
    data = DataLoader(components.data.train, batch_size=asked.micro_batch_size, collate_fn=collate)
    clock = Clock(asked.warmup, asked.steps, work / f"{name}.json")
    with FreedMemory(matters=device == "cpu").retained():
        for step, batch in enumerate(data, start=1):
            del batch[BLOCK_NUMBERS]
            inputs = {key: value.to(device) for key, value in batch.items()}
            labels = inputs.pop("labels")
            with torch.autocast(device, torch.bfloat16, enabled=asked.bf16):
                outputs = model(**inputs, use_cache=False)
                loss = components.loss(outputs, labels, predicted_tokens(labels, "causal-lm"))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.after(step)
            if step == asked.steps:
                return


def _model(asked: argparse.Namespace) -> dict[str, Any]:
    model = dict(MODELS[asked.model])
    return model if model["plugin"] == "llama" else {**model, "dropout": 0.0}


def model_of(asked: argparse.Namespace) -> Any:
    """The model that the recipe has, built without the toolkit."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(42)
    shape, vocabulary = MODELS[asked.model], vocabulary_of(asked.model)
    layers, width, heads = (shape[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if shape["plugin"] == "gpt2":
        dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(
            vocab_size=vocabulary, n_layer=layers, n_embd=width, n_head=heads, n_positions=asked.block_size, **dropouts
        )
        return GPT2LMHeadModel(config)
    sizes = {name: value for name, value in shape.items() if name != "plugin"}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=asked.block_size, **sizes))


def blocks(asked: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Random tokens, (steps x batch, block), which are their own labels; and their positions, if documents end."""
    from toolkit_plugins.objective.causal_lm import positions_within_documents

    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 262, (asked.steps * asked.micro_batch_size, asked.block_size), generator=drawn)
    if not asked.document_length:
        return {"input_ids": ids, "labels": ids}
    ids[torch.rand(ids.shape, generator=drawn) < 1 / asked.document_length] = END
    return {"input_ids": ids, "labels": ids, "position_ids": positions_within_documents(ids, END)}


def run_trainer(name: str, work: Path, asked: argparse.Namespace) -> None:
    """Train by transformers' Trainer alone."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    arguments = TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=asked.micro_batch_size,
        max_steps=asked.steps,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **{"bf16": asked.bf16, **TRAINER[name]},
    )
    made = blocks(asked)
    if name == "notebook":
        padding = torch.arange(asked.block_size) >= NOTEBOOK_USEFUL_SHARE * asked.block_size
        made["attention_mask"] = (~padding).long().expand_as(made["input_ids"])
    # All that its DataLoader asks for.
    data: Any = [dict(zip(made, block, strict=True)) for block in zip(*made.values(), strict=True)]
    trainer = Trainer(
        model=model_of(asked),
        args=arguments,
        train_dataset=data,
        data_collator=default_data_collator,
        callbacks=[ClockCallback(Clock(asked.warmup, asked.steps, work / f"{name}.json"))],
    )
    trainer.train()


def run_bare(name: str, work: Path, asked: argparse.Namespace) -> None:
    """Train by the loop that people write by hand."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(asked).to(device)
    step_of = torch.compile(model) if BARE[name] else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    clock = Clock(asked.warmup, asked.steps, work / f"{name}.json")
    made = blocks(asked)
    batches = zip(*(each.to(device).split(asked.micro_batch_size) for each in made.values()), strict=True)
    for step, batch in enumerate(batches, start=1):
        with torch.autocast(device, torch.bfloat16, enabled=asked.bf16):
            loss = step_of(**dict(zip(made, batch, strict=True)), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.after(step)


def model_flops(asked: argparse.Namespace) -> float:
    """FLOPs of a token, forward and backward."""
    from toolkit.training.model_flops import flops_per_token

    with torch.device("meta"):
        return flops_per_token(model_of(asked), asked.block_size)


def seconds_of_products(asked: argparse.Namespace) -> tuple[float, float]:
    """What the matrix products of the layers and the head take in a step, one after the other; and their FLOPs.

    Attention is aside. It is the least that a step can take here, however little is done besides: products of a
    model's shapes are slower than a large square one.
    """
    from torch.utils.benchmark import Timer
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        modules = list(model_of(asked).modules())
    shapes = Counter((each.in_features, each.out_features) for each in modules if isinstance(each, torch.nn.Linear))
    shapes.update((each.nx, each.nf) for each in modules if isinstance(each, Conv1D))
    rows, threads = asked.micro_batch_size * asked.block_size, torch.get_num_threads()
    dtype, device = torch.bfloat16 if asked.bf16 else torch.float32, detect().kind
    seconds, flops = 0.0, 0.0
    for (before, after), count in shapes.items():
        hidden = torch.randn(rows, before, dtype=dtype, device=device)
        weight = torch.randn(after, before, dtype=dtype, device=device)
        slope = torch.randn(rows, after, dtype=dtype, device=device)
        for pair in ((hidden, weight.T), (slope, weight), (slope.T, hidden)):
            timer = Timer("matmul(*pair)", globals={"matmul": torch.matmul, "pair": pair}, num_threads=threads)
            seconds += count * timer.blocked_autorange(min_run_time=0.5).median
            flops += count * 2 * rows * before * after
    return seconds, flops


RUNNERS: tuple[tuple[Mapping[str, Any], Callable[[str, Path, argparse.Namespace], None]], ...] = (
    (TRAINER, run_trainer),
    (BARE, run_bare),
    (SAME_STEP, run_same_step),
    (TOOLKIT, run_toolkit),
)
CONTENDERS = [name for names, _ in RUNNERS for name in names]


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="gpt2-124M" if cuda else "gpt2-12M")
    parser.add_argument("--block-size", type=int, default=1024 if cuda else 256)
    parser.add_argument("--micro-batch-size", type=int, default=32 if cuda else 8, help="all of a step")
    parser.add_argument("--steps", type=int, default=60 if cuda else 30)
    parser.add_argument("--warmup", type=int, default=20 if cuda else 10, help="steps that are not timed")
    parser.add_argument("--document-length", type=int, default=0, help="mean, in tokens; and attention stays in each")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=detect().bf16)
    has_float8 = (detect().compute_capability or (0, 0)) >= (8, 9)
    usual = [
        name
        for name in CONTENDERS
        if (has_float8 or "fp8" not in name) and not name.endswith(("two at a time", "within 4 GB"))
    ]
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=usual, metavar="CONTENDER")
    parser.add_argument("--baseline", choices=CONTENDERS, default="bare")
    parser.add_argument("--output", type=Path, help="append the table to this file")
    parser.add_argument("--only-here", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only_here:
        (run,) = (runner for names, runner in RUNNERS if asked.only_here in names)
        run(asked.only_here, asked.work, asked)
        return
    show(table(asked), asked.output)


def table(asked: argparse.Namespace) -> Any:
    """The lines of the table, as they come."""
    from toolkit.planning.roofline import product_rate

    precision: Precision = "bf16" if asked.bf16 else "fp32"
    peak, flops = product_rate(detect(), precision), model_flops(asked)
    documents = f", documents of {asked.document_length} apart" if asked.document_length else ""
    yield f"{asked.model}, {asked.micro_batch_size} x {asked.block_size} tokens a step, {precision}{documents}"
    yield device_and_versions()
    yield f"a large matrix product: {peak / 1e12:.3g} TFLOP/s; the model: {flops / 1e9:.3g} GFLOP a token"
    seconds, products = seconds_of_products(asked)
    most = asked.micro_batch_size * asked.block_size / seconds
    yield f"its own products, attention aside: {products / seconds / 1e12:.3g} TFLOP/s, {most:,.0f} tokens/s at most"
    yield f"{'':46} {'tokens/s':>9} {'MFU':>6} {'ratio':>6} {'peak GB':>8} {'first step':>10}"
    rates: dict[str, float] = {}
    order = sorted(asked.contenders, key=lambda each: each != asked.baseline)
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder), asked)
        for each in order:
            found = measured(each, Path(folder), asked)
            if isinstance(found, str):
                yield f"{each:46} failed: {found}"
                continue
            rates[each] = asked.micro_batch_size * asked.block_size / found["seconds"]
            rates[each] *= NOTEBOOK_USEFUL_SHARE if each == "notebook" else 1
            ratio = f"{rates[each] / rates[asked.baseline]:6.2f}" if asked.baseline in rates else " " * 6
            yield (
                f"{each:46} {rates[each]:9,.0f} {rates[each] * flops / peak:6.1%} {ratio} "
                f"{found['peak'] / 1e9:8.2f} {found['first_step']:8.1f} s"
            )


def alone(name: str, shared: Path, work: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """How a contender is started in a process of its own: arguments of `subprocess`."""
    for each in ("tokenizer", "texts.txt"):
        (work / each).symlink_to(shared / each)
    words = [sys.executable, __file__, "--only-here", name, "--work", str(work), "--model", asked.model]
    for option in ("block_size", "micro_batch_size", "steps", "warmup", "document_length"):
        words += [f"--{option.replace('_', '-')}", str(getattr(asked, option))]
    words.append("--bf16" if asked.bf16 else "--no-bf16")
    environment = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "TOOLKIT_CACHE": str(work)}
    return {"args": words, "env": {**os.environ, **environment}}


@contextlib.contextmanager
def waiting(name: str, asked: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """A contender's step, as a function: in a process of its own, which waits for the word to take it."""
    with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as work:
        inputs(Path(shared), asked)
        (listen, told), (heard, say) = os.pipe(), os.pipe()
        how = alone(name, Path(shared), Path(work), asked)
        how["env"][PACED] = f"{told} {heard}"
        with Path(work, "log.txt").open("wb") as log:
            process = subprocess.Popen(**how, pass_fds=(told, heard), stdout=log, stderr=log)
        os.close(told)
        os.close(heard)

        def over() -> None:
            assert os.read(listen, 1), Path(work, "log.txt").read_text(encoding="utf-8")[-3000:]

        def step() -> None:
            os.write(say, b".")
            over()

        try:
            over()
            yield step
        finally:
            os.close(say)
            process.wait()
            os.close(listen)


def measured(name: str, shared: Path, asked: argparse.Namespace) -> dict[str, float] | str:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        begun = time.time()
        how = alone(name, shared, work, asked)
        done = subprocess.run(**how, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr[-3000:]
        found: dict[str, float] = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
        return found | {"first_step": found["first_step"] - begun}


if __name__ == "__main__":
    main()
