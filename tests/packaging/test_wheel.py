"""What `pip install` puts in place: a wheel finds its recipes and plugins anywhere, and so does a checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import toolkit
from toolkit.recipe import catalog

ROOT = Path(__file__).parents[2]
RECIPES = {file.stem for file in (ROOT / "recipes").glob("*.yaml")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source distribution of this tree, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in an environment of its own, which borrows the dependencies of this one but not its toolkit."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(built[1])]
    subprocess.run(pip, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but the .pth files in it, an editable install's, are not read.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def command(environment: Path, *words: str, cwd: Path) -> str:
    variables = os.environ | {"XDG_CACHE_HOME": str(cwd / ".cache")}
    for name in ("PYTHONPATH", "TOOLKIT_RUNS", "TOOLKIT_CACHE", "PYTHONWARNINGS"):
        variables.pop(name, None)
    done = subprocess.run(
        [str(environment / "bin/toolkit"), *words], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_what_it_should_and_no_more(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    info = f"pretrain_toolkit-{toolkit.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"toolkit", "toolkit_plugins", info}
    assert {Path(name).stem for name in names if name.startswith("toolkit/_recipes/")} == RECIPES
    for package, folder in (("toolkit", ROOT), ("toolkit_plugins", ROOT / "plugins")):
        files = {file for file in (folder / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts}
        assert {str(file.relative_to(folder)) for file in files} <= set(names)
    assert f"{info}/licenses/LICENSE" in names


def test_every_entry_point_is_in_the_wheel(built: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(built[1])
    entries = ConfigParser(delimiters=("=",))
    entries.read_string(wheel.read(f"pretrain_toolkit-{toolkit.__version__}.dist-info/entry_points.txt").decode())
    targets = [target for section in entries.sections() for target in entries[section].values()]
    assert len(targets) > 20
    missing = [target for target in targets if f"{target.split(':')[0].replace('.', '/')}.py" not in wheel.namelist()]
    assert missing == []


def test_the_source_distribution_can_be_built_without_the_checkout(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        top = {Path(*Path(name).parts[1:2]).name for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "hatch_build.py", "recipes", "plugins", "toolkit"} <= top
    assert not {"runs", "tests", ".venv", ".git"} & top


def test_an_installed_wheel_finds_its_recipes_and_plugins_anywhere(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(command(installed, "recipe", "list", "--json", cwd=tmp_path))
    assert {entry["name"] for entry in listed} == RECIPES
    assert all(Path(entry["file"]).is_relative_to(installed) for entry in listed)
    plugins = json.loads(command(installed, "plugin", "list", "--json", cwd=tmp_path))
    here = json.loads(command(Path(sys.prefix), "plugin", "list", "--json", cwd=tmp_path))
    assert [(plugin["kind"], plugin["name"]) for plugin in plugins] == [
        (plugin["kind"], plugin["name"]) for plugin in here
    ]
    command(installed, "recipe", "validate", *RECIPES, cwd=tmp_path)


@pytest.mark.slow
def test_an_installed_wheel_trains(installed: Path, tmp_path: Path) -> None:
    command(installed, "recipe", "run", "quickstart", "--rehearse", "--quiet", cwd=tmp_path)
    assert (tmp_path / "runs/quickstart-rehearsal/model/config.json").is_file()


@pytest.mark.skipif(not Path(toolkit.__file__).is_relative_to(ROOT), reason="this is no editable install")
def test_an_editable_install_reads_the_checkouts_own_recipes(tmp_path: Path) -> None:
    """No copy that would grow stale, from whatever folder the command is given."""
    assert not (ROOT / "toolkit/_recipes").exists()
    assert not list(Path(sysconfig.get_path("purelib")).glob("toolkit*"))
    assert {file.parent for file in catalog.shipped().values()} == {ROOT / "recipes"}
    listed = json.loads(command(Path(sys.prefix), "recipe", "list", "--json", cwd=tmp_path))
    assert {Path(entry["file"]) for entry in listed} == {ROOT / "recipes" / f"{name}.yaml" for name in RECIPES}
