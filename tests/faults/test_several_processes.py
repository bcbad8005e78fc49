"""`toolkit recipe run --processes 2`: the numbers of torchrun, and one sentence whatever happens to one of the two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.command_line import process
from tests.tiny import assert_same_run, callback, command, losses, stopper, train, wait_for, write_recipe

# On a machine that is slow enough, steps would be compiled to save time.
LONG = {"max_steps": 3000, "torch_compile": False}
FAILING = """
def on_step_begin(self, args, state, control, **kwargs):
    if state.global_step == 3 and args.process_index == {rank}:
        {what}
"""


def recipe_that_fails(folder: Path, what: str, rank: int = 1) -> Path:
    callback(folder, "failing", FAILING.format(rank=rank, what=what))
    return write_recipe(
        folder, model={"dropout": 0.0}, callbacks=["failing"], plugin_paths=["plugins"], training={"save_steps": 2}
    )


def together(recipe: Path, *words: str) -> subprocess.Popen[str]:
    return command("recipe", "run", recipe.name, "--processes", "2", *words, cwd=recipe.parent, OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_two_processes_train_what_torchrun_trains(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model={"dropout": 0.0}, training={"save_steps": 4})
    one, _ = train(recipe, name="one")
    done = process("recipe", "run", str(recipe), "--processes", "2", "--name", "two", "--json", cwd=tmp_path)
    assert done.status == 0, done
    assert done.json["steps"] == 8
    assert not (tmp_path / "runs" / ".processes").exists()
    by_torchrun = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python",
         sys.executable, "-m", "toolkit", "recipe", "run", str(recipe), "--name", "theirs"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=900, check=True,
    )  # fmt: skip
    assert b"Finished: theirs" in by_torchrun.stdout
    assert_same_run(tmp_path / "runs" / "two", tmp_path / "runs" / "theirs")
    for alone, both in zip(losses(one.folder), losses(tmp_path / "runs" / "two"), strict=True):
        assert both[2] == pytest.approx(alone[2], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        (
            "from toolkit.api import UnavailableError; raise UnavailableError('the probe is out of ink')",
            3,
            "out of ink",
        ),
        ("raise ValueError('a bug')", 1, "ValueError: a bug"),
        ("kill(9)", 137, "killed by SIGKILL, perhaps for want of memory"),
    ],
    ids=["a refusal", "a bug", "a kill"],
)
def test_of_two_that_end_the_one_that_failed_is_told_of(
    what: str, status: int, words: str, rank: int, tmp_path: Path
) -> None:
    failed = process("recipe", "run", str(recipe_that_fails(tmp_path, what, rank)), "--processes", "2", cwd=tmp_path)
    assert failed.status == status, failed
    assert failed.err.count(words) == 1, failed
    assert (f"rank {rank}: error: " in failed.err) == (rank == 1 and status != 1), failed
    assert "ChildFailedError" not in failed.err
    assert "another process of this run has ended" not in failed.err
    assert "what the other processes have written: " in failed.err
    (log,) = (tmp_path / "runs" / ".processes").glob("*/attempt_0/1/stderr.log")
    assert rank == 0 or status == 137 or words in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_reaches_both_and_the_step_is_saved(number: int, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model={"dropout": 0.0}, training={**LONG, "save_steps": 4})
    running = together(recipe)
    wait_for('"step": 4', running, tmp_path / "runs" / "tiny" / "metrics.jsonl")
    running.send_signal(signal.SIGUSR1)  # save, and go on
    wait_for('"step": 12', running, tmp_path / "runs" / "tiny" / "metrics.jsonl")
    children = psutil.Process(running.pid).children()
    running.send_signal(number)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 128 + number, out + err
    assert err.count(f"error: stopped by {signal.Signals(number).name}; step ") == 1, err
    assert "is saved; the same command resumes from there" in err
    assert not any(child.is_running() for child in children)
    record = json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())
    assert record["attempts"][-1]["how"] == "interrupted"


OF_A_LAUNCHER = {
    "srun": {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": "{rank}",
        "SLURM_LOCALID": "{rank}",
    },
    "mpirun": {
        "PMIX_NAMESPACE": f"prterun-{os.getpid()}@1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "{rank}",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{rank}",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", OF_A_LAUNCHER)
def test_tasks_of_another_launcher_are_the_processes_of_one_run(launcher: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model={"dropout": 0.0}, training={"max_steps": 3, "eval_steps": 3})
    tasks = [
        command(
            "recipe", "run", recipe.name, cwd=tmp_path, OMP_NUM_THREADS="1",
            **{name: value.format(rank=rank) for name, value in OF_A_LAUNCHER[launcher].items()},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert ["Finished: tiny" in out for out, _ in said] == [True, False]
    assert json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["processes"] == 2


AS_RAY_DOES = """
import sys

import torch

import toolkit

torch.distributed.init_process_group("gloo")
result = toolkit.run("tiny.yaml")
torch.distributed.barrier()  # the group is still there
print(result.steps)
"""


@pytest.mark.slow
def test_a_group_that_is_there_already_is_used(tmp_path: Path) -> None:
    write_recipe(tmp_path, model={"dropout": 0.0}, training={"max_steps": 3, "eval_steps": 3})
    (tmp_path / "worker.py").write_text(AS_RAY_DOES)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "worker.py"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "".join(done.stdout.split()) == "33"  # the lines of two processes may mix


@pytest.mark.slow
def test_one_that_is_told_to_stop_stops_both(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model={"dropout": 0.0}, callbacks=["stopper"], training={"save_steps": 4})
    plugins = stopper(tmp_path, at=5)
    stopped = process("recipe", "run", str(recipe), "--processes", "2", "--plugins", str(plugins), cwd=tmp_path)
    assert stopped.status == 143, stopped
    assert stopped.err.count("step 5 is saved") == 1, stopped


@pytest.mark.slow
def test_the_processes_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model={"dropout": 0.0}, training=LONG)
    running = together(recipe)
    wait_for('"step": 2', running, tmp_path / "runs" / "tiny" / "metrics.jsonl")
    children = psutil.Process(running.pid).children()
    assert len(children) == 2
    running.kill()
    running.communicate(timeout=180)
    _, alive = psutil.wait_procs(children, timeout=180)
    assert not alive
