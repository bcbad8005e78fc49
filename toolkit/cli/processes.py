"""`toolkit recipe run --processes N`: the command of each of the processes, and how their end is told."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from toolkit import commands
from toolkit.cli import render


def run_together(
    name: str,
    wanted: str,
    *,
    max_restarts: int,
    overrides: tuple[str, ...],
    plugin_folders: tuple[Path, ...],
    runs: Path,
    options: Mapping[str, object],
) -> bool:
    """Run a recipe in several processes, and exit if they fail; the main one has shown the result.

    Args:
        name: the recipe.
        wanted: how many processes, or `auto`.
        max_restarts: how often to start them again after one has failed.
        overrides: those of the command.
        plugin_folders: those of the command.
        runs: the folder of runs.
        options: the command's further options by name; true for a flag.

    Returns:
        False if a single process is wanted: the caller is one.
    """
    from toolkit.lifecycle import processes
    from toolkit.storage import runs_folder
    from toolkit.system.device import detect

    number = processes.count(wanted, detect())
    if number == 1:
        return False
    resolved = None
    if not options["--rehearse"]:  # which takes recipes that this machine lacks something for
        # What is wrong is told at once.
        resolved = commands.resolve(name, overrides=overrides, plugin_folders=plugin_folders)
    words = ["recipe", "run", name, *_words("--set", overrides), *_words("--plugins", plugin_folders)]
    for option, value in {"--runs": runs, **options}.items():
        if value is True:
            words.append(option)
        elif value:  # neither None nor false
            words += _words(option, [value])
    series = options["--name"] or (resolved.name if resolved else "")
    restarts, newest = 0, runs_folder.newest_in_series(runs, str(series))
    while ending := processes.start(words, number, runs):
        if ending.text:
            render.note(f"rank {ending.rank}: {ending.text}" if ending.rank else ending.text)
        if ending.is_failure:
            render.note(f"what the other processes have written: {ending.logs}/RANK/stderr.log")
        if restarts == max_restarts or not ending.is_worth_a_restart:
            sys.exit(ending.exit_status)
        restarts += 1
        number = processes.count_again(number, resolved, detect()) if resolved else number
        render.note(f"starting {number} processes again: restart {restarts} of {max_restarts}")
        if runs_folder.newest_in_series(runs, str(series)) != newest:  # the new run is there, and goes on
            words = [word for word in words if word != "--fresh"]
    return True


def _words(option: str, values: Iterable[object]) -> list[str]:
    return [f"{option}={value}" for value in values]
