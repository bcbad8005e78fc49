"""`toolkit recipe validate`: whether recipes are valid; with --data, also what the first rows of the dataset show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import commands
from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes
from toolkit.errors import PluginError, RecipeError, ToolkitError, UnavailableError, UsageError

if TYPE_CHECKING:
    from toolkit.recipe.resolve import ResolvedRecipe

SHOWN_CHARACTERS = 80
"""Characters shown of the first document."""


@click.command(
    epilog=render.examples(
        "toolkit recipe validate ./mine.yaml",
        "toolkit recipe validate ./mine.yaml --data",
        "toolkit recipe validate quickstart wikitext-gpt2 --json",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_recipes)
@click.option("--data", "with_data", is_flag=True, help="Also check the first rows of the dataset.")
@options.device
@options.overrides
@options.plugin_folders
@options.as_json
@click.pass_context
def validate(
    ctx: click.Context,
    names: tuple[str, ...],
    with_data: bool,
    device_name: str | None,
    overrides: tuple[str, ...],
    plugin_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check recipes without running them.

    Shows all problems at once: sections, plugins, options, values, and conflicting strategies. With --data, also
    checks the first rows, fetched if the dataset is on the Hub: a missing or empty file, a missing column, a wrong
    delimiter; and what its filters need.
    """
    from toolkit.planning import devices
    from toolkit.recipe.resolve import check_trackers

    verdicts: list[dict[str, Any]] = []
    statuses = set()
    devices.device_called(device_name)  # a wrong device name is an error in the command, not in a recipe
    for name in names:
        try:
            resolved = commands.resolve(name, overrides=overrides, plugin_folders=plugin_folders, device=device_name)
            check_trackers(resolved.recipe)
            data = first_rows(resolved) if with_data else None
        except (RecipeError, PluginError, UsageError, UnavailableError) as error:
            verdicts.append({"name": name, "valid": False, "problems": list(_problems(error))})
            statuses.add(error.exit_status)
            if not as_json:
                render.error(error)
        else:
            verdicts.append({"name": name, "valid": True, "problems": [], **({"data": data} if data else {})})
            if not as_json:
                render.text(f"{name} is valid")
                if data:
                    render.text(f"  {in_words(data)}")
    if as_json:
        render.as_json(verdicts)
    if statuses:
        ctx.exit(min(statuses))


def first_rows(resolved: ResolvedRecipe) -> dict[str, Any]:
    """What the first rows of the recipe's dataset show.

    Raises:
        RecipeError, UnavailableError: a run would be refused because of them.
    """
    from toolkit.training.components import peek_documents

    peek = peek_documents(resolved)
    return {
        "plugin": resolved.recipe.dataset.name,
        "source": peek.source if peek else None,
        "document": peek.document if peek else None,
    }


def first_rows_or_refusal(resolved: ResolvedRecipe) -> dict[str, Any]:
    """The same for a command that can do without the data: a refusal is reported, but is no error."""
    try:
        return first_rows(resolved)
    except (RecipeError, UnavailableError) as error:
        render.note(f"a run would be refused here: {error}")
        return {"refused": str(error)}


def in_words(data: Mapping[str, Any]) -> str:
    """What the first rows show, in one line."""
    if "refused" in data:
        return f"a run would be refused: {data['refused']}"
    if data["source"] is None:
        return f"{data['plugin']}: this plugin has no preview"
    document = " ".join(data["document"].split())
    if len(document) > SHOWN_CHARACTERS:
        document = f"{document[:SHOWN_CHARACTERS]}..."
    return f"{data['plugin']}: {data['source']}; first document: {document or 'none with text'}"


def _problems(error: ToolkitError) -> Iterable[dict[str, Any]]:
    if not isinstance(error, RecipeError):
        yield {"file": None, "line": None, "column": None, "path": "", "message": str(error)}
        return
    for problem in error.problems:
        place = {"file": problem.place.file, "line": problem.place.line, "column": problem.place.column}
        yield {**place, "path": problem.path, "message": problem.message}
