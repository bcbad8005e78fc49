"""Runs of several processes, many after each other in one group: so Python, torch and transformers start once.

As a script it is one process of the group, which torchrun starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port that nobody listens on, and that no system gives away by itself, as it does those above 32768."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def run_together(recipe: Path, processes: int, *runs: dict[str, Any], hosts: int = 1) -> list[str]:
    """Run the recipe in a group of processes, once for each of `runs`; how each ended: finished or stopped.

    Args:
        recipe: its file; the runs lie beside it.
        processes: how many.
        runs: of each, `name`, `overrides` as for `--set`, and `stop_after`, the step to stop after.
        hosts: so many launchers, as if on hosts of their own, share the processes.
    """
    outcome = recipe.parent / "outcome.json"
    outcome.unlink(missing_ok=True)
    meeting = ["--standalone"]
    if hosts > 1:
        port = free_port()
        meeting = ["--nnodes", str(hosts), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
                   "--rdzv-id", str(port), "--local-addr", "127.0.0.1"]  # fmt: skip
    launchers = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(processes // hosts),
             "-m", "tests.group", str(recipe), json.dumps(runs)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(hosts)
    ]  # fmt: skip
    said = "".join(launcher.communicate(timeout=1800)[0] for launcher in launchers)
    assert not any(launcher.returncode for launcher in launchers), said
    ended: list[str] = json.loads(outcome.read_text())
    return ended


def main(recipe: Path, runs: list[dict[str, Any]]) -> None:
    """What a process of the group does."""
    import torch

    from tests.tiny import train
    from toolkit.errors import InterruptedRun

    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if processes > 1:
        torch.distributed.init_process_group("gloo")  # which each run takes, and leaves
    ended = []
    for options in runs:
        try:
            train(recipe, *options.pop("overrides", []), **options)
            ended.append("finished")
        except InterruptedRun:
            ended.append("stopped")
    if rank == 0:
        (recipe.parent / "outcome.json").write_text(json.dumps(ended))
    if processes > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
