"""`toolkit recipe prepare`: the data of a recipe made ready, before a GPU is paid for."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes


@click.command(
    epilog=render.examples(
        "toolkit recipe prepare ./mine.yaml",
        "toolkit recipe prepare ./mine.yaml --workers 32",
        "toolkit recipe prepare ./mine.yaml --json > account.json",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@click.option(
    "--workers", metavar="N", type=click.IntRange(min=1),
    help="Processes that tokenize; by default one per processor, fewer for a few megabytes; one for a stream.",
)  # fmt: skip
@options.overrides
@options.plugin_folders
@options.as_json
def prepare(
    name: str, workers: int | None, overrides: tuple[str, ...], plugin_folders: tuple[Path, ...], as_json: bool
) -> None:
    """Tokenize a recipe's data, without training.

    Loads the documents, trains the tokenizer if it is trained, and writes the packed tokens to the cache, where every
    run of the recipe finds them. Killed at any moment, the same command goes on where it was. Of several commands or
    runs that need the same data one works, and the others wait for it.

    Exit status: 0 done, 2 invalid recipe or command, 3 something is missing here (network, disk), 129, 130 and 143
    interrupted.
    """
    from dataclasses import asdict

    from toolkit.cli.watch import watching
    from toolkit.lifecycle import preparation

    with watching(quiet=False, on_standard_error=as_json) as listener:
        prepared = preparation.prepare(
            name, overrides=overrides, workers=workers, plugin_folders=plugin_folders, listener=listener
        )
    if as_json:
        render.as_json(asdict(prepared))
    else:
        render.text(f"Prepared: {name}. To train on it: toolkit recipe run {name}")
