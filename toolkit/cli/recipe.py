"""`toolkit recipe`: list, show, new, run, schema; every other command is a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit import commands
from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes
from toolkit.cli.groups import NamingGroup
from toolkit.cli.launch import launch
from toolkit.cli.plan import plan
from toolkit.cli.prepare import prepare
from toolkit.cli.suggest import suggest
from toolkit.cli.sweep import sweep
from toolkit.cli.validate import validate
from toolkit.cli.verify_resume import verify_resume
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.lifecycle.rehearsal import StandIn


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
@click.option(
    "--resolved",
    is_flag=True,
    help="Show every value that a run would use here, and its origin; again a recipe.",
)
@options.overrides
@options.plugin_folders
@options.as_json
def show(
    name: str, resolved: bool, overrides: tuple[str, ...], plugin_folders: tuple[Path, ...], as_json: bool
) -> None:
    """Print a recipe.

    As it is written; with --resolved (or --set) complete, with the origin of each value.
    """
    if resolved or overrides:
        complete = commands.resolve(name, overrides=overrides, plugin_folders=plugin_folders)
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
    render.text(f"Wrote {written}, a copy of {origin}. Edit it, then:")
    render.text(f"  toolkit recipe run {written}")
    render.text("For completion and validation in your editor, run once in this folder:")
    render.text("  toolkit recipe schema")


@recipe.command(
    epilog=render.examples(
        "toolkit recipe run quickstart",
        "toolkit recipe run ./mine.yaml --rehearse",
        "toolkit recipe run ./mine.yaml --set training.learning_rate=3e-4 --name faster",
        "toolkit recipe run ./mine.yaml --from mine@8000 --set training.learning_rate=1e-5",
        "toolkit recipe run ./mine.yaml --processes auto",
        "toolkit recipe run ./mine.yaml --profile 10",
        "toolkit recipe run ./mine.yaml --json > result.json",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@options.overrides
@click.option("--fresh", is_flag=True, help="Start from scratch in a new folder beside the old run, which is kept.")
@click.option(
    "--from", "parent", metavar="RUN@STEP",
    help="Start a new run from a checkpoint of another, with this recipe's settings; without @STEP, from the newest.",
)  # fmt: skip
@click.option(
    "--rehearse", is_flag=True, help="Test the whole pipeline in seconds, without a network: a tiny model, a few steps."
)
@click.option("--name", "run_name", metavar="RUN", help="Name of the run and its folder; by default the recipe's.")
@click.option(
    "--profile", "profile_steps", type=click.IntRange(1), metavar="STEPS",
    help="Profile so many steps, and say where their time goes and which option would help.",
)  # fmt: skip
@click.option(
    "--processes", metavar="N",
    help="Start N processes on this machine, which share each step; auto is one per GPU. The global batch stays the "
    "recipe's.",
)  # fmt: skip
@click.option(
    "--max-restarts", type=click.IntRange(0), default=0, show_default=True, metavar="R",
    help="Start the processes of --processes again, up to R times, after one was killed or has failed; they resume "
    "from the last checkpoint.",
)  # fmt: skip
@options.runs
@options.plugin_folders
@options.as_json
@click.option("--quiet", is_flag=True, help="Print only the results.")
def run(
    name: str,
    overrides: tuple[str, ...],
    fresh: bool,
    parent: str | None,
    rehearse: bool,
    run_name: str | None,
    profile_steps: int | None,
    processes: str | None,
    max_restarts: int,
    runs: Path,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Train, or resume training.

    From the recipe to a model that from_pretrained loads, in RUNS/NAME. The same command starts a run, resumes one
    that was stopped, and says so if the run has already finished. With --json the result is one JSON object on
    standard output, and progress goes to standard error.

    Exit status: 0 done, 1 failed, 2 invalid recipe or command, 3 something is missing here (network, device, disk),
    129, 130 and 143 interrupted, with the work saved.
    """
    from toolkit.cli.output import run_goes_on_without_it
    from toolkit.cli.watch import watching

    if rehearse and (fresh or parent):
        raise UsageError("--rehearse always starts from scratch, in a folder of its own; remove --fresh and --from")
    if rehearse and profile_steps:
        raise UsageError("--rehearse trains a tiny model, whose profile says nothing of the recipe's; remove --profile")
    if max_restarts and processes is None:
        raise UsageError("--max-restarts starts the processes of --processes again; add --processes N")
    run_goes_on_without_it()
    if processes is not None:
        from toolkit.cli.processes import run_together

        further: dict[str, object] = {"--fresh": fresh, "--from": parent, "--rehearse": rehearse, "--name": run_name}
        further |= {"--profile": profile_steps, "--json": as_json, "--quiet": quiet}
        if run_together(
            name,
            processes,
            max_restarts=max_restarts,
            overrides=overrides,
            plugin_folders=plugin_folders,
            runs=runs,
            options=further,
        ):
            return
    stand_ins: list[StandIn] = []
    with watching(quiet=quiet, on_standard_error=as_json) as listener:
        if rehearse:
            result, stand_ins = commands.rehearse(
                name, overrides=overrides, runs=runs, name=run_name, plugin_folders=plugin_folders, listener=listener
            )
        else:
            result = commands.run(
                name,
                overrides=overrides,
                runs=runs,
                name=run_name,
                fresh=fresh,
                from_checkpoint=parent,
                profile_steps=profile_steps,
                plugin_folders=plugin_folders,
                listener=listener,
            )
    from toolkit.system import distributed

    if not distributed.is_main_process():
        return
    if as_json:
        from dataclasses import asdict

        rehearsed = {"not_tested": [asdict(stand_in) for stand_in in stand_ins]} if rehearse else {}
        render.as_json({**asdict(result), "rehearsal": rehearse, **rehearsed})
    else:
        render.result(result, recipe=name, rehearsed=rehearse)
        if rehearse:
            render.not_tested(stand_ins, name)


@recipe.command(
    epilog=render.examples("toolkit recipe schema", "toolkit recipe schema --output - | less"),
)
@click.option(
    "--output", "-o", metavar="FILE", default=".toolkit/recipe.schema.json", show_default=True,
    help="Output file; - is standard output.",
)  # fmt: skip
@options.plugin_folders
def schema(output: str, plugin_folders: tuple[Path, ...]) -> None:
    """Write the schema for your editor.

    A JSON Schema with which YAML-aware editors complete and check recipes: every plugin, every option. The first line
    of a recipe names it: # yaml-language-server: $schema=.toolkit/recipe.schema.json. Write it again after installing
    or removing plugins.
    """
    from toolkit.recipe import json_schema
    from toolkit.registry import Registry

    document, failures = json_schema.schema(Registry.discover(plugin_folders))
    for failure in failures:
        render.note(f"the schema lacks the options of a plugin: {failure}")
    if output == "-":
        render.as_json(document)
    else:
        json_schema.write(document, Path(output))
        render.text(f"Wrote {output}")


recipe.add_command(launch)
recipe.add_command(plan)
recipe.add_command(prepare)
recipe.add_command(suggest)
recipe.add_command(sweep)
recipe.add_command(validate)
recipe.add_command(verify_resume)
