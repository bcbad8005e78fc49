"""The command `toolkit`: its groups, and what becomes of an error.

Every module of the command line imports click and the standard library alone; a command imports what it needs
when it runs. So `--help` costs what click costs, and torch starts where training does.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from toolkit import __version__
from toolkit.cli import render
from toolkit.cli.groups import NamingGroup
from toolkit.errors import ToolkitError

COMMANDS = {
    "recipe": "toolkit.cli.recipe:recipe",
    "run": "toolkit.cli.run:run",
    "generate": "toolkit.cli.model:generate",
    "evaluate": "toolkit.cli.model:evaluate",
    "plugin": "toolkit.cli.plugin:plugin",
    "completion": "toolkit.cli.completion:completion",
}
"""Where each command of the first level is, in the order of its help."""

INTERRUPTED = 130
"""What a shell says of a process that Ctrl-C has stopped: 128 + SIGINT."""


class LazyGroup(NamingGroup):
    """The first level: imports the module of a command when it is asked for, and turns errors into words."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that is meant for the person becomes its message and its exit status."""
        try:
            return super().invoke(ctx)
        except ToolkitError as error:
            render.error(error)
            ctx.exit(error.exit_status)
        except KeyboardInterrupt:
            render.note("interrupted")
            ctx.exit(INTERRUPTED)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=render.examples(
        "toolkit recipe run quickstart              # train a small model, here and now",
        "toolkit recipe new mine --from my-texts    # start a recipe of your own",
        'eval "$(toolkit completion bash)"          # complete names with the Tab key',
    ),
)
@click.version_option(__version__, message="toolkit %(version)s")
def toolkit() -> None:
    """Pre-train language models from recipes.

    A recipe is a YAML file: data, tokenizer, model, objective, and what saves memory. Each part is a plugin.
    """


def main() -> None:
    """Entry point of the console script."""
    be_quiet()
    for stream in (sys.stdout, sys.stderr):
        # A generated text may hold any character, and the terminal may be an old one.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # they are text files at this point
    toolkit(prog_name="toolkit")


def be_quiet() -> None:
    """Keep the libraries' own warnings and bars out of what we show; the person's own settings go first.

    By environment variables, because importing the libraries to tell them would cost seconds.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
