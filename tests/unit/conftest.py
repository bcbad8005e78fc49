"""What the tests of the command line begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import RECIPE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe in it, in which the commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOOLKIT_RUNS", raising=False)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path
