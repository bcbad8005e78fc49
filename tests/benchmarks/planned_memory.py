"""Planned against measured peak memory of whole runs: models, blocks, batches and strategies.

    python tests/benchmarks/planned_memory.py                                 # all, an hour on two cores
    python tests/benchmarks/planned_memory.py --only small                    # those whose name has this in it
    python tests/benchmarks/planned_memory.py --processes 2                   # the peak of each of several processes
    python tests/benchmarks/planned_memory.py --parallel 6                    # on a GPU, so many runs at once
    python tests/benchmarks/planned_memory.py --output tests/benchmarks/results/planned_memory.txt

Each run is a process of its own that trains two steps, evaluates, saves and exports; its peak is what the kernel says
of it (Linux), or on a GPU that of its tensors, with which the plan is compared without the CUDA context. Each plan is
`toolkit recipe plan --json` in another. The weights and the texts are random, because neither changes what memory is
needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.random_models import (
    AS_WHERE_MEMORY_IS_SHORT,
    COMMAND,
    bert_folder,
    device_and_versions,
    peak_of,
    tokenizer_folder,
)
from toolkit.planning.overhead import CUDA_CONTEXT_BYTES
from toolkit.system.device import detect

SIZES = {"tiny": (2, 128, 4096), "small": (6, 384, 16384), "124M": (12, 768, 50257)}
"""Layers, width and vocabulary."""
STEPS = 2
BF16 = {"plugin": "mixed-precision", "precision": "bf16"}
CHECKPOINTED = "gradient-checkpointing"


@dataclass(frozen=True)
class Case:
    """One combination."""

    family: str
    size: str
    block_size: int
    micro_batch_size: int
    memory: tuple[Any, ...] = ()
    optimizer: str = "adamw"
    dropout: float = 0.0
    document_mask: bool = False
    accumulation: int = 2
    max_grad_norm: float = 1.0

    @property
    def name(self) -> str:
        """What it is, in a line."""
        strategies = [entry if isinstance(entry, str) else entry["plugin"] for entry in self.memory]
        others = [self.optimizer] * (self.optimizer != "adamw") + ["dropout"] * (self.dropout > 0)
        others += ["document mask"] * self.document_mask + ["no accumulation"] * (self.accumulation == 1)
        words = [f"{self.family} {self.size}", f"{self.micro_batch_size} x {self.block_size}", *strategies, *others]
        return ", ".join(words)


def cases() -> Iterator[Case]:
    """At least one of everything, and of every size that matters."""
    for family in ("gpt2", "llama", "bert"):
        yield Case(family, "tiny", 128, 8)
        yield Case(family, "tiny", 256, 16)
        yield Case(family, "small", 256, 4)
        yield Case(family, "small", 512, 8)
        yield Case(family, "small", 512, 8, (CHECKPOINTED,))
        yield Case(family, "small", 512, 8, (BF16,))
        yield Case(family, "small", 512, 4, (CHECKPOINTED, BF16))
        yield Case(family, "small", 512, 4, ("lora",))
        yield Case(family, "124M", 128, 2)
        yield Case(family, "124M", 512, 1, (CHECKPOINTED, "lora"))
    yield Case("gpt2", "small", 1024, 4, dropout=0.1)
    yield Case("gpt2", "small", 1024, 4, (CHECKPOINTED,), dropout=0.1, document_mask=True)
    yield Case("llama", "small", 1024, 4, optimizer="muon")
    yield Case("llama", "small", 1024, 2, (CHECKPOINTED, BF16, "lora"))
    yield Case("gpt2", "small", 512, 8, ("chunked-loss",))
    yield Case("bert", "small", 512, 8, ("chunked-loss", CHECKPOINTED))
    yield Case("llama", "small", 512, 4, ("release-gradients",), accumulation=1, max_grad_norm=0.0)
    yield Case("gpt2", "small", 512, 4, ("low-memory-optimizer", "chunked-loss"))
    yield Case("llama", "small", 512, 4, ("weights-in-bf16", CHECKPOINTED))
    yield Case("gpt2", "small", 512, 4, ({"plugin": "frozen-layers", "layers": 4},))
    yield Case("gpt2", "124M", 1024, 1, (CHECKPOINTED, "chunked-loss"))
    yield Case("gpt2", "124M", 1024, 1, (CHECKPOINTED, "chunked-loss", "lora"))
    yield Case("gpt2", "124M", 512, 2, accumulation=1)
    yield Case("gpt2", "124M", 1024, 1)
    yield Case("gpt2", "124M", 1024, 1, (CHECKPOINTED,))
    yield Case("gpt2", "124M", 1024, 1, (CHECKPOINTED, BF16))
    yield Case("llama", "124M", 1024, 1, (BF16,), document_mask=True)


def cases_of_several() -> Iterator[Case]:
    """Those that several processes are tried with: models whose weights are most of the memory."""
    for memory in ((), ("shard",)):
        yield Case("llama", "small", 256, 2, memory)
        yield Case("gpt2", "124M", 128, 2, memory)
        yield Case("llama", "124M", 128, 2, memory)
    yield Case("llama", "124M", 128, 2, ("shard",), optimizer="muon")
    yield Case("llama", "124M", 128, 2, (CHECKPOINTED, BF16, "shard"))
    yield Case("gpt2", "124M", 512, 1, (CHECKPOINTED, "lora"))
    yield Case("gpt2", "124M", 512, 1, (CHECKPOINTED, "lora", "shard"))


def recipe(case: Case, work: Path, *, processes: int = 1) -> Path:
    """The recipe of a case, and what it reads."""
    layers, width, vocabulary = SIZES[case.size]
    masked = case.family == "bert"
    lines = (f"the cat sat on a mat and {number} dogs ran far from home" for number in range(3000))
    (work / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    shape = {"num_hidden_layers": layers, "hidden_size": width}
    model: dict[str, Any] = {"plugin": case.family, **shape}
    if case.family == "gpt2":
        model["dropout"] = case.dropout
    if masked:
        folder = bert_folder(work / "bert", layers, width, vocabulary, positions=case.block_size)
        model = {"plugin": "pretrained", "path": str(folder), "dropout": case.dropout}
    objective = {"plugin": "masked-lm"} if masked else {"plugin": "causal-lm", "document_mask": case.document_mask}
    data = {
        "recipe": 1,
        "dataset": {
            "plugin": "text-files",
            "files": str(work / "texts.txt"),
            "sample_by": "line",
            "eval_fraction": 0.02,  # a few blocks
        },
        "tokenizer": {"plugin": "pretrained", "path": str(tokenizer_folder(work / "tokenizer", vocabulary))},
        "model": model,
        "objective": {**objective, "block_size": case.block_size},
        "optimizer": case.optimizer,
        "memory": list(case.memory),
        "exporters": ["merge-lora" if "lora" in case.memory else "model-folder"],
        "training": {
            "max_steps": STEPS,
            "global_batch_size": case.micro_batch_size * case.accumulation * processes,
            "micro_batch_size": case.micro_batch_size,
            "eval_steps": 1000,
            "save_minutes": None,
            **({"save_steps": 1} if processes > 1 else {}),  # a save leaves what a sharded run holds from then on
            "max_grad_norm": case.max_grad_norm,
            "save_in_background": False,
        },
    }
    file = work / "case.yaml"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def planned(file: Path, *, processes: int = 1) -> dict[str, Any]:
    """The plan, as a script gets it."""
    words = [sys.executable, "-c", COMMAND, "recipe", "plan", str(file), "--json", f"--processes={processes}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=file.parent)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measured(file: Path, *, processes: int = 1) -> int:
    """The peak of the run, in bytes; of the process that holds most, if there are several."""
    words = ["recipe", "run", str(file), "--quiet"]
    cache = {"TOOLKIT_CACHE": str(file.parent / "cache")}
    return peak_of(AS_WHERE_MEMORY_IS_SHORT, words, file.parent, cache, processes=processes)


def both(case: Case, *, processes: int = 1) -> tuple[dict[str, Any], int]:
    """The plan of a case, and the peak of its run."""
    with tempfile.TemporaryDirectory() as folder:
        file = recipe(case, Path(folder), processes=processes)
        plan = planned(file, processes=processes)
        if detect().kind == "cuda":
            plan["peak_bytes"] -= CUDA_CONTEXT_BYTES
        return plan, measured(file, processes=processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    parser.add_argument("--parallel", type=int, default=1, metavar="RUNS", help="this many at once, on a GPU")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes of each run")
    asked = parser.parse_args()

    lines, errors = [device_and_versions(), f"{'planned':>9} {'measured':>9} {'error':>7}  peak in         case"], []
    print(*lines, sep="\n")
    offered = cases() if asked.processes == 1 else cases_of_several()
    chosen = [case for case in offered if asked.only in case.name]
    with ThreadPoolExecutor(asked.parallel) as pool:
        for case, (plan, peak) in zip(chosen, pool.map(partial(both, processes=asked.processes), chosen), strict=True):
            errors.append(plan["peak_bytes"] / peak - 1)
            lines.append(
                f"{plan['peak_bytes'] / 1e9:6.2f} GB {peak / 1e9:6.2f} GB {errors[-1]:+7.1%}  "
                f"{plan['peak_phase']:<15} {case.name}"
            )
            print(lines[-1], flush=True)
    size = [abs(error) for error in errors]
    lines.append(f"{len(size)} cases: median error {statistics.median(size):.1%}, worst {max(size):.1%}")
    print(lines[-1])
    if asked.output:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
