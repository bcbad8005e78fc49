"""Processes that are lost come back without a hand: by torchrun, by `--max-restarts`, or with fewer of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.command_line import process
from tests.group import free_port
from tests.tiny import assert_same_run, callback, losses, wait_for, write_recipe

KILLED_ONCE = """
def on_step_begin(self, args, state, control, **kwargs):
    from pathlib import Path
    killed = Path("killed")
    if state.global_step == 5 and args.process_index == {rank} and not killed.exists():
        killed.touch()
        kill(9)
"""
HOST_LOST_ONCE = """
def on_step_begin(self, args, state, control, **kwargs):
    import time
    from pathlib import Path
    lost = Path("lost")
    if args.world_size == 1:
        time.sleep(1)  # so that the host comes back before the last step
    elif state.global_step == 15 and os.environ["HOST"] == "1" and not lost.exists():
        lost.touch()
        os.kill(os.getppid(), 9)  # the launcher; no process is left, as after a power cut
        kill(9)
"""
PAIR = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
Launch = Callable[..., subprocess.Popen[str]]
pytestmark = pytest.mark.slow


def recipe_killed_once(folder: Path, rank: int) -> Path:
    callback(folder, "killed-once", KILLED_ONCE.format(rank=rank))
    return write_recipe(
        folder, model={"dropout": 0.0}, callbacks=["killed-once"], plugin_paths=["plugins"], training={"save_steps": 2}
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes of which none is killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, model={"dropout": 0.0}, training={"save_steps": 2})
    done = process("recipe", "run", str(recipe), "--processes", "2", cwd=folder)
    assert done.status == 0, done
    return folder / "runs/tiny"


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts a launcher, whose output is appended to launchers.log; what is left of it at the end is killed."""
    launchers: list[subprocess.Popen[str]] = []

    def launch(*options: str, host: int = 0) -> subprocess.Popen[str]:
        with (tmp_path / "launchers.log").open("a") as log:
            launchers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "toolkit.system.torchrun", *options, "--no-python",
                     sys.executable, "-m", "toolkit", "recipe", "run", "./tiny.yaml"],
                    cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "HOST": str(host)},
                    stdout=log, stderr=subprocess.STDOUT, text=True,
                )
            )  # fmt: skip
        return launchers[-1]

    yield launch
    for launcher in launchers:
        if launcher.poll() is None:
            for one in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                one.send_signal(signal.SIGKILL)
            launcher.wait(timeout=60)


def ends(launcher: subprocess.Popen[str], status: int, folder: Path) -> None:
    """Wait until a launcher has ended with this status."""
    try:
        ended = launcher.wait(timeout=600)
    except subprocess.TimeoutExpired:
        ended = None
    said = (folder / "launchers.log").read_text()
    assert ended == status, f"a launcher has ended with {ended}, not {status}, within 600 s:\n{said}"


def attempts(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["attempts"]
    return found


def test_a_killed_rank_comes_back_by_torchrun_and_the_weights_are_the_same(
    launch: Launch, undisturbed: Path, tmp_path: Path
) -> None:
    recipe_killed_once(tmp_path, 0)
    ends(launch(*PAIR), 0, tmp_path)
    assert (tmp_path / "killed").exists()
    begun = [attempt["from_step"] for attempt in attempts(tmp_path / "runs/tiny")]
    assert begun in ([0, 4], [0, 2])  # the save of step 4 may still have been under way
    assert_same_run(tmp_path / "runs/tiny", undisturbed)


def test_max_restarts_starts_the_processes_of_this_machine_again(undisturbed: Path, tmp_path: Path) -> None:
    recipe = recipe_killed_once(tmp_path, 1)
    killed = process("recipe", "run", str(recipe), "--processes", "2", "--fresh", "--max-restarts", "1", cwd=tmp_path)
    assert killed.status == 0, killed
    assert "rank 1: error: killed by SIGKILL" in killed.err
    assert "starting 2 processes again: restart 1 of 1" in killed.err
    assert len(attempts(tmp_path / "runs/tiny")) == 2
    assert_same_run(tmp_path / "runs/tiny", undisturbed)


def test_a_refused_recipe_is_not_started_again(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"global_batch_size": 3})
    refused = process("recipe", "run", str(recipe), "--processes", "2", "--max-restarts", "3", cwd=tmp_path)
    assert refused.status == 2, refused
    assert refused.err.count("cannot share 3 sequences") == 1
    assert "again" not in refused.err


def test_a_lost_host_is_done_without_and_may_come_back(launch: Launch, tmp_path: Path) -> None:
    """Two launchers stand for two hosts: `--nnodes 1:2`."""
    callback(tmp_path, "host-lost-once", HOST_LOST_ONCE)
    training = {"max_steps": 200, "save_steps": 10, "eval_steps": None}
    write_recipe(tmp_path, callbacks=["host-lost-once"], plugin_paths=["plugins"], training=training)
    port = free_port()
    # A launcher that is only slow must not pass for a lost one.
    wait = "join_timeout=300,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=15"

    def host(number: int) -> subprocess.Popen[str]:
        options = ("--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d")
        place = ("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", f"is_host={int(not number)},{wait}")
        return launch(*options, *place, "--rdzv-id", "tiny", "--local-addr", "127.0.0.1", host=number)

    first, second = host(0), host(1)
    ends(second, -signal.SIGKILL, tmp_path)
    wait_for('"step": 20', first, tmp_path / "runs/tiny/metrics.jsonl")
    back = host(1)
    ends(first, 0, tmp_path)
    ends(back, 0, tmp_path)
    with_two, alone, with_two_again = attempts(tmp_path / "runs/tiny")
    assert (with_two["how"], alone["how"], with_two_again["how"]) == ("failed", "interrupted", "finished")
    assert alone["from_step"] in (10, 0)  # the save of step 10 may still have been under way
    assert with_two_again["from_step"] == alone["step"] >= 20  # told to stop, it has saved
    assert [step for step, kind, _ in losses(tmp_path / "runs/tiny") if kind == "train"] == [*range(1, 201)]
