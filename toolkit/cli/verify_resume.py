"""`toolkit recipe verify-resume`: whether a recipe's runs resume exactly, tested on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes


@click.command(
    "verify-resume",
    epilog=render.examples(
        "toolkit recipe verify-resume quickstart", "toolkit recipe verify-resume ./mine.yaml --plugins ./my_plugins"
    ),
)
@click.argument("name", shell_complete=complete_recipes)
@options.overrides
@options.plugin_folders
@options.as_json
@click.pass_context
def verify_resume(
    ctx: click.Context, name: str, overrides: tuple[str, ...], plugin_folders: tuple[Path, ...], as_json: bool
) -> None:
    """Prove that a recipe's runs resume exactly.

    Trains a small copy of the recipe on this machine, with its plugins and strategies, twice: once uninterrupted, and
    once killed between two saves and again during a save. Losses, weights, optimizer state and RNG state must
    agree bit for bit. Takes half a minute. Exit status 1 and the first difference if they are not.
    """
    from dataclasses import asdict

    from toolkit.lifecycle.verify_resume import KILLED_AFTER, KILLED_IN_SAVE_OF, verify_resume

    verdict = verify_resume(name, overrides=overrides, plugin_folders=plugin_folders)
    if as_json:
        render.as_json({"recipe": name, **asdict(verdict)})
    elif verdict.exact:
        render.text(
            f"exact: killed after step {KILLED_AFTER} and again while saving step {KILLED_IN_SAVE_OF}, {name} ends "
            f"as if it had never stopped: {verdict.losses} losses, and {verdict.tensors} tensors and numbers of "
            f"weights, optimizer state and RNG state, bit for bit"
        )
    else:
        render.text(f"not exact: {verdict.difference}")
    if not verdict.exact:
        ctx.exit(1)
