"""What `plugin new` writes works: for each kind it installs, keeps its contract, passes its own test and trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.command_line import process, toolkit
from toolkit.api import KINDS
from toolkit.cli.scaffold import RECIPE_LINES

RECIPE = """\
recipe: 1
dataset: {plugin: my-dataset, documents: 200, filters: [my-filter]}
tokenizer: my-tokenizer
model: {plugin: my-model, hidden_size: 32}
objective: {plugin: my-objective, block_size: 64}
optimizer: my-optimizer
memory: [my-memory]
callbacks: [my-callback]
exporters: [model-folder, my-exporter]
training: {max_steps: 10, global_batch_size: 4, learning_rate: 0.1}
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one new package for each kind."""
    folder = tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        toolkit("plugin", "new", kind, f"my-{kind}", "--directory", str(folder))
    return folder


@pytest.fixture(scope="module")
def path(packages: Path) -> str:
    """A PYTHONPATH by which Python finds them as if installed: sources, and the metadata that pip would write."""
    for kind in KINDS:
        package = packages / f"my-{kind}"
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        metadata = package / "src" / f"my_{kind}-{project['version']}.dist-info"
        metadata.mkdir()
        heads = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
        (metadata / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in heads.items()))
        groups = project["entry-points"].items()
        lines = [f"[{group}]\n{name} = {target}\n" for group, names in groups for name, target in names.items()]
        (metadata / "entry_points.txt").write_text("".join(lines))
    return os.pathsep.join(str(packages / f"my-{kind}" / "src") for kind in KINDS)


def test_there_is_a_template_for_each_kind(packages: Path) -> None:
    assert RECIPE_LINES.keys() == KINDS.keys()
    files = {str(file.relative_to(packages)) for file in packages.rglob("*") if file.is_file()}
    for kind in KINDS:
        folder = f"my-{kind}"
        assert {
            f"{folder}/pyproject.toml",
            f"{folder}/README.md",
            f"{folder}/src/my_{kind}/__init__.py",
            f"{folder}/src/my_{kind}/py.typed",
            f"{folder}/tests/test_my_{kind}.py",
        } <= files


def test_nothing_of_the_templates_is_left_over(packages: Path) -> None:
    for file in packages.rglob("*.*"):
        assert "$" not in file.read_text()


def test_what_is_there_is_never_overwritten(packages: Path) -> None:
    file = packages / "my-memory" / "README.md"
    file.write_text("mine")
    answer = toolkit("plugin", "new", "memory", "my-memory", "--directory", str(packages), status=2)
    assert "already exists and was not changed" in answer.err
    assert file.read_text() == "mine"


def test_every_new_plugin_keeps_its_contract_and_imports_nothing_heavy(path: str, tmp_path: Path) -> None:
    lines = {kind: line.replace("$name", f"my-{kind}") for kind, line in RECIPE_LINES.items()}
    lines["filter"] = f"  {lines['filter']}"
    lines["dataset"] = "dataset:\n  plugin: my-dataset"
    (tmp_path / "mine.yaml").write_text("\n".join(["recipe: 1", *lines.values(), ""]))
    probe = """
import sys
from toolkit.cli.main import main
try:
    main()
finally:
    print('torch' in sys.modules or 'transformers' in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", probe, "recipe", "validate", "mine.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("mine.yaml is valid\nFalse\n", "")


@pytest.mark.skipif(not shutil.which("ruff", path=str(Path(sys.executable).parent)), reason="ruff is not installed")
def test_the_new_code_is_formatted_and_clean(packages: Path) -> None:
    ruff = str(Path(sys.executable).with_name("ruff"))
    rules = ["--isolated", "--line-length", "120"]
    for words in (
        ["format", "--check"],
        ["check", "--select", "E,F,W,I,B,UP,SIM,RUF,PT,PTH,RET,D1", "--ignore", "D102,D103"],
    ):
        done = subprocess.run(
            [ruff, *words, *rules, str(packages)], capture_output=True, text=True, check=False, cwd=packages
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_they_install_pass_their_checks_and_train_together(packages: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    fresh = tmp_path / "packages"
    shutil.copytree(packages, fresh, ignore=shutil.ignore_patterns("*.dist-info", "__pycache__"))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*install, *map(str, sorted(fresh.iterdir()))], check=True)
    environment = {"PYTHONPATH": str(site), "TOOLKIT_CACHE": str(tmp_path / "cache")}
    for kind in KINDS:
        checks = process("plugin", "check", kind, f"my-{kind}", "--quick", "--json", cwd=tmp_path, **environment)
        assert checks.status == 0, checks
        assert checks.json
    tests = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", str(fresh)]
    done = subprocess.run(
        tests, env={**os.environ, **environment}, cwd=fresh, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(KINDS)} passed" in done.stdout

    (tmp_path / "mine.yaml").write_text(RECIPE)
    answer = process("recipe", "run", "mine.yaml", "--json", cwd=tmp_path, **environment)
    assert answer.status == 0, answer.err
    assert answer.json["steps"] == 10
    assert "the lowest validation loss so far" in answer.err
    assert "parameters are not trained" in answer.err
    config = json.loads((tmp_path / "runs/mine/model-bfloat16/config.json").read_text())
    assert config["model_type"] == "gpt_neox"
