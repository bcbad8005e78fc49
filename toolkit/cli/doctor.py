"""`toolkit doctor`: whether this machine is fit for a run, and the cure of what is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import commands
from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes
from toolkit.errors import PluginError, RecipeError, UnavailableError
from toolkit.formatting import beside, counted

if TYPE_CHECKING:
    from toolkit.doctor.examination import Examined
    from toolkit.recipe.resolve import ResolvedRecipe


@click.command(
    epilog=render.examples(
        "toolkit doctor",
        "toolkit doctor --recipe ./mine.yaml",
        "toolkit doctor --json | jq '.findings[] | select(.level == \"problem\")'",
    )
)
@click.option(
    "--recipe", "name", metavar="NAME", shell_complete=complete_recipes,
    help="Also check what this recipe needs: its packages, data, memory and disk.",
)  # fmt: skip
@options.overrides
@options.runs
@options.plugin_folders
@options.as_json
@click.pass_context
def doctor(
    ctx: click.Context,
    name: str | None,
    overrides: tuple[str, ...],
    runs: Path,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Examine this machine before a run.

    Looks at versions, GPUs and their driver, compiler, processors, memory, limits of the container and of the process,
    file systems, left-over variables, the clock and the Hub. Each finding is ok, a note (slow, or something could be
    lost) or a problem (a run would fail), with its cure. Changes nothing. Exit status 3 if there is a problem.
    """
    from toolkit.doctor.patient import examined

    recipe: ResolvedRecipe | RecipeError | PluginError | UnavailableError | None = None
    if name is not None:
        try:
            recipe = commands.resolve(name, overrides=overrides, plugin_folders=plugin_folders)
        except (RecipeError, PluginError, UnavailableError) as error:  # a finding, beside those of the machine
            recipe = error
    found: list[dict[str, Any]] = []
    for one in examined(runs, recipe):
        found += [{"check": one.check, "looked_at": one.looked_at, **asdict(finding)} for finding in one.findings]
        if not as_json:
            _show(one)
    problems = sum(finding["level"] == "problem" for finding in found)
    notes = sum(finding["level"] == "note" for finding in found)
    if as_json:
        render.as_json({"fit": not problems, "problems": problems, "notes": notes, "findings": found})
    else:
        verdict = "a run would fail here" if problems else "a run can begin"
        render.text(f"\n{counted(problems, 'problem')}, {counted(notes, 'note')}: {verdict}")
    if problems:
        ctx.exit(UnavailableError.exit_status)


def _show(examined: Examined) -> None:
    """Write the findings of a check as soon as they are there."""
    for finding in examined.findings:
        words = finding.found
        if finding.level != "ok":
            words += f" [{examined.looked_at}]" + (f"\n-> {finding.cure}" if finding.cure else "")
        for line in beside({f"{finding.level:<8} {examined.check:<13}": words}, render.terminal_width()):
            render.text(line)
