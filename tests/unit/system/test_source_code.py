"""The source code of a plugin is that of the modules of its author, and of no library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from toolkit.registry import Offer
from toolkit.system.source_code import source_code_of
from toolkit_plugins.dataset.text_files import TextFiles

PLUGIN = '''
"""Made for a test."""

import json

import numpy

from toolkit.api import Dataset

{imports}


class Notes(Dataset):
    """Notes."""

    def load(self, run):
        import deep.inside.spelling
        from words import common
'''


def code(folder: Path, imports: str = "") -> str:
    file = folder / "dataset" / "notes.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(PLUGIN.format(imports=imports))
    for name in [name for name in sys.modules if name.startswith("_toolkit_local_")]:
        del sys.modules[name]
    return source_code_of(Offer("dataset", "notes", str(file), file).load())


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_an_edited_module_that_a_plugin_imports_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.syspath_prepend(str(elsewhere))
    alone = code(tmp_path)
    assert alone == (tmp_path / "dataset/notes.py").read_text()
    seen = {alone}
    for file, text in {
        "dataset/words.py": "import spelled\n",  # beside it
        "spelled.py": "import words\n",  # which that one imports: in the folder above; and in a circle
        "elsewhere/deep/inside/spelling.py": "FIRST = 1\n",  # in folders without __init__.py
        "elsewhere/deep/__init__.py": "SECOND = 2\n",
    }.items():
        write(tmp_path / file, text)
        now = code(tmp_path)
        assert text in now
        assert now not in seen, file
        assert now.count(text) == 1
        seen.add(now)
        write(tmp_path / file, f"{text}EDITED = True\n")
        assert code(tmp_path) not in seen, file
        write(tmp_path / file, text)
    write(tmp_path / "dataset/unrelated.py", "OTHER = 1\n")
    assert code(tmp_path) == now


def test_libraries_and_the_toolkit_itself_have_versions(tmp_path: Path) -> None:
    write(tmp_path / "site-packages/words.py", "WORDS = 1\n")
    sys.path.append(str(tmp_path / "site-packages"))
    try:
        assert "WORDS" not in code(tmp_path)
    finally:
        sys.path.remove(str(tmp_path / "site-packages"))
    own = source_code_of(TextFiles)
    assert own == Path(sys.modules[TextFiles.__module__].__file__ or "").read_text(encoding="utf-8")


def test_a_plugin_that_cannot_be_read_has_none() -> None:
    made: type = type("Made", (), {"__module__": "made.in.memory"})
    assert source_code_of(made) == ""
