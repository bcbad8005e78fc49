"""How long a person waits for a word: `make benchmark` compares with importing click and yaml, in the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

TOOLKIT = "from toolkit.cli.main import main; main()"
COMMANDS = {
    "baseline: import click, yaml": [sys.executable, "-c", "import click, yaml"],
    "toolkit --help": [sys.executable, "-c", TOOLKIT, "--help"],
    "toolkit recipe validate quickstart": [sys.executable, "-c", TOOLKIT, "recipe", "validate", "quickstart"],
}


@pytest.mark.benchmark(group="start-up", warmup=True)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_start_up(benchmark: Any, command: list[str]) -> None:
    def start() -> None:
        # With .pyc files, as an installed toolkit has them.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)

    benchmark.pedantic(start, rounds=10, warmup_rounds=2)
