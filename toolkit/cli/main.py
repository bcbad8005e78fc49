"""The command `toolkit`: its groups, and how errors are reported.

Every module of the command line imports only click and the standard library; a command imports what it needs when it
runs. So `--help` costs no more than click, and torch is imported only when training starts.
"""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from toolkit import __version__
from toolkit.cli import output, render
from toolkit.cli.groups import NamingGroup
from toolkit.errors import ToolkitError, of_the_machine
from toolkit.system import endings, signals
from toolkit.system.process_exit import without_finalization

COMMANDS = {
    "recipe": "toolkit.cli.recipe:recipe",
    "run": "toolkit.cli.run:run",
    "generate": "toolkit.cli.model:generate",
    "evaluate": "toolkit.cli.model:evaluate",
    "data": "toolkit.cli.data:data",
    "plugin": "toolkit.cli.plugin:plugin",
    "doctor": "toolkit.cli.doctor:doctor",
    "completion": "toolkit.cli.completion:completion",
}
"""Where each top-level command is, in the order of the help text."""

INTERRUPTED = "interrupted"


class LazyGroup(NamingGroup):
    """The top-level group: imports a command's module when it is asked for, and turns errors into messages."""

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
        """Run the command; an error that is meant for the user becomes a message and an exit status."""
        try:
            return super().invoke(ctx)
        except ToolkitError as error:
            _tell(error)
            ctx.exit(error.exit_status)
        except OSError as error:
            if (in_words := of_the_machine(error)) is None:
                raise
            _tell(in_words)
            ctx.exit(in_words.exit_status)


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

    A recipe is a YAML file: data, tokenizer, model, objective, memory strategies. Each part is a plugin.
    """


def main() -> None:
    """Entry point of the console script."""
    output.install()
    be_quiet()
    be_somebody()
    endings.end_with_the_group()
    with without_finalization(), signals.ending_the_process(), signals.at_forced_end(_say_at_forced_end):
        try:
            toolkit(prog_name="toolkit")
        except ToolkitError as error:  # a help text could not be written: no command has started
            render.error(error)
            sys.exit(error.exit_status)
        except signals.Interrupt:
            render.note(INTERRUPTED)
            raise
        except Exception as error:
            if endings.record(error, traceback.format_exc()):
                sys.exit(1)
            raise


def _tell(error: ToolkitError) -> None:
    """Write what went wrong to standard error, unless the process that has started this one does so."""
    if not endings.record(error, render.error_text(error)):
        render.error(error)


def _say_at_forced_end(reason: str) -> None:
    render.note(f"error: {reason}" if reason else INTERRUPTED)


def be_somebody() -> None:
    """Give a user without an entry in /etc/passwd the name and the home that libraries ask for.

    `docker run --user 4321` has such a user.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        user = f"user-{os.getuid()}"
        os.environ.setdefault("USER", user)
        if "HOME" not in os.environ:
            home = Path(tempfile.gettempdir(), f"toolkit-{user}")
            home.mkdir(mode=0o700, exist_ok=True)
            is_ours = home.stat().st_uid == os.getuid()  # another user may have created it
            os.environ["HOME"] = str(home) if is_ours else tempfile.mkdtemp(prefix=home.name)


def be_quiet() -> None:
    """Silence the libraries' own warnings and progress bars; the user's own settings take precedence.

    It sets environment variables, because importing the libraries to configure them would cost seconds.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "KINETO_LOG_LEVEL": "6",  # above the messages of torch's profiler about its start and end
    }.items():
        os.environ.setdefault(name, value)
