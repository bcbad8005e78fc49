"""The plugins in plugins/README.md, as somebody would copy them from there, keep their contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from toolkit.registry import Registry
from toolkit.testing import assert_conforms

README = (Path(__file__).parents[2] / "plugins" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CLASSES = {name: code for code in BLOCKS for name in re.findall(r"class (\w+)\((?:Strategy|Filter)\)", code)}


def test_the_readme_shows_a_model_a_loss_an_optimizer_and_a_filter() -> None:
    assert set(CLASSES) == {"BitFit", "ZLoss", "HalfTheSteps", "WithoutWords"}


@pytest.mark.parametrize("name", CLASSES)
def test_it_keeps_its_contract(name: str, tmp_path: Path) -> None:
    kind, options = ("filter", {"words": ["cat"]}) if "(Filter)" in CLASSES[name] else ("memory", None)
    (tmp_path / kind).mkdir()
    (tmp_path / kind / f"{name.lower()}.py").write_text(CLASSES[name], encoding="utf-8")
    assert_conforms(kind, name.lower(), registry=Registry.discover([tmp_path]), options=options)
