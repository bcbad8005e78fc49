"""What docs/architecture.md lists is what there is: the rooms, and what is private to the Trainer."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

from transformers import Trainer

from toolkit.training.trainer import RecipeTrainer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def first_column(heading: str) -> list[list[str]]:
    """The names in the first column of each table below this heading, in order."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"^\|---.*\n((?:^\|.*\n)+)", section, re.MULTILINE)
    cells = [re.findall(r"^\| (.+?) \|", rows, re.MULTILINE) for rows in tables]
    return [re.findall(r"`(\w+)`", " ".join(column)) for column in cells]


def layers() -> list[str]:
    """The rooms in the order of pyproject.toml; rooms on one floor as they stand there."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [room for floor in floors for room in floor.split(" | ")]


def test_the_table_and_the_picture_have_the_rooms_in_the_order_of_the_layers() -> None:
    (table,) = first_column("Rooms")
    assert table == layers()
    floors = re.findall(r"^\|  ([a-z ]+?) *\|", TEXT.split("+---", 1)[1], re.MULTILINE)
    assert " ".join(floors).split() == layers()


def test_every_folder_and_module_is_a_room() -> None:
    there = {
        entry.stem
        for entry in (ROOT / "toolkit").iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").exists()
    }
    assert there - {"__init__", "__main__"} == set(layers())


def test_every_folder_says_what_belongs_there_and_what_does_not() -> None:
    folders = [file for base in ("toolkit", "plugins/toolkit_plugins") for file in (ROOT / base).rglob("__init__.py")]
    assert len(folders) > 20
    for file in folders:
        docstring = re.match(r'"""(.*?)"""', file.read_text(encoding="utf-8"), re.DOTALL)
        assert docstring, file
        if file.parent != ROOT / "toolkit":  # whose docstring is the package's, for its users
            assert len(docstring[1].strip().split("\n\n")) >= 2, file


def test_what_is_private_to_the_trainer_is_listed() -> None:
    overridden, called = first_column("What is private to transformers")
    ours = [kind for kind in RecipeTrainer.__mro__ if kind.__module__.startswith("toolkit.")]
    names = {name for kind in ours for name in vars(kind) if hasattr(Trainer, name) and re.match("_(?!_)", name)}
    assert set(overridden) == names
    calls = {
        name
        for file in (ROOT / "toolkit").rglob("*.py")
        for name in re.findall(r"(?:trainer|trial|self)\.(_[a-z]\w*)\(", file.read_text(encoding="utf-8"))
        if callable(getattr(Trainer, name, None))
    }
    assert set(called) == calls - names


def test_no_two_classes_have_one_name() -> None:
    folders = (ROOT / "toolkit", ROOT / "plugins/toolkit_plugins")
    modules = [ast.parse(file.read_text(encoding="utf-8")) for folder in folders for file in folder.rglob("*.py")]
    names = Counter(node.name for module in modules for node in module.body if isinstance(node, ast.ClassDef))
    assert [name for name, times in names.items() if times > 1] == []
    assert len(names) > 100
