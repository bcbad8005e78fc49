"""`toolkit recipe`: list, show, validate, new, run, schema; plan and verify-resume have modules of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes
from toolkit.cli.groups import NamingGroup
from toolkit.cli.plan import plan
from toolkit.cli.verify_resume import verify_resume
from toolkit.errors import PluginError, RecipeError, ToolkitError, UsageError

if TYPE_CHECKING:
    from toolkit.progress import Listener, RunResult
    from toolkit.rehearsal import StandIn
    from toolkit.resolve import ResolvedRecipe


@click.group(cls=NamingGroup, epilog=render.examples("toolkit recipe list", "toolkit recipe run quickstart"))
def recipe() -> None:
    """Find, check, copy and run recipes.

    NAME is the name of a recipe that comes with the toolkit, or the path of a YAML file: ./mine.yaml.
    """


@recipe.command("list", epilog=render.examples("toolkit recipe list", "toolkit recipe list --json"))
@options.as_json
def list_(as_json: bool) -> None:
    """List the recipes that come with the toolkit."""
    from toolkit.recipe import catalog, document

    entries = [
        {"name": name, "description": document.read(file).data.get("description", ""), "file": str(file)}
        for name, file in catalog.shipped().items()
    ]
    if as_json:
        render.as_json(entries)
    else:
        render.table(["NAME", "WHAT IT DOES"], ([entry["name"], entry["description"]] for entry in entries))


@recipe.command(
    epilog=render.examples(
        "toolkit recipe show quickstart",
        "toolkit recipe show quickstart --resolved",
        "toolkit recipe show quickstart --set training.max_steps=10 --resolved --json",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@click.option("--resolved", is_flag=True, help="Every value that a run would use here, and who set it; a recipe again.")
@options.overrides
@options.plugin_folders
@options.as_json
def show(
    name: str, resolved: bool, overrides: tuple[str, ...], plugin_folders: tuple[Path, ...], as_json: bool
) -> None:
    """Print a recipe.

    As it is written; with --resolved (or --set) complete, each value with who set it.
    """
    if resolved or overrides:
        complete = _resolve(name, overrides, plugin_folders)
        if as_json:
            origins = {path: origin for path, (_, origin) in complete.origins().items()}
            facts = {"name": complete.name, "file": complete.recipe.document.source, "fidelity": complete.fidelity}
            render.as_json({**facts, "recipe": complete.data(), "origins": origins})
        else:
            render.text(complete.to_yaml().rstrip("\n"))
        return
    from toolkit.recipe import catalog, document

    file = catalog.find(name)
    written = document.read(file)
    if as_json:
        render.as_json({"name": file.stem, "file": str(file), "recipe": written.data})
    else:
        render.text(written.text.rstrip("\n"))


@recipe.command(
    epilog=render.examples(
        "toolkit recipe validate ./mine.yaml",
        "toolkit recipe validate quickstart wikitext-gpt2 --json",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_recipes)
@options.device
@options.overrides
@options.plugin_folders
@options.as_json
@click.pass_context
def validate(
    ctx: click.Context,
    names: tuple[str, ...],
    device_name: str | None,
    overrides: tuple[str, ...],
    plugin_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check recipes without running them.

    Shows everything that is wrong at once: sections, plugins, options, values, and strategies in conflict.
    """
    from toolkit.resolve import check_trackers

    verdicts = []
    options.chosen_device(device_name)  # a wrong name is the command's mistake, and no recipe's
    for name in names:
        try:
            check_trackers(_resolve(name, overrides, plugin_folders, device_name=device_name).recipe)
        except (RecipeError, PluginError, UsageError) as error:
            verdicts.append({"name": name, "valid": False, "problems": list(_problems(error))})
            if not as_json:
                render.error(error)
        else:
            verdicts.append({"name": name, "valid": True, "problems": []})
            if not as_json:
                render.text(f"{name} is valid")
    if as_json:
        render.as_json(verdicts)
    if not all(verdict["valid"] for verdict in verdicts):
        ctx.exit(RecipeError.exit_status)


def _problems(error: ToolkitError) -> Iterable[dict[str, Any]]:
    if not isinstance(error, RecipeError):
        yield {"file": None, "line": None, "column": None, "path": "", "message": str(error)}
        return
    for problem in error.problems:
        place = {"file": problem.place.file, "line": problem.place.line, "column": problem.place.column}
        yield {**place, "path": problem.path, "message": problem.message}


@recipe.command(
    epilog=render.examples("toolkit recipe new my-run", "toolkit recipe new my-run --from wikitext-gpt2"),
)
@click.argument("new_name", metavar="NEWNAME")
@click.option(
    "--from", "origin", metavar="NAME", default="quickstart", show_default=True, shell_complete=complete_recipes,
    help="The recipe to copy.",
)  # fmt: skip
def new(new_name: str, origin: str) -> None:
    """Start a recipe of your own.

    Writes NEWNAME.yaml, a copy of another recipe with all its comments, to edit. Never overwrites.
    """
    from toolkit.recipe.new import write_copy

    written = write_copy(origin, new_name)
    render.text(f"Written: {written}, a copy of {origin}. Edit it, then:")
    render.text(f"  toolkit recipe run {written}")
    render.text("For completion and checks in your editor, once in this folder:")
    render.text("  toolkit recipe schema")


@recipe.command(
    epilog=render.examples(
        "toolkit recipe run quickstart",
        "toolkit recipe run ./mine.yaml --rehearse",
        "toolkit recipe run ./mine.yaml --set training.learning_rate=3e-4 --name faster",
        "toolkit recipe run ./mine.yaml --from mine@8000 --set training.learning_rate=1e-5",
        "toolkit recipe run ./mine.yaml --json > result.json",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@options.overrides
@click.option("--fresh", is_flag=True, help="Start over in a folder beside the old run, which stays as it is.")
@click.option(
    "--from", "parent", metavar="RUN@STEP",
    help="Begin a new run at this checkpoint of another, with the recipe's settings; without @STEP at the newest.",
)  # fmt: skip
@click.option(
    "--rehearse", is_flag=True, help="Try everything in seconds and without a network: a shrunk model, a few steps."
)
@click.option("--name", "run_name", metavar="RUN", help="Name of the run and its folder; the recipe's if not given.")
@options.runs
@options.plugin_folders
@options.as_json
@click.option("--quiet", is_flag=True, help="Print nothing but what was reached.")
def run(
    name: str,
    overrides: tuple[str, ...],
    fresh: bool,
    parent: str | None,
    rehearse: bool,
    run_name: str | None,
    runs: Path,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Train, or go on training.

    From the recipe to a model that from_pretrained loads, in RUNS/NAME. The same command starts a run, goes on with
    one that was stopped, and says so when it is finished. With --json the result is one JSON object on standard
    output, and progress goes to standard error.

    Exit status: 0 done, 1 failed, 2 invalid recipe or command, 3 something is missing here (network, device, disk),
    129, 130 and 143 interrupted with everything saved.
    """
    from toolkit.cli.run_log import watching_and_logging

    if rehearse and (fresh or parent):
        raise UsageError("a rehearsal always starts over, in a folder of its own; leave --fresh and --from out")
    if run_name is not None:
        from toolkit.run_directory import check_name

        check_name(runs, run_name)
    stand_ins: list[StandIn] = []
    with watching_and_logging(quiet=quiet, on_standard_error=as_json) as listener:
        if rehearse:
            result, stand_ins = _rehearse(
                name, overrides, plugin_folders, runs=runs, run_name=run_name, listener=listener
            )
        else:
            resolved = _resolve(name, overrides, plugin_folders)
            from toolkit import branch, train

            begun_at = branch.parent(parent, runs) if parent else None
            result = train.run(resolved, runs=runs, name=run_name, fresh=fresh, parent=begun_at, listener=listener)
    from toolkit import processes

    if not processes.is_first():
        return
    if as_json:
        from dataclasses import asdict

        rehearsed = {"not_tested": [asdict(stand_in) for stand_in in stand_ins]} if rehearse else {}
        render.as_json({**asdict(result), "rehearsal": rehearse, **rehearsed})
    else:
        render.result(result, rehearsed=rehearse)
        if rehearse:
            render.not_tested(stand_ins, name)


def _rehearse(
    name: str,
    overrides: tuple[str, ...],
    plugin_folders: tuple[Path, ...],
    *,
    runs: Path,
    run_name: str | None,
    listener: Listener,
) -> tuple[RunResult, list[StandIn]]:
    from toolkit import device, resolve

    read = resolve.load(name, overrides=overrides, plugin_folders=plugin_folders)
    from toolkit import rehearsal

    return rehearsal.rehearse(read, runs=runs, device=device.detect(), listener=listener, name=run_name)


@recipe.command(
    epilog=render.examples("toolkit recipe schema", "toolkit recipe schema --output - | less"),
)
@click.option(
    "--output", "-o", metavar="FILE", default=".toolkit/recipe.schema.json", show_default=True,
    help="Where to write it; - is standard output.",
)  # fmt: skip
@options.plugin_folders
def schema(output: str, plugin_folders: tuple[Path, ...]) -> None:
    """Write the schema for your editor.

    A JSON Schema, by which editors that know YAML complete and check recipes: every plugin, every option. The first
    line of a recipe names it: # yaml-language-server: $schema=.toolkit/recipe.schema.json. Write it again when
    plugins were installed or removed.
    """
    from toolkit.recipe import editor
    from toolkit.registry import Registry

    document, failures = editor.schema(Registry.discover(plugin_folders))
    for failure in failures:
        render.note(f"without the options of one plugin: {failure}")
    if output == "-":
        render.as_json(document)
    else:
        editor.write(document, Path(output))
        render.text(f"Written: {output}")


def _resolve(
    name: str, overrides: Iterable[str], plugin_folders: Iterable[Path], *, device_name: str | None = None
) -> ResolvedRecipe:
    from toolkit import resolve

    read = resolve.load(name, overrides=overrides, plugin_folders=plugin_folders)
    return resolve.resolve(read, options.chosen_device(device_name))


recipe.add_command(plan)
recipe.add_command(verify_resume)
