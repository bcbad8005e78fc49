"""What training waits for while a checkpoint of GPT-2 124M with AdamW is saved: ours against the Trainer's own.

    pytest tests/benchmarks/test_save_stall.py --benchmark-only

Both save the same model and optimizer. The Trainer writes its files as it always does, without a single fsync. Ours
copies the state in memory; a thread then writes the same files, syncs, hashes and commits them. The thread is waited
for between the rounds, outside of what is measured: `seconds until safe` in the last group is its whole time.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run's trainer whose optimizer has taken a step."""
    import torch

    from tests.benchmarks.random_models import tokenizer_folder
    from tests.tiny import resolved, write_recipe
    from toolkit.lifecycle.environment import environment
    from toolkit.recipe.batch import BatchSplit
    from toolkit.storage import run_directory
    from toolkit.storage.async_saver import AsyncSaver
    from toolkit.storage.metrics_log import MetricsLog
    from toolkit.system.signals import StopRequest
    from toolkit.training.build import build_trainer
    from toolkit.training.components import assemble, context_of
    from toolkit.training.status import TrainingStatus

    folder = tmp_path_factory.mktemp("saving")
    tokenizer = {"plugin": "pretrained", "path": str(tokenizer_folder(folder / "tokenizer", 50257))}
    model = {"plugin": "gpt2", "num_hidden_layers": 12, "hidden_size": 768, "max_position_embeddings": 1024}
    recipe = resolved(write_recipe(folder, tokenizer=tokenizer, model=model))
    run = run_directory.create(folder / "run", recipe, environment(recipe), series="run")
    context = context_of(recipe, run.folder)
    components = assemble(recipe, context)
    log = MetricsLog(run, lambda event: None)
    made = build_trainer(
        recipe,
        components,
        context,
        BatchSplit(1, 1, 1),
        saver=AsyncSaver(run, keep=1, keep_every=None, in_background=True, log=log),
        log=log,
        status=TrainingStatus(),
        stop=StopRequest(),
    )
    made.args.output_dir = str(folder / "plain")  # where the Trainer's own goes
    made._tr_loss, made._total_loss_scalar, made._globalstep_last_logged = torch.tensor(0.0), 0.0, 0
    made.create_optimizer_and_scheduler(num_training_steps=10)
    for parameter in components.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    made.optimizer.step()
    made.optimizer.zero_grad()
    return made


@pytest.mark.benchmark(group="a save of GPT-2 124M with AdamW: what the step waits for", min_rounds=5)
@pytest.mark.parametrize("by", ["the Trainer's own", "ours"])
def test_stall(benchmark: Any, trainer: Any, by: str) -> None:
    from transformers import Trainer

    def begin() -> None:
        trainer.saver.take_result()
        trainer.state.global_step += 1
        shutil.rmtree(Path(trainer.args.output_dir), ignore_errors=True)

    def save() -> None:
        if by == "ours":
            trainer._save_checkpoint(trainer.model, None)
        else:
            Trainer._save_checkpoint(trainer, trainer.model, None)

    # One round first: the first copy takes its memory, and the Trainer's first save warms the disk's cache.
    benchmark.pedantic(save, setup=begin, rounds=5, warmup_rounds=1)
    trainer.saver.take_result()


@pytest.mark.benchmark(group="a save of GPT-2 124M with AdamW: until it is safe on disk")
def test_until_safe(benchmark: Any, trainer: Any) -> None:
    def begin() -> None:
        trainer.state.global_step += 1

    def save() -> None:
        trainer._save_checkpoint(trainer.model, None)
        trainer.saver.take_result()

    benchmark.pedantic(save, setup=begin, rounds=3)


@pytest.mark.benchmark(group="a forward and backward pass of GPT-2 124M, 1,024 tokens: what a save beside it takes")
@pytest.mark.parametrize("beside", ["nothing", "a save"])
def test_step_beside_a_save(benchmark: Any, trainer: Any, beside: str) -> None:
    """The pass takes longer than the writing, so the difference is what the whole of a save takes of training."""
    import torch

    ids = torch.zeros((1, 1024), dtype=torch.int64)

    def begin() -> None:
        trainer.model.zero_grad()
        trainer.saver.take_result()
        trainer.state.global_step += 1
        if beside == "a save":
            trainer._save_checkpoint(trainer.model, None)

    def step() -> None:
        trainer.model(input_ids=ids, labels=ids).loss.backward()

    benchmark.pedantic(step, setup=begin, rounds=5, warmup_rounds=1)
    trainer.saver.take_result()
