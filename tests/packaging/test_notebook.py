"""The notebook for Colab: well-formed, without output, and each command in it is one that the toolkit takes."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from toolkit.cli.main import toolkit as command_line

NOTEBOOK = Path(__file__).parents[2] / "docs/colab.ipynb"


@pytest.fixture
def cells() -> list[dict[str, object]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells: list[dict[str, object]] = notebook["cells"]
    return cells


def code(cells: list[dict[str, object]]) -> Iterator[str]:
    return ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")  # type: ignore[arg-type]  # JSON


def test_the_notebook_is_well_formed_and_has_no_output(cells: list[dict[str, object]]) -> None:
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        extra = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert cell == {key: cell[key] for key in ("cell_type", "id", "metadata", "source")} | extra


def test_its_python_is_python_and_its_variables_are_set_before_they_are_used(cells: list[dict[str, object]]) -> None:
    known: set[str] = set()
    for source in code(cells):
        python = "\n".join(line for line in source.splitlines() if not line.startswith(("!", "%")))
        known |= {node.id for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Name)}
        assert set(re.findall(r"^[!%].*\{(\w+)\}", source, re.MULTILINE)) <= known


def test_its_commands_are_taken_by_the_command_line(cells: list[dict[str, object]]) -> None:
    lines = [line for source in code(cells) for line in source.splitlines() if line.startswith("!toolkit")]
    assert any("recipe run" in line and "--runs" in line for line in lines)
    for line in lines:
        parsed(shlex.split(line)[1:])


def parsed(words: list[str]) -> None:
    """Let click parse a command without running it.

    Raises:
        click.UsageError: there is no such command, option or number of arguments.
    """
    command: click.Command = command_line
    context = click.Context(command, **command.context_settings)
    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    # With its parent, from which click takes the names of --help, and remembers them.
    command.make_context(command.name, list(words), parent=context)


@pytest.mark.parametrize("line", ["recipe fly", "recipe run", "recipe run quickstart --quick", "generate a b"])
def test_a_command_that_is_not_taken_would_be_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(line.split())
