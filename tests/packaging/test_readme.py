"""README and documentation: their commands run, what they print from files is in the files, their links lead somewhere.

A block of shell commands says in the comment above it what is done with it here: `run: quick` runs in every test run,
`run: slow` with -m slow after the quick ones and in the same folder, `run: make` and `run: install` in a fresh clone.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from toolkit.cli.main import toolkit as command_line
from toolkit.recipe import catalog
from toolkit.recipe.document import parse
from toolkit.recipe.schema import SINGLE_SECTIONS
from toolkit.registry import Registry

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted(
    file for pattern in ("", "docs/", "docker/", "plugins/**/", "toolkit/**/") for file in ROOT.glob(f"{pattern}*.md")
)
BLOCK = re.compile(r"(?:<!-- (?P<remark>.+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
NO_DOCUMENT = {"./mine.yaml", "./my-model.yaml"}
"""Recipes of the reader's own."""


def blocks(document: Path) -> Iterator[tuple[str, str, str]]:
    """Remark, language and text of each block of code."""
    for block in BLOCK.finditer(document.read_text(encoding="utf-8")):
        yield block["remark"] or "", block["language"], block["text"]


def shell_blocks(how: str) -> list[str]:
    return [text for remark, language, text in blocks(README) if language == "sh" and remark == f"run: {how}"]


def run(commands: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run commands as a person would who has entered the environment, in a folder that is not the checkout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cache = str(folder / ".cache")
    environment = os.environ | {"PATH": path, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"} | variables
    for name in ("TOOLKIT_RUNS", "TOOLKIT_CACHE", "PYTHONWARNINGS"):
        environment.pop(name, None)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def passed(done: subprocess.CompletedProcess[str]) -> bool:
    print(done.stdout, done.stderr, sep="\n")
    return done.returncode == 0


def test_every_shell_block_of_the_readme_says_how_it_is_run() -> None:
    how = [remark for remark, language, _ in blocks(README) if language == "sh"]
    assert set(how) == {"run: make", "run: install", "run: quick", "run: slow"}


def test_the_quick_commands_of_the_readme_run(tmp_path: Path) -> None:
    assert all(passed(run(commands, tmp_path)) for commands in shell_blocks("quick"))
    assert (tmp_path / "mine.yaml").is_file()
    assert (tmp_path / ".toolkit/recipe.schema.json").is_file()


@pytest.mark.slow
def test_the_slow_commands_of_the_readme_run(tmp_path: Path) -> None:
    assert all(passed(run(commands, tmp_path)) for commands in [*shell_blocks("quick"), *shell_blocks("slow")])
    assert (tmp_path / "runs/quickstart/model/config.json").is_file()
    assert (tmp_path / "runs/quickstart/report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout, so there is nothing to clone")
def test_make_quickstart_in_a_fresh_clone(tmp_path: Path) -> None:
    """Of what is committed. Pip takes the packages from where it is set up to."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    assert "make quickstart\n" in shell_blocks("make")
    assert passed(run(f"make quickstart PYTHON={shlex.quote(sys._base_executable)}", clone))  # type: ignore[attr-defined]  # typeshed leaves it out
    assert (clone / "runs/quickstart/model/config.json").is_file()
    assert all(passed(run(f"source .venv/bin/activate\n{commands}", clone)) for commands in shell_blocks("install"))
    assert passed(run("touch .venv/stays && make quickstart && test -e .venv/stays", clone))


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test\n" in shell_blocks("make")
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


def test_make_says_what_it_lacks(tmp_path: Path) -> None:
    """With a Python that is too old, and without one: a sentence, and nothing made."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ("pyproject.toml", "constraints.txt"):
        (tmp_path / file).touch()
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (str(old), ""):
        done = run(f"make quickstart PYTHON={python}", tmp_path)
        assert done.returncode != 0
        assert "This needs Python 3.11 or later" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_printed_from_a_file_is_in_it(document: Path) -> None:
    """Word for word, but for a recipe's comments, and with the lines that a section leaves out left out."""
    for remark, language, text in blocks(document):
        if not remark.startswith("from "):
            continue
        source = (ROOT / remark.removeprefix("from ")).read_text(encoding="utf-8")
        if document == README:
            assert source.strip().endswith(text.strip())
        else:
            assert language == "yaml"
            lines = iter(without_comments(source))
            missing = [line for line in without_comments(text) if line not in lines]
            assert not missing


def without_comments(yaml: str) -> list[str]:
    lines = (re.sub(r"(^|\s+)#.*", "", line).rstrip() for line in yaml.splitlines())
    return [line for line in lines if line]


def test_something_is_printed_from_files() -> None:
    sources = [remark for document in DOCUMENTS for remark, _, _ in blocks(document) if remark.startswith("from ")]
    assert "from recipes/quickstart.yaml" in sources
    assert any(source.startswith("from plugins/example") for source in sources)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists_with_its_options(document: Path) -> None:
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^|`)(?:!|python -m )?(toolkit [^`\n]+)", text, re.MULTILINE):
        assert unknown_in(shlex.split(line, comments=True)[1:]) == [], line


def unknown_in(words: list[str]) -> list[str]:
    """The words of a command that the command line, or the catalog of recipes, does not know."""
    context, command = click.Context(command_line, **command_line.context_settings), command_line
    rest = list(words)
    while rest and isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        if found is None:
            return [rest[0]]
        command = found
        rest.pop(0)
    options = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help"}
    unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options]
    if command.name in ("run", "show", "validate") and rest and "recipe" in words and not rest[0].startswith("-"):
        name = rest[0]
        if name not in catalog.shipped() and name not in NO_DOCUMENT and not name.isupper():
            unknown.append(name)
    return unknown


def test_a_command_that_does_not_exist_would_be_found() -> None:
    assert unknown_in(["recipe", "fly"]) == ["fly"]
    assert unknown_in(["recipe", "run", "quickstart", "--quick"]) == ["--quick"]
    assert unknown_in(["recipe", "run", "slowstart"]) == ["slowstart"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    """In the repository; on the website, `make docs` sees to it."""
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def anchors(document: Path) -> set[str]:
    """What GitHub calls a document's headings in a link."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_recipe_may_say_is_valid(document: Path) -> None:
    """Of plugins that are written out between backticks: `model: {plugin: gpt2, parameters: 30M}`."""
    registry = Registry.discover()
    for line in re.findall(
        rf"`((?:{'|'.join(SINGLE_SECTIONS)}): \{{plugin: [^`]+\}})`", document.read_text(encoding="utf-8")
    ):
        ((section, options),) = parse(line, document.name).data.items()
        registry.load(SINGLE_SECTIONS[section], options.pop("plugin")).model_validate(options)


def test_the_two_languages_tell_the_same() -> None:
    """The same cells with the same code and the same lines of recipes; the words are each language's own."""
    english, spanish = (list(blocks(ROOT / "docs" / name)) for name in ("from-the-notebook.md", "desde-el-notebook.md"))
    assert english == spanish


def test_the_changelog_names_every_recipe() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [name for name in catalog.shipped() if f"`{name}`" not in text] == []


def test_recipes_point_to_documents_that_are_there() -> None:
    for recipe in catalog.shipped().values():
        named = re.findall(r"\b(?:docs|plugins|docker)/[\w./-]+\.md", recipe.read_text(encoding="utf-8"))
        assert [document for document in named if not (ROOT / document).is_file()] == []
