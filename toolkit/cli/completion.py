"""Tab completion: the names of recipes, plugins and runs, and the script that sets a shell up for it.

It looks only at file names and entry points, so that completion is instant.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from toolkit.cli import render

SHELLS = ("bash", "zsh", "fish")


def complete_recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of recipes; files, if the word looks like a path."""
    from toolkit.recipe import catalog

    if incomplete.startswith((".", "/", "~")) or "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    here = [f"./{file.name}" for file in sorted(Path().glob(f"{incomplete}*.yaml"))]
    return _starting(incomplete, catalog.shipped()) + [CompletionItem(name) for name in here]


def complete_plugins(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of plugins of the kind that has already been typed."""
    from importlib import metadata

    names = {entry.name for entry in metadata.entry_points(group=f"toolkit.{ctx.params.get('kind')}")}
    for folder in ctx.params.get("plugin_folders") or ():
        names |= {file.stem.replace("_", "-") for file in Path(folder, str(ctx.params.get("kind"))).glob("[!_]*.py")}
    return _starting(incomplete, sorted(names))


def complete_launchers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of launchers."""
    ctx.params["kind"] = "launcher"
    return complete_plugins(ctx, param, incomplete)


def complete_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of runs in the folder of runs."""
    folder = Path(ctx.params.get("runs") or os.environ.get("TOOLKIT_RUNS") or "runs")
    return _starting(incomplete, sorted(file.parent.name for file in folder.glob("*/run.json")))


def _starting(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(
    epilog=render.examples(
        'eval "$(toolkit completion bash)"    # a line for ~/.bashrc',
        'eval "$(toolkit completion zsh)"     # a line for ~/.zshrc',
        "toolkit completion fish > ~/.config/fish/completions/toolkit.fish",
    )
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Set up tab completion.

    Prints the script that makes a shell complete commands, options, and the names of recipes, plugins and runs.
    """
    shell_class = get_completion_class(shell)
    assert shell_class is not None
    render.text(shell_class(ctx.find_root().command, {}, "toolkit", "_TOOLKIT_COMPLETE").source())
