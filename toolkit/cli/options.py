"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from toolkit.cli.completion import complete_runs


class FiniteRange(click.FloatRange):
    """A range without infinity and nan, which are words that `float` reads, and JSON has no number for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a refusal."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")

overrides = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a value of the recipe: training.max_steps=100, memory.0.micro_batch_size=1. Repeatable.",
)

device = click.option(
    "--device",
    "device_name",
    metavar="NAME",
    help="Target device, instead of the one in this machine: h200, h100, a100-80g, a100-40g, l4, t4, rtx-4090, ...",
)

plugin_folders = click.option(
    "--plugins",
    "plugin_folders",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Also look for plugins in this folder, laid out as DIR/KIND/NAME.py. Repeatable.",
)

runs = click.option(
    "--runs",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    envvar="TOOLKIT_RUNS",
    show_default=True,
    show_envvar=True,
    is_eager=True,  # so that completion of a run's name knows the folder
    help="Folder that holds the runs.",
)

run_argument = click.argument("run", shell_complete=complete_runs)
