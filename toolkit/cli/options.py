"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.completion import complete_runs

if TYPE_CHECKING:
    from toolkit.api import Device
    from toolkit.recipe.resolve import ResolvedRecipe

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


def chosen_device(name: str | None) -> Device:
    """The device of --device, or this machine's.

    Raises:
        UsageError: there is no device of that name.
    """
    if name is None:
        from toolkit.system.device import detect

        return detect()
    from toolkit.planning.devices import known

    return known(name).device


def resolved(
    name: str, overrides: Iterable[str], plugin_folders: Iterable[Path], *, device_name: str | None = None
) -> ResolvedRecipe:
    """The recipe of this name, resolved for the device of --device or this machine's.

    Raises:
        RecipeError, PluginError, UsageError: there is none, or it is invalid.
    """
    from toolkit.recipe import resolve

    read = resolve.load(name, overrides=overrides, plugin_folders=plugin_folders)
    return resolve.resolve(read, chosen_device(device_name))
