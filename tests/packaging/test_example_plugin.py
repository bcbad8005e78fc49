"""The example is what the tutorial prints, and a package like anybody's: it installs beside ours and trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from toolkit.api import KINDS

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins/example"
TUTORIAL = ROOT / "plugins/README.md"

RECIPE = """\
recipe: 1
dataset: {plugin: python-docs, max_samples: 60, eval_fraction: 0.1}
tokenizer: {plugin: byte-bpe, vocab_size: 400}
model: {plugin: gpt2, num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 2}
objective: {plugin: causal-lm, block_size: 32}
memory: [bitfit]
training: {max_steps: 4, global_batch_size: 4}
"""


def test_the_tutorial_prints_the_example_word_for_word() -> None:
    pattern = re.compile(r"<!-- the whole of (.+?) -->\n```python\n(.*?)```", re.DOTALL)
    printed = pattern.findall(TUTORIAL.read_text(encoding="utf-8"))
    assert [file for file, _ in printed] == ["plugins/example/src/toolkit_bitfit/__init__.py"]
    for file, text in printed:
        assert (ROOT / file).read_text(encoding="utf-8") == text
        assert len(text.splitlines()) <= 24


@pytest.mark.parametrize("kind", KINDS)
def test_the_tutorial_names_the_methods_of_every_kind(kind: str) -> None:
    (row,) = [line for line in TUTORIAL.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {kind} |")]
    for method in KINDS[kind].__abstractmethods__:
        assert f"`{method}(" in row


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wheels in an environment that borrows the dependencies of this one, but not its toolkit."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    for project in (ROOT, EXAMPLE):
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(project)]
        subprocess.run(build, check=True, capture_output=True)
    files = sorted(wheels.glob("*.whl"))
    assert [file.name.partition("-")[0] for file in files] == ["pretrain_toolkit", "toolkit_bitfit"]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *map(str, files)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but the .pth files in it, an editable install's, are not read.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A person's own folder, in which things happen to be called as libraries are."""
    for name in ("toolkit", "datasets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not this one')\n", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def command(environment: Path, *words: str, cwd: Path) -> str:
    variables = os.environ | {"XDG_CACHE_HOME": str(cwd / ".cache"), "HF_HUB_OFFLINE": "1"}
    for name in ("PYTHONPATH", "TOOLKIT_RUNS", "TOOLKIT_CACHE", "PYTHONWARNINGS"):
        variables.pop(name, None)
    done = subprocess.run(
        [str(environment / "bin/toolkit"), *words], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_example_installs_beside_ours_keeps_its_contract_and_trains(environment: Path, elsewhere: Path) -> None:
    listed = json.loads(command(environment, "plugin", "list", "--json", cwd=elsewhere))
    assert ("memory", "bitfit", "toolkit-bitfit 0.1.0") in {
        (plugin["kind"], plugin["name"], plugin["distribution"]) for plugin in listed
    }
    account = json.loads(command(environment, "plugin", "show", "memory", "bitfit", "--json", cwd=elsewhere))
    assert Path(account["place"].rpartition(":")[0]).is_relative_to(environment)
    checks = json.loads(command(environment, "plugin", "check", "memory", "bitfit", "--json", cwd=elsewhere))
    assert {check["name"] for check in checks} >= {"contract", "options", "apply", "resume"}
    assert all(check["passed"] for check in checks)

    assert "mine.yaml is valid" in command(environment, "recipe", "validate", "mine.yaml", cwd=elsewhere)
    result = json.loads(command(environment, "recipe", "run", "mine.yaml", "--json", cwd=elsewhere))
    assert result["steps"] == 4
    record = json.loads((elsewhere / "runs/mine/environment.json").read_text(encoding="utf-8"))
    assert "toolkit-bitfit 0.1.0" in record["plugins"]
    assert (elsewhere / "runs/mine/model/config.json").is_file()


@pytest.mark.slow
def test_the_examples_own_test_passes(environment: Path, tmp_path: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(EXAMPLE / "tests")]
    done = subprocess.run(
        [str(environment / "bin/python"), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_same_file_works_from_a_folder(environment: Path, elsewhere: Path) -> None:
    """As the tutorial says, without a package; the installed one of the same name would be its rival."""
    file = elsewhere / "my_plugins/memory/only_biases.py"
    file.parent.mkdir(parents=True)
    file.write_text((EXAMPLE / "src/toolkit_bitfit/__init__.py").read_text(encoding="utf-8"), encoding="utf-8")
    command(environment, "plugin", "check", "memory", "only-biases", "--plugins", "my_plugins", cwd=elsewhere)
    mine = elsewhere / "mine.yaml"
    mine.write_text(f"{RECIPE.replace('bitfit', 'only-biases')}plugin_paths: [./my_plugins]\n", encoding="utf-8")
    assert "mine.yaml is valid" in command(environment, "recipe", "validate", "mine.yaml", cwd=elsewhere)
