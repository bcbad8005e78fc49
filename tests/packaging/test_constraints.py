"""The two sets of versions that the tests are run with fit the ranges that pyproject.toml accepts."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Requirement]:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in declared}


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    found = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(found) == len(lines)
    return found


def test_the_exact_set_lies_in_the_ranges() -> None:
    exact = pins("constraints.txt")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in (*project().values(), *(Requirement(text) for extra in extras.values() for text in extra)):
        assert exact[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_exact_set_has_no_builds_of_one_machine() -> None:
    for version in (*pins("constraints.txt").values(), *pins("constraints-oldest.txt").values()):
        assert re.fullmatch(r"[0-9a-z.]+", version)


def test_the_oldest_set_is_the_lower_end_of_the_ranges() -> None:
    lower = {}
    for name, requirement in project().items():
        (bound,) = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        lower[name] = bound
    assert {name: Version(version) for name, version in pins("constraints-oldest.txt").items()} == lower


def test_the_exact_set_is_complete() -> None:
    """Everything that the toolkit needs, directly or not, is pinned; what another platform needs is not known here."""
    exact, seen, todo = pins("constraints.txt"), set(), ["pretrain-toolkit"]
    if metadata.version("transformers") != exact["transformers"]:
        pytest.skip("another set is installed here, with needs of its own")
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen or name == "torch":  # whose own needs depend on the build: CUDA's libraries, triton
            continue
        seen.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            pytest.fail(f"{name} is not installed")
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                todo.append(need.name)
    assert seen - {"pretrain-toolkit"} <= exact.keys()
