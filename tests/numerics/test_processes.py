"""Two processes on one host train what one trains, and resume exactly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import assert_same_run, callback, losses, stopper, train, write_recipe


def torchrun(recipe: Path, *words: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", str(restarts),
         "--no-python", sys.executable, "-c", "from toolkit.cli.main import main; main()",
         "recipe", "run", str(recipe), *words],
        cwd=recipe.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    # Without dropout: each process draws its own.
    recipe = write_recipe(
        tmp_path, model={"dropout": 0.0}, training={"save_steps": 4, "warmup_block_size": 8, "warmup_block_steps": 3}
    )
    one, _ = train(recipe, name="one")
    done = torchrun(recipe, "--name", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Finished: two") == done.stdout.count("a model of") == 1
    for alone, together in zip(losses(one.folder), losses(tmp_path / "runs" / "two"), strict=True):
        assert together[:2] == alone[:2]
        assert together[2] == pytest.approx(alone[2], rel=1e-4)
    half = torchrun(
        recipe, "--name", "parts", "--set", "callbacks=[stopper]", "--plugins", str(stopper_of_one(tmp_path))
    )
    assert half.returncode != 0
    assert (tmp_path / "runs" / "parts" / "checkpoints" / "checkpoint-5").is_dir(), half.stdout + half.stderr
    rest = torchrun(recipe, "--name", "parts")
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert_same_run(tmp_path / "runs" / "two", tmp_path / "runs" / "parts")


SPOILER = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    def spoil(module, arguments, output):
        if module.training and state.global_step == 22 and args.process_index == 1:
            output.logits = output.logits * 50
        return output
    model.register_forward_hook(spoil)
"""
JUDGE_ON_DEVICE = """
from toolkit.training import loss_guard
loss_guard.ASYNCHRONOUS_DEVICES = {"cpu"}
"""


@pytest.mark.slow
def test_processes_leave_out_a_step_together_whoever_judges(tmp_path: Path) -> None:
    """The loss jumps in the second process alone."""
    callback(tmp_path, "spoiler", SPOILER)
    callback(tmp_path, "on-device", JUDGE_ON_DEVICE)
    training = {"max_steps": 25, "eval_steps": 25, "save_steps": 23, "on_spike": "skip-batch", "save_total_limit": 9}
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], callbacks=["spoiler"], training=training)
    for name, callbacks in (("host", "[spoiler]"), ("device", "[spoiler, on-device]")):
        done = torchrun(recipe, "--name", name, "--set", f"callbacks={callbacks}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("its batch is skipped") == 1, done.stdout
    assert_same_run(tmp_path / "runs" / "host", tmp_path / "runs" / "device")


SLOW_TO_LOAD = """
from toolkit.api import Dataset


class SlowToLoad(Dataset):
    '''Takes longer than the processes of the run wait for one another.'''

    def load(self, run):
        import time

        from datasets import Dataset, DatasetDict

        for done in range(80):
            run.progress("reading", done, 80, unit="documents")
            time.sleep(0.5)
        rows = Dataset.from_dict({"text": ["the cat sat on a mat"] * 400})
        return DatasetDict(train=rows)
"""


@pytest.mark.slow
def test_data_that_takes_longer_than_a_collective_may(tmp_path: Path) -> None:
    (tmp_path / "plugins" / "dataset").mkdir(parents=True)
    (tmp_path / "plugins" / "dataset" / "slow_to_load.py").write_text(SLOW_TO_LOAD, encoding="utf-8")
    recipe = write_recipe(
        tmp_path,
        dataset={"plugin": "slow-to-load"},
        plugin_paths=["plugins"],
        training={"max_steps": 2, "ddp_timeout": 30},
    )
    done = torchrun(recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Finished: tiny") == 1


MEMORY_OF_ONE = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    def fail(module, arguments, output):
        if module.training == {training} and len(output.logits) > 1 and state.global_step == 4 and args.process_index:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    model.register_forward_hook(fail)
"""


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_where_one_of_two_runs_out_of_memory_both_begin_smaller(tmp_path: Path, training: bool) -> None:
    """It cannot do the step again, because the other waits; torchrun starts both again, and nobody has to be there."""
    callback(tmp_path, "failing", MEMORY_OF_ONE.format(training=training))
    recipe = write_recipe(
        tmp_path, model={"dropout": 0.0}, callbacks=["failing"], plugin_paths=["plugins"], training={"save_steps": 3}
    )
    one, _ = train(recipe, name="one")
    failed = torchrun(recipe, "--name", "two")
    assert failed.returncode != 0
    assert "this attempt cannot repeat it: the run's other processes wait for it" in failed.stderr
    # torchrun ends it, too, and on a busy machine before it has said so.
    ended = ("error: another process of this run has ended", "stopped by SIGTERM; after training had failed")
    assert any(words in failed.stderr for words in ended)
    assert "torch/autograd" not in failed.stderr  # no traceback
    rest = torchrun(recipe, "--name", "two")
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert f"so this one {'trains' if training else 'evaluates'} with micro-batches of 1 sequence;" in rest.stdout
    alone = torchrun(recipe, "--name", "restarted", restarts=1)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert_same_run(tmp_path / "runs" / "two", tmp_path / "runs" / "restarted")
    for own, together in zip(losses(one.folder), losses(tmp_path / "runs" / "two"), strict=True):
        assert together[:2] == own[:2]
        assert together[2] == pytest.approx(own[2], rel=1e-4)


@pytest.mark.slow
def test_weights_in_bf16_are_rounded_alike_in_all_processes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model={"dropout": 0.0}, memory=["weights-in-bf16", "chunked-loss"])
    one, _ = train(recipe, name="one")
    done = torchrun(recipe, "--name", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    for alone, together in zip(losses(one.folder), losses(tmp_path / "runs" / "two"), strict=True):
        assert together[2] == pytest.approx(alone[2], rel=3e-4)  # weights that drift apart differ tenfold


def stopper_of_one(folder: Path) -> Path:
    plugins = stopper(folder, at=5)
    # Only one of the two receives the signal; both must stop.
    file = plugins / "callback" / "stopper.py"
    file.write_text(file.read_text(encoding="utf-8").replace(
        "if state.global_step == 4", "if state.is_world_process_zero is False and state.global_step == 4"
    ), encoding="utf-8")  # fmt: skip
    return plugins
