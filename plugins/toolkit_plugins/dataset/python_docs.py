"""English text that comes with every CPython: the language reference and the docs of its standard library."""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from toolkit.api import Dataset, Peek, RunContext, UnavailableError
from toolkit_plugins.dataset.arrow import dataset_of

if TYPE_CHECKING:
    import datasets

EXCLUDED_PACKAGES = frozenset({"encodings", "idlelib", "test", "tests", "turtledemo"})
"""Encoding tables that share one sentence, programs and tests: their docstrings are labels rather than prose."""
REHEARSAL_SAMPLES = 400

Section = Literal["reference", "library"]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class PythonDocs(Dataset):
    """About two million characters of English that come with Python itself: no network, no account, no files.

    A document is a topic of the language reference, a module with its functions, or a class with its methods. The
    text is the running Python's, so other versions give slightly different data. Nothing is imported or executed.
    """

    licenses: ClassVar[tuple[str, ...]] = ("PSF-2.0",)
    languages: ClassVar[tuple[str, ...]] = ("en",)

    section: Section | None = None
    """Only a part of it: `reference`, the topics of the language reference, or `library`, the modules and classes."""

    def rehearse(self) -> Self:
        """The same with a few hundred documents, enough to see that everything works."""
        return self.model_copy(update={"max_samples": min(REHEARSAL_SAMPLES, self.max_samples or REHEARSAL_SAMPLES)})

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """Read the sources of the standard library, or the cache if this Python's have been read before."""
        from datasets import DatasetDict

        library = Path(sysconfig.get_path("stdlib"))
        key = ("python-docs", 1, str(library), sys.version, *([self.section] if self.section else ()))
        documents = dataset_of(_documents(library, self.section), key=key, cache=run.cache)
        return DatasetDict({"train": documents})

    def fingerprint(self, run: RunContext) -> str:
        """The version of Python, and the folder of its library."""
        return f"{sysconfig.get_path('stdlib')} {sys.version}"

    def peek(self, run: RunContext) -> Peek:
        """Read the first document."""
        library = Path(sysconfig.get_path("stdlib"))
        what = f"the {self.section or 'documentation'} of Python {sys.version_info.major}.{sys.version_info.minor}"
        return Peek(what, next(_documents(library, self.section)))


def _documents(library: Path, section: Section | None) -> Iterator[str]:
    """All documents, in the order of the files' names, without repeated docstrings."""
    if not (library / "ast.py").is_file():
        raise UnavailableError(
            f"this Python comes without the sources of its library (there is no {library / 'ast.py'}), and python-docs "
            f"reads them; use a Python from python.org or a package manager, or the dataset text-files"
        )
    topics = library / "pydoc_data" / "topics.py"
    if topics.is_file() and section != "library":
        yield from dict.fromkeys(_topics(topics))
    if section == "reference":
        return
    seen: set[str] = set()
    for source in _sources(library):
        name = ".".join(source.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        yield from _docstrings(_parsed(source), name, seen)


def _sources(library: Path) -> Iterator[Path]:
    # sys.stdlib_module_names leaves out what a distribution or a build adds: site-packages, build settings.
    for module in sorted(sys.stdlib_module_names - EXCLUDED_PACKAGES):
        files = [library / f"{module}.py", *sorted((library / module).rglob("*.py"))]
        for file in files:
            if file.is_file() and EXCLUDED_PACKAGES.isdisjoint(file.relative_to(library).parts):
                yield file


def _parsed(source: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(source.read_bytes(), filename=str(source))


def _topics(source: Path) -> Iterator[str]:
    """The topics of `help()`, which are a dictionary literal in the source."""
    for statement in _parsed(source).body:
        if isinstance(statement, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            yield from (text.strip() for text in topics.values())


def _docstrings(node: ast.Module | ast.ClassDef, name: str, seen: set[str]) -> Iterator[str]:
    """The document of a module or a class: its own docstring and its functions'; then those of its classes."""
    heading = f"{'class' if isinstance(node, ast.ClassDef) else 'module'} {name}"
    sections = [text] if (text := _new_docstring(node, seen)) else []
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and (text := _new_docstring(child, seen)):
            sections.append(f"{child.name}({ast.unparse(child.args)})\n\n{text}")
    if sections:
        yield "\n\n".join([heading, *sections])
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{name}.{child.name}", seen)


def _new_docstring(node: Documented, seen: set[str]) -> str:
    text = (ast.get_docstring(node) or "").strip()
    if text in seen:
        return ""
    seen.add(text)
    return text
