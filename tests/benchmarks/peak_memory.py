"""Peak resident memory and speed of training GPT-2 (124M) with sets of memory strategies, each run whole.

    python tests/benchmarks/peak_memory.py                           # every set, 16 x 1024 tokens a step
    python tests/benchmarks/peak_memory.py --sets plain exact --global-batch-size 2 --steps 3

Each set is a run of `toolkit recipe run` in a process of its own: start-up, data, training, evaluation, a checkpoint,
export and the reload that proves it. The peak is the kernel's count for the process (VmHWM). The
weights are random, the tokens too: neither changes what memory is needed. Linux, one run at a time on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.random_models import AS_WHERE_MEMORY_IS_SHORT, peak_of, tokenizer_folder

VOCABULARY = 50257
BLOCK_SIZE = 1024

BASE = """
from transformers import GPT2Config, GPT2LMHeadModel
GPT2LMHeadModel(GPT2Config()).save_pretrained("base")
"""
"""LoRA has a pretrained base, so it gets one; made by a process of its own, as the kernel counts it."""


def micro(size: int) -> dict[str, Any]:
    return {"plugin": "small-batch", "micro_batch_size": size}


SETS: dict[str, list[Any]] = {
    "plain, micro-batch 2": [micro(2)],
    "plain": [micro(1)],
    "checkpointed": [micro(1), "gradient-checkpointing"],
    "exact": [micro(1), "gradient-checkpointing", "chunked-loss"],
    "exact, bf16": [micro(1), "gradient-checkpointing", "chunked-loss", "mixed-precision"],
    "adafactor": [micro(1), "gradient-checkpointing", "chunked-loss", "low-memory-optimizer"],
    "bf16 weights": [micro(1), "gradient-checkpointing", "chunked-loss", "weights-in-bf16"],
    "adafactor, bf16 weights": [
        *(micro(1), "gradient-checkpointing", "chunked-loss"),
        *("low-memory-optimizer", "weights-in-bf16"),
    ],
    "lora": [micro(1), "gradient-checkpointing", "chunked-loss", "lora"],
    "lora, bf16 weights": [micro(1), "gradient-checkpointing", "chunked-loss", "lora", "weights-in-bf16"],
}
"""What is measured. `plain` without any strategy would need all 16 sequences at once: about 60 GB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS), metavar="SET")
    parser.add_argument("--global-batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="the optimizer's state is there from the second on")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    print(f"GPT-2 124M, {asked.global_batch_size} x {BLOCK_SIZE} tokens a step, {asked.steps} steps, AdamW unless said")
    print(f"{'set':24} {'peak GB':>8} {'tokens/s':>9} {'CPU s':>7} {'losses'}")
    for name in asked.sets:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name:24} {measured(Path(folder), SETS[name], asked)}", flush=True)


def measured(folder: Path, memory: list[Any], asked: argparse.Namespace) -> str:
    """Run one set, and say its peak, speed and losses."""
    recipe = written(folder, memory, asked)
    environment = {"OMP_NUM_THREADS": str(asked.threads), "TOOLKIT_CACHE": str(folder / "cache")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        peak = peak_of(AS_WHERE_MEMORY_IS_SHORT, ["recipe", "run", str(recipe), "--quiet"], folder, environment)
    except SystemExit as error:
        return f"failed: {error}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = map(json.loads, (folder / "runs" / recipe.stem / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [line for line in lines if line["kind"] == "train"]
    # On a busy machine the processor's time says more than the speed does.
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    losses = " ".join(f"{line['loss']:.6f}" for line in steps)
    return f"{peak / 1e9:8.2f} {steps[-1]['tokens_per_second']:9.1f} {cpu:7.0f} {losses}"


def written(folder: Path, memory: list[Any], asked: argparse.Namespace) -> Path:
    """The recipe, its tokenizer and its texts."""
    draw = random.Random(0)
    blocks = asked.global_batch_size * asked.steps
    letters = "abcdefghijklmnopqrstuvwxyz"  # a token each, for this tokenizer
    texts = ("".join(draw.choices(letters, k=BLOCK_SIZE)) for _ in range(blocks + 4))
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    model: dict[str, Any] = {"plugin": "gpt2", "num_hidden_layers": 12, "hidden_size": 768}
    if "lora" in memory:
        subprocess.run([sys.executable, "-c", BASE], cwd=folder, check=True, capture_output=True)
        model = {"plugin": "pretrained", "path": str(folder / "base")}
    recipe = {
        "recipe": 1,
        "dataset": {
            "plugin": "text-files",
            "files": "texts.txt",
            "sample_by": "line",
            "eval_fraction": 2 / (blocks + 4),
        },
        "tokenizer": {"plugin": "pretrained", "path": str(tokenizer_folder(folder / "tokenizer", VOCABULARY))},
        "model": model,
        "objective": {"plugin": "causal-lm", "block_size": BLOCK_SIZE},
        "memory": memory,
        "training": {
            "max_steps": asked.steps,
            "global_batch_size": asked.global_batch_size,
            "learning_rate": 1e-4,
            "logging_steps": 1,
        },
    }
    file = folder / "peak.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
