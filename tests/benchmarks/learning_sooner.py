"""The held-out loss that plain Trainer reaches in ten minutes: after how many minutes the recipe quickstart has it.

    python -m tests.benchmarks.learning_sooner --work /tmp/sooner --output results.txt

Both train the same model on the same packed blocks of `python-docs` and are evaluated on the same held-out ones. Plain
Trainer has its best flags: the fused AdamW with betas of 0.9 and 0.95, warm-up and a linear schedule over its own
steps, bf16 where the hardware has it, and the best of three learning rates (docs/quickstart-choice.md). Time is counted
as steps times the processor time of a step on one thread, measured in turn, so that other work on the machine does not
decide; start-up and evaluations are not in it. A job whose result is in the work folder is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import toolkit
from tests.benchmarks.random_models import device_and_versions, show
from tests.tiny import callback
from toolkit.system.device import detect
from toolkit.training.components import assemble, context_of

RECIPE = "quickstart"
LEARNING_RATE = 2e-3
"""Of plain Trainer; 1e-3 and 4e-3 are worse."""
TIMED_STEPS, WARM_UP_STEPS = 30, 10
ROUNDS = 2
MINUTES = 10
EVALUATED_EVERY = 50
"""Steps of the recipe; twice as many of the Trainer's."""
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"training.lr_scheduler_type": "linear", "training.ema_width": None},
    "averaged": {
        "training.lr_scheduler_type": "constant_with_warmup",
        "training.warmup_steps": 20,
        "training.ema_width": 0.1,
    },
}
SCHEDULES["short"] = {
    **SCHEDULES["averaged"],
    "training.warmup_block_size": 64,
    "training.warmup_block_steps": 0.33,
}
"""Of the recipe."""
TIMED = """
def on_train_begin(self, args, state, control, **kwargs):
    from pathlib import Path

    from tests.benchmarks.learning_sooner import StepTime

    self.time = StepTime(Path({output!r}))
def on_step_end(self, args, state, control, **kwargs):
    self.time.on_step_end(args, state, control)
"""
"""A callback in a plugin of the recipe."""


class StepTime(TrainerCallback):
    """Notes the processor seconds of a step."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.begun = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP_STEPS:
            self.begun = time.process_time()
        if state.global_step == TIMED_STEPS:
            seconds = (time.process_time() - self.begun) / (TIMED_STEPS - WARM_UP_STEPS)
            self.output.write_text(json.dumps(seconds), encoding="utf-8")


def train_trainer(steps: int, work: Path, *, timed: Path | None = None) -> Trainer:
    """Train with plain Trainer; with `timed`, the seconds of a step go there and nothing is evaluated."""
    recipe = toolkit.resolve(RECIPE)
    context = context_of(recipe, work / "trainer")
    components = assemble(recipe, context)

    def labelled(blocks: Any) -> Any:
        return [
            {"input_ids": torch.from_numpy(block["input_ids"])} for block in (blocks[i] for i in range(len(blocks)))
        ]

    def collate(rows: Any) -> dict[str, torch.Tensor]:
        inputs: torch.Tensor = default_data_collator(rows)["input_ids"]
        return {"input_ids": inputs, "labels": inputs}

    arguments = TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=recipe.training.global_batch_size,
        per_device_eval_batch_size=32,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        adam_beta2=0.95,
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        optim="adamw_torch_fused",
        use_cpu=not torch.cuda.is_available(),
        bf16=detect().bf16,
        dataloader_pin_memory=torch.cuda.is_available(),
        eval_strategy="no" if timed else "steps",
        eval_steps=2 * EVALUATED_EVERY,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        prediction_loss_only=True,
        seed=recipe.training.seed,
    )
    trainer = Trainer(
        model=components.model,
        args=arguments,
        train_dataset=labelled(components.data.train),
        eval_dataset=labelled(components.data.validation),
        data_collator=collate,
        callbacks=[StepTime(timed)] if timed else [],
    )
    trainer.train()
    return trainer


def trainer_losses(steps: int, work: Path) -> list[list[float]]:
    history = train_trainer(steps, work).state.log_history
    return [[line["step"], line["eval_loss"]] for line in history if "eval_loss" in line]


def recipe_losses(kind: str, steps: int, work: Path) -> list[list[float]]:
    changes: Any = {"training.max_steps": steps, "training.eval_steps": EVALUATED_EVERY, "callbacks": []}
    run = toolkit.run(RECIPE, overrides=changes | SCHEDULES[kind], runs=work / "runs", name=f"{kind}-{steps}")
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [[line["step"], line["eval_loss"]] for line in lines if line["kind"] == "eval"]


def recipe_seconds(work: Path, timed: Path) -> None:
    callback(work, "timed", TIMED.format(output=str(timed)))
    changes: Any = {"training.max_steps": TIMED_STEPS, "training.save_minutes": None, "callbacks": ["timed"]}
    changes |= {"training.eval_steps": TIMED_STEPS, **SCHEDULES["averaged"]}
    folders = [work / "plugins"]
    toolkit.run(RECIPE, overrides=changes, runs=work / "runs", name="timed", fresh=True, plugin_folders=folders)


def do(job: str, work: Path) -> Any:
    """The result of a job, in this process."""
    kind, *rest = job.split()
    if kind == "seconds":
        timed = work / f"timed-{rest[0]}.json"
        if rest[0] == "trainer":
            train_trainer(TIMED_STEPS, work, timed=timed)
        else:
            recipe_seconds(work, timed)
        return json.loads(timed.read_text(encoding="utf-8"))
    if kind == "trainer":
        return trainer_losses(int(rest[0]), work)
    return recipe_losses(kind, int(rest[0]), work)


def result(job: str, work: Path) -> Any:
    """The result of a job in a process of its own, or of the time before."""
    file = work / f"{job.replace(' ', '-')}.json"
    if not file.exists():
        words = [sys.executable, "-m", "tests.benchmarks.learning_sooner", "--work", str(work), "--job", job]
        subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return json.loads(file.read_text(encoding="utf-8"))


def table(asked: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, as they come."""
    work = asked.work
    seconds: dict[str, list[float]] = {name: [] for name in ("trainer", "recipe")}
    for turn in range(ROUNDS):
        for name, measured in seconds.items():
            measured.append(result(f"seconds {name} {turn}", work))
    step = {name: statistics.median(measured) for name, measured in seconds.items()}
    yield f"{device_and_versions()}; each job on one thread"
    for name, measured in seconds.items():
        yield f"{name:<8} {step[name]:.3f} s of one thread a step ({', '.join(f'{value:.3f}' for value in measured)})"
    steps = asked.trainer_steps or round(60 * MINUTES / step["trainer"])
    curve = result(f"trainer {steps}", work)
    yield from curve_lines("trainer", curve, step["trainer"])
    for job in asked.recipe or [f"{kind} {round(0.3 * steps)}" for kind in SCHEDULES]:
        ours = result(job, work)
        yield from curve_lines(job.split()[0], ours, step["recipe"])
        passed = [count for count, loss in ours if loss <= curve[-1][1]]
        share = passed[0] * step["recipe"] / (curve[-1][0] * step["trainer"]) if passed else 0.0
        reached = f"at step {passed[0]:.0f}, after {share:.2f} of its time" if passed else "not reached"
        yield f"{job} steps: plain Trainer's last loss {reached}"


def curve_lines(name: str, curve: list[list[float]], seconds: float) -> Iterator[str]:
    for step, loss in curve:
        yield f"{name:<8} step {step:>5.0f}  {step * seconds / 60:>5.2f} min  {loss:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="results of the jobs; kept")
    parser.add_argument("--trainer-steps", type=int, help="default: as many as ten minutes have")
    parser.add_argument("--recipe", nargs="*", metavar="'KIND STEPS'", help='"averaged 400"; default: 0.3 of the steps')
    parser.add_argument("--output", type=Path, help="append the table to this file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.work = asked.work.resolve()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.job:
        found = do(asked.job, asked.work)
        (asked.work / f"{asked.job.replace(' ', '-')}.json").write_text(json.dumps(found), encoding="utf-8")
        return
    show(table(asked), asked.output)


if __name__ == "__main__":
    main()
