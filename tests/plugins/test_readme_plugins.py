"""The plugins in plugins/README.md, as somebody would copy them from there, keep their contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from toolkit.registry import Registry
from toolkit.testing import assert_conforms

README = (Path(__file__).parents[2] / "plugins" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CLASSES = {name: code for code in BLOCKS for name in re.findall(r"class (\w+)\(Strategy\)", code)}


def test_the_readme_shows_a_model_a_loss_and_an_optimizer() -> None:
    assert set(CLASSES) == {"BitFit", "ZLoss", "HalfTheSteps"}


@pytest.mark.parametrize("name", CLASSES)
def test_it_keeps_its_contract(name: str, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / f"{name.lower()}.py").write_text(CLASSES[name], encoding="utf-8")
    assert_conforms("memory", name.lower(), registry=Registry.discover([tmp_path]))
