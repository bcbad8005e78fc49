"""A plugin of an outsider loads under the contract that it was written for, and says what does not match otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit import registry as registry_module
from toolkit.api import Strategy
from toolkit.errors import PluginError
from toolkit.registry import Registry

STRATEGY = '''
"""A strategy of an outsider."""

from toolkit.api import Strategy


class Mine(Strategy):
    """Does nothing."""

    fidelity = "exact"
    {body}
'''


@pytest.fixture
def written(tmp_path: Path) -> Registry:
    """A registry with the plugin memory/mine.py, which each test writes."""
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "mine.py").write_text("")
    return Registry.discover([tmp_path])


def load(registry: Registry, body: str = "", *, code: str = STRATEGY) -> type[Strategy]:
    target = registry.offer("memory", "mine").target
    assert isinstance(target, Path)
    target.write_text(code.replace("{body}", body), encoding="utf-8")
    loaded = registry.load("memory", "mine")
    assert issubclass(loaded, Strategy)
    return loaded


def test_a_plugin_that_names_no_version_is_of_the_first(written: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(written)
    monkeypatch.setattr(registry_module, "API_VERSION", 2)
    with pytest.raises(PluginError, match=r"for version 1 of the plugin API, and .* offers 2: upgrade the plugin"):
        written.offer("memory", "mine").load()


def test_a_plugin_of_a_later_version_is_refused_with_what_to_upgrade(written: Registry) -> None:
    with pytest.raises(
        PluginError, match=r"is written for version 2 of the plugin API, and pretrain-toolkit \S+ offers 1: upgrade pre"
    ):
        load(written, "api_version = 2")


def test_a_name_that_the_api_does_not_have_is_explained_by_its_version(written: Registry) -> None:
    with pytest.raises(PluginError, match=r"cannot import name 'Sparsifier' .* upgrade pretrain-toolkit if the plugin"):
        load(written, code="from toolkit.api import Sparsifier")


def test_a_plugin_loads_as_before_when_its_contract_gains_an_optional_parameter(
    written: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(self, model, run, *, verbose=False):
        return model

    monkeypatch.setattr(Strategy, "apply", apply)
    assert load(written, "def apply(self, model, run):\n        return model")


@pytest.mark.parametrize(
    "method",
    [
        "def apply(self, model, run, more=1):\n        return model",
        "def apply(self, *args, **kwargs):\n        return args[0]",
        "def changes(self, settings, device, **more):\n        return {}",
        "@classmethod\n    def candidates(cls, settings, device):\n        return []",
    ],
)
def test_a_method_may_take_more_than_it_is_passed(written: Registry, method: str) -> None:
    assert load(written, method)


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("def apply(self, model):\n        return model", r"apply takes \(self, model\) where memory plugins take"),
        ("def apply(self, run, model):\n        return model", r"apply takes \(self, run, model\) where"),
        ("def apply(self, model, run, more):\n        return model", r"apply takes \(self, model, run, more\) where"),
        (
            "def candidates(self, settings):\n        return []",
            r"candidates takes \(self, settings\) where memory",
        ),
    ],
)
def test_a_method_that_cannot_take_what_it_is_passed_is_refused(written: Registry, method: str, fault: str) -> None:
    with pytest.raises(PluginError, match=fault):
        load(written, method)
