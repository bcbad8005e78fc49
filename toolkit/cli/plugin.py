"""`toolkit plugin`: list, show, new, check."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options, render
from toolkit.cli.completion import complete_plugins
from toolkit.cli.groups import NamingGroup
from toolkit.errors import PluginError

if TYPE_CHECKING:
    from toolkit.registry import Offer
    from toolkit.testing import Check

KINDS = (
    *("dataset", "filter", "tokenizer", "model", "objective", "optimizer", "memory", "callback", "exporter"),
    "launcher",
)
"""The same as in `toolkit.api`, which takes 0.2 s to import, too long for a help text; a test compares them."""

# Eager, so that completion of the name knows the kind.
kind_argument = click.argument("kind", type=click.Choice(KINDS), is_eager=True)
name_argument = click.argument("name", shell_complete=complete_plugins)


@click.group(
    cls=NamingGroup,
    epilog=render.examples("toolkit plugin list --kind memory", "toolkit plugin new memory my-strategy"),
)
def plugin() -> None:
    """Find, write and check plugins.

    Recipes are made of plugins. KIND is one of dataset, filter, tokenizer, model, objective, optimizer, memory,
    callback, exporter and launcher.
    """


@plugin.command(
    "list", epilog=render.examples("toolkit plugin list", "toolkit plugin list --kind dataset --plugins ./my_plugins")
)
@click.option("--kind", type=click.Choice(KINDS), help="Only plugins of this kind.")
@options.plugin_folders
@options.as_json
def list_(kind: str | None, plugin_folders: tuple[Path, ...], as_json: bool) -> None:
    """List plugins, their origin, and what they do.

    A plugin that cannot be used is listed with the reason.
    """
    from toolkit.registry import Registry

    entries = [_entry(offer) for offer in Registry.discover(plugin_folders).offers(kind)]
    if as_json:
        render.as_json(entries)
        return
    columns = ("kind", "name", "distribution")
    render.table(
        ["KIND", "NAME", "FROM", "WHAT IT DOES"],
        (
            [*(entry[column] for column in columns), entry["description"] or f"FAILS: {entry['failure']}"]
            for entry in entries
        ),
    )


def _entry(offer: Offer) -> dict[str, Any]:
    entry = {"kind": offer.kind, "name": offer.name, "distribution": offer.distribution}
    try:
        loaded = offer.load()
    except PluginError as error:
        return {**entry, "description": None, "failure": str(error)}
    summary = inspect.cleandoc(loaded.__doc__ or "").partition("\n\n")[0]
    return {**entry, "description": " ".join(summary.split()), "failure": None}


@plugin.command(
    epilog=render.examples("toolkit plugin show memory small-batch", "toolkit plugin show dataset hub --json")
)
@kind_argument
@name_argument
@options.plugin_folders
@options.as_json
def show(kind: str, name: str, plugin_folders: tuple[Path, ...], as_json: bool) -> None:
    """Show a plugin's options.

    With their types, defaults and descriptions; also what the plugin declares, where its class is, and how to use it
    in a recipe.
    """
    from toolkit.cli import plugin_account
    from toolkit.registry import Registry

    account = plugin_account.account_of(Registry.discover(plugin_folders), kind, name)
    if as_json:
        render.as_json(account)
        return
    render.text(f"{kind} {name}")
    render.text()
    render.paragraphs(account["description"])
    render.text()
    facts = {
        key: ", ".join(value) or "none" if isinstance(value, list) else value for key, value in account["facts"].items()
    }
    render.pairs(
        {**facts, "provided by": account["distribution"], "class": account["class"], "source": account["place"]}
    )
    render.text()
    if account["options"]:
        columns = ["OPTION", "TYPE", "DEFAULT", "WHAT IT DOES"]
        render.table(columns, ([*_row(option)] for option in account["options"]))
        render.text()
    where = {"filter": "In a dataset's section of a recipe:", "launcher": "On the command line:"}
    render.text(where.get(kind, "In a recipe:"))
    render.text(f"  {account['example']}")


def _row(option: Mapping[str, Any]) -> list[str]:
    default = "required" if option["required"] else render.yaml_word(option["default"])
    return [option["name"], option["type"], default, option["description"]]


@plugin.command(epilog=render.examples("toolkit plugin new memory my-strategy", "pip install -e ./my-strategy"))
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option(
    "--directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), default=Path(),
    help="Folder to create the package in; by default the current one.",
)  # fmt: skip
def new(kind: str, name: str, directory: Path) -> None:
    """Start a plugin of your own.

    Writes a package NAME/ with a small plugin that works, its test and its entry point, to change. Never overwrites.
    """
    from toolkit.cli import scaffold

    folder = scaffold.write(kind, name, directory)
    render.text(f"Wrote {folder}. Next:")
    render.text(f"  pip install -e {folder}")
    render.text(f"  toolkit plugin check {kind} {name}")
    render.text(f"  toolkit plugin show {kind} {name}")


@plugin.command(
    epilog=render.examples(
        "toolkit plugin check memory my-strategy",
        "toolkit plugin check memory mine --plugins ./my_plugins --json",
        "toolkit plugin check dataset text-files --set 'files=texts/*.txt'",
    )
)
@kind_argument
@name_argument
@click.option(
    "--set",
    "assignments",
    metavar="OPTION=VALUE",
    multiple=True,
    help="Check the plugin with this option, as in a recipe. Repeatable; every required option needs one.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Skip the last check, of half a minute: whether a killed run resumes exactly.",
)
@options.plugin_folders
@options.as_json
@click.pass_context
def check(
    ctx: click.Context,
    kind: str,
    name: str,
    assignments: tuple[str, ...],
    quick: bool,
    plugin_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check a plugin against its contract.

    The same checks that the toolkit's own plugins pass; plugins can call them in their tests (toolkit.testing). The
    last one trains a small recipe with the plugin, kills it twice, and compares the outcome bit by bit. What cannot be
    tried on this machine, or with a plugin that rejects everything it is tried with, fails as not tried.
    """
    from dataclasses import asdict

    from toolkit.recipe.document import Document, with_override
    from toolkit.registry import Registry

    registry = Registry.discover(plugin_folders)
    registry.offer(kind, name)  # a misspelt name is reported before torch is imported
    given = Document("--set", "", {}, {})
    for assignment in assignments:
        given = with_override(given, assignment)
    from toolkit.testing import Check, check_plugin, check_resume

    checks = check_plugin(kind, name, registry, given.data or None)
    if quick:
        unseen = "whether a run with it that is killed and resumed in a new process ends the same"
        checks.append(Check("resume", True, f"skipped by --quick: {unseen}", tried=False))
    elif all(one.passed for one in checks):
        checks.append(check_resume(kind, name, given.data, plugin_folders))
    else:
        checks.append(Check("resume", False, "not tried: fix the failed checks first", tried=False))
    if as_json:
        render.as_json([asdict(one) for one in checks])
    else:
        render.table(["", "CHECK", "FINDING"], ([_verdict(one), one.name, one.detail] for one in checks))
    if not all(one.passed for one in checks):
        ctx.exit(1)


def _verdict(check: Check) -> str:
    if check.tried:
        return "ok" if check.passed else "FAILED"
    return "not tried" if check.passed else "NOT TRIED"
