"""Writes the package to start a new plugin from: a complete one that works.

The templates are `string.Template`s, because Python and TOML are full of braces.
"""

from __future__ import annotations

import keyword
from importlib.util import find_spec
from pathlib import Path
from string import Template

import toolkit
from toolkit.errors import UnavailableError, UsageError
from toolkit.registry import NAME, Registry

TEMPLATES = Path(__file__).parent / "templates"

RECIPE_LINES = {
    "dataset": "dataset: {plugin: $name, documents: 3000}",
    "filter": "filters: [{plugin: $name, most_capitals: 0.5}]  # in the dataset's section",
    "tokenizer": "tokenizer: $name",
    "model": "model: {plugin: $name, hidden_size: 64}",
    "objective": "objective: {plugin: $name, block_size: 128, noise: 0.1}",
    "optimizer": "optimizer: {plugin: $name, momentum: 0.9}",
    "memory": "memory: [$name]",
    "callback": "callbacks: [{plugin: $name, margin: 0.01}]",
    "exporter": "exporters: [model-folder, $name]",
    "launcher": "# toolkit recipe launch NAME --on $name",
}
"""How a recipe names the plugin of each template."""


def write(kind: str, name: str, directory: Path) -> Path:
    """Write the package NAME/ into a directory, and return its folder.

    Raises:
        UsageError: the name is no valid plugin name or is taken, or the folder exists.
        UnavailableError: the folder cannot be written.
    """
    folder, module = directory / name, name.replace("-", "_")
    _check_name(kind, name, module)
    words = {
        "kind": kind,
        "name": name,
        "module": module,
        "class_name": "".join(part.capitalize() for part in name.split("-")),
        "recipe_line": Template(RECIPE_LINES[kind]).substitute(name=name),
        "toolkit_version": toolkit.__version__,
    }
    try:
        folder.mkdir(parents=True)
        for target, template in _files(kind, module).items():
            file = folder / target
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
            file.write_text(Template(text).substitute(words), encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{folder} already exists and was not changed; choose another name or --directory") from None
    except OSError as error:
        raise UnavailableError(f"cannot write {folder}: {error.strerror}") from None
    return folder


def _check_name(kind: str, name: str, module: str) -> None:
    if not NAME.fullmatch(name) or name[0].isdigit() or keyword.iskeyword(module):
        raise UsageError(
            f"{name!r} is not a valid plugin name: use lowercase letters and digits joined by -, like my-{kind}"
        )
    offers = [offer for offer in Registry.discover().offers(kind) if offer.name == name]
    if offers:
        raise UsageError(f"{offers[0].distribution} already provides a {kind} plugin {name!r}; choose another name")
    if find_spec(module):
        raise UsageError(f"the package would shadow the Python module {module!r}, which exists; choose another name")


def _files(kind: str, module: str) -> dict[str, str]:
    """The files of the package, and the template of each."""
    return {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{module}/__init__.py": f"{kind}.py",
        f"src/{module}/py.typed": "py.typed",
        f"tests/test_{module}.py": "test.py",
    }
