"""`memory: [auto]` under budgets, against sets of strategies chosen by hand: never over, and about as fast.

    python tests/benchmarks/auto_under_budget.py                             # everything, an hour on two cores
    python tests/benchmarks/auto_under_budget.py --families gpt2 --budgets 3 4
    python tests/benchmarks/auto_under_budget.py --quick                     # only sets that were the fastest before
    python tests/benchmarks/auto_under_budget.py --output tests/benchmarks/results/auto_under_budget.txt

Models of 124M parameters, 4 x 512 tokens a step, AdamW in fp32 where no strategy says otherwise. Each run is the
command, whole, in a process of its own with one thread, two beside each other; its peak is the kernel's count. The
speed is that of the fastest step after the first.

By hand means: every set of `BY_HAND`, once as where memory is short, and some once more with the memory that this
machine has, which is faster and takes more. For each budget the fastest of those that stayed within it, of the highest
fidelity that has one, is run once more beside `auto`, at the same time: what else the machine does then slows both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.planned_memory import Case, recipe
from tests.benchmarks.random_models import AS_WHERE_MEMORY_IS_SHORT, COMMAND, peak_of

FAMILIES = ("gpt2", "llama", "bert")
BUDGETS = (2, 3, 4, 6, 8, 12)
SEQUENCES, BLOCK_SIZE = 4, 512
STEPS, STEPS_BESIDE, QUICK_STEPS, QUICK_STEPS_BESIDE = 3, 6, 2, 3
"""Of a run by hand, and of one beside another."""
FIDELITIES = ("exact", "approximate")


def micro(size: int) -> dict[str, Any]:
    return {"plugin": "small-batch", "micro_batch_size": size}


CHECKPOINTED, CHUNKED, ADAFACTOR, BF16_WEIGHTS = (
    *("gradient-checkpointing", "chunked-loss"),
    *("low-memory-optimizer", "weights-in-bf16"),
)
BY_HAND: dict[str, tuple[list[Any], ...]] = {
    "exact": (
        [],
        [micro(2)],
        [micro(1)],
        [CHUNKED],
        [CHUNKED, micro(2)],
        [CHUNKED, CHECKPOINTED, micro(1)],
    ),
    "approximate": (
        ["mixed-precision", CHUNKED, micro(2)],
        [ADAFACTOR, CHUNKED, micro(1)],
        [ADAFACTOR, BF16_WEIGHTS, CHUNKED, micro(1)],
        [ADAFACTOR, BF16_WEIGHTS, CHUNKED, CHECKPOINTED, micro(1)],
    ),
}
AMPLE: tuple[list[Any], ...] = ([], [micro(2)], [CHUNKED])
"""Those that are measured with the memory that this machine has, too: where all fits, nothing else is chosen."""

QUICK = (
    [micro(2)],
    [micro(1)],
    [CHUNKED],
    [CHUNKED, micro(2)],
    [CHUNKED, CHECKPOINTED, micro(1)],
    [ADAFACTOR, BF16_WEIGHTS, CHUNKED, micro(1)],
)
"""Those that have been the fastest for some family and budget."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    memory: list[Any]
    fidelity: str
    short: bool
    peak_bytes: int
    tokens_per_second: float
    planned_bytes: int | None = None

    @property
    def strategies(self) -> str:
        """In words."""
        return words(self.memory)


def words(memory: Sequence[Any]) -> str:
    """Strategies in a line."""
    names = [entry if isinstance(entry, str) else " ".join(map(str, entry.values())) for entry in memory]
    return ", ".join(name.replace("small-batch", "micro-batch") for name in names) or "none"


def measured(
    family: str, memory: list[Any], fidelity: str, *, budget: int | None = None, short: bool = True, steps: int = STEPS
) -> Outcome:
    """Run a recipe with these strategies in a process of its own, or with what `auto` chooses for a budget in GiB."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = recipe(Case(family, "124M", BLOCK_SIZE, SEQUENCES, tuple(memory), accumulation=1), folder)
        data = json.loads(file.read_text(encoding="utf-8"))
        del data["training"]["micro_batch_size"]
        data["training"] |= {"max_steps": steps, "logging_steps": 1}
        if budget:
            del data["training"]["save_in_background"]
            data["memory"] = [{"plugin": "auto", "budget": budget * 2**30}]
        file.write_text(json.dumps(data), encoding="utf-8")
        start = AS_WHERE_MEMORY_IS_SHORT if short and not budget else COMMAND
        command = ["recipe", "run", str(file), "--quiet"]
        peak = peak_of(start, command, folder, {"OMP_NUM_THREADS": "1", "TOOLKIT_CACHE": place})
        run = folder / "runs" / file.stem
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
        if budget:
            assert record["memory_budget_bytes"] == budget * 2**30, "the neighbour leaves less than the budget"
            memory = record["choice"]["strategies"]
            approximate = {"low-memory-optimizer", "weights-in-bf16", "mixed-precision"}
            fidelity = FIDELITIES[any(entry["plugin"] in approximate for entry in memory)]
            memory = [entry["plugin"] if entry["plugin"] != "small-batch" else entry for entry in memory]
        planned = record.get("planned_memory_bytes")
        outcome = Outcome(memory, fidelity, short, peak, max(speeds[1:]), planned)
        print(f"# {family}, {f'{budget} GiB' if budget else 'short' if short else 'ample'}: {outcome}", flush=True)
        return outcome


def by_hand(family: str, *, quick: bool) -> Iterator[tuple[str, list[Any], str, bool]]:
    """Every run by hand: family, strategies, fidelity, and whether memory is short."""
    for fidelity, sets in BY_HAND.items():
        for memory in (chosen for chosen in sets if chosen in QUICK or not quick):
            yield family, memory, fidelity, True
            if memory in AMPLE:
                yield family, memory, fidelity, False


def fastest_within(budget: int, others: Sequence[Outcome]) -> Outcome | None:
    """The fastest run by hand that stayed within so many GiB, of the highest fidelity that has one."""
    for fidelity in FIDELITIES:
        fitting = [other for other in others if other.peak_bytes <= budget * 2**30 and other.fidelity == fidelity]
        if fitting:
            return max(fitting, key=lambda other: other.tokens_per_second)
    return None


def compared(family: str, budgets: Sequence[int], pool: ThreadPoolExecutor, *, quick: bool) -> Iterator[str]:
    """The lines for one family."""
    steps, steps_beside = (QUICK_STEPS, QUICK_STEPS_BESIDE) if quick else (STEPS, STEPS_BESIDE)
    runs = [
        pool.submit(measured, f, memory, kept, short=s, steps=steps)
        for f, memory, kept, s in by_hand(family, quick=quick)
    ]
    others = [run.result() for run in runs]
    yield f"{family} 124M, {SEQUENCES} x {BLOCK_SIZE} tokens a step, one thread"
    yield "by hand                                                                      peak GB  tokens/s"
    for made in others:
        given = made.strategies + ("" if made.short else ", with ample memory")
        yield f"  {given:<74} {made.peak_bytes / 1e9:7.2f} {made.tokens_per_second:9.1f}"
    yield "auto      planned    peak  tokens/s   beside the fastest by hand that fits"
    for budget in budgets:
        run = pool.submit(measured, family, [], "exact", budget=budget, steps=steps_beside)
        best = fastest_within(budget, others)
        beside = (
            pool.submit(measured, family, best.memory, best.fidelity, short=best.short, steps=steps_beside)
            if best
            else None
        )
        own, other = run.result(), beside.result() if beside else None
        share = f"{own.tokens_per_second / other.tokens_per_second:5.2f} of" if other else "none fits"
        over = "" if own.peak_bytes <= budget * 2**30 else "  OVER THE BUDGET"
        lower = (
            "  OF LOWER FIDELITY" if other and FIDELITIES.index(own.fidelity) > FIDELITIES.index(other.fidelity) else ""
        )
        yield (
            f"{budget:3} GiB {(own.planned_bytes or 0) / 1e9:8.2f} {own.peak_bytes / 1e9:7.2f} "
            f"{own.tokens_per_second:9.1f}  {share} {other.tokens_per_second if other else 0:.1f}  "
            f"{own.strategies}{over}{lower}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=FAMILIES, metavar="FAMILY")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, metavar="GIB")
    parser.add_argument("--quick", action="store_true", help="leave out sets by hand that were never the fastest")
    parser.add_argument("--output", type=Path, help="write the tables here, too")
    asked = parser.parse_args()
    # It loads its parts when they are asked for, which two threads must not do at once.
    from transformers import BertForMaskedLM, PreTrainedTokenizerFast  # noqa: F401

    lines = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for family in asked.families:
            for line in compared(family, asked.budgets, pool, quick=asked.quick):
                lines.append(line)
                print(line, flush=True)
    if asked.output:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
