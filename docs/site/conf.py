"""Sphinx builds the site from the same files that are read on GitHub: `make docs`.

The source folder is the root of the repository, so that a link from one file to another is right in both places.
"""

import os
import re
from pathlib import Path

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import toolkit

ROOT = Path(__file__).parents[2]

project = "pretrain-toolkit"
version = release = toolkit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("docs/*.md", "docs/site/*.md", "docker/*.md", "plugins/README.md", "plugins/example/README.md"),
    *(str(note.relative_to(ROOT)) for note in ROOT.glob("toolkit/**/NOTES.md")),
]
exclude_patterns = [".*", "*.egg-info", "build", "dist", "runs", "tests"]  # folders that need not be walked through
myst_heading_anchors = 4

default_role = "literal"  # `name` in a docstring

html_theme = "furo"
html_title = project
html_copy_source = False
html_permalinks = False  # a mark after each heading, which a search would index

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

NAPOLEON = Config(napoleon_use_rtype=False)

CONTENTS = {
    "Train": [
        *("docs/from-the-notebook", "docs/desde-el-notebook", "docs/your-own", "docs/cleaning", "docs/mixtures"),
        *("docs/streaming", "docs/what-to-train", "docs/sweeps", "docs/will-it-fit", "docs/how-fast"),
        "docs/learning-sooner",
    ],
    "Run": [
        *("docs/many-machines", "docs/when-something-goes-wrong", "docs/quickstart-choice"),
        *("docs/site/recipes", "docker/README"),
    ],
    "Extend": ["plugins/README", "plugins/example/README", "docs/site/api"],
    "Call": ["docs/python-api", "docs/site/python", "docs/site/errors"],
    "Carry it on": [
        "docs/architecture",
        "toolkit/planning/NOTES",
        "toolkit/training/NOTES",
        "toolkit/data/NOTES",
        "docker/NOTES",
        "CONTRIBUTING",
        "SECURITY",
        "CHANGELOG",
    ],
}
"""The sidebar: captions and pages; a page of docs/ that is not named here goes to the end of "Extend"."""
LISTED = {page for pages in CONTENTS.values() for page in pages}
CONTENTS["Extend"] += sorted({f"docs/{file.stem}" for file in (ROOT / "docs").glob("*.md")} - LISTED)
PAGES = {
    "recipes": "docs/site/recipes.md",
    "toolkit/api": "docs/site/api.md",
    "toolkit/errors": "docs/site/errors.md",
    "plugins/example": "plugins/example/README.md",
}
"""Files and folders of the repository that have a page here, for links that lead to them."""
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)\s#]+)\)")


def on_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead a page's links to pages, and give the first page the sidebar and the recipes' page the recipes."""
    folder = (ROOT / page).parent

    def lead(link: re.Match[str]) -> str:
        text, target = link.groups()
        place = os.path.normpath(folder / target)
        name = os.path.relpath(place, ROOT)
        if own := PAGES.get(name.removesuffix(".py")):
            return f"[{text}](/{own})"
        return text if Path(place).is_dir() else link.group()  # a folder can be read in the repository alone

    source[0] = LINK.sub(lead, source[0])
    if page == root_doc:
        source[0] += "".join(_sidebar(caption, pages) for caption, pages in CONTENTS.items())
    if page == "docs/site/recipes":
        recipes = sorted(file.name for file in (ROOT / "recipes").glob("*.yaml"))
        source[0] += "".join(f"\n## {name}\n\n```{{literalinclude}} /recipes/{name}\n```\n" for name in recipes)


def _sidebar(caption: str, pages: list[str]) -> str:
    rows = "\n".join(f"/{page}" for page in pages)
    return f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{rows}\n```\n"


def as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Take docstrings as we write them: Google's sections, and Markdown's blocks of code."""
    for number in range(len(lines) - 2, 0, -1):
        before, blank, after = lines[number - 1 : number + 2]
        if after.startswith("    ") and not blank and before and not before.startswith((" ", "* ", "- ")):
            lines[number:number] = ["", "::"]
    if what not in ("attribute", "property", "data"):  # where napoleon takes all before the first colon for a type
        lines[:] = GoogleDocstring(lines, NAPOLEON).lines()


def constructor(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str
) -> tuple[str, str] | None:
    """Leave out the parameters of a plugin, which are its attributes, and those whose defaults are no Python."""
    plugin = isinstance(obj, type) and issubclass(obj, BaseModel)
    return ("", "") if plugin or "<f" in (signature or "") else None


def first_page(app: Sphinx, error: Exception | None) -> None:
    """Lead from index.html, where a server looks, to the first page."""
    target = f'<meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">{project}</a>\n'
    Path(app.outdir, "index.html").write_text(f"<!doctype html><title>{project}</title>{target}")


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", as_written)
    app.connect("autodoc-process-signature", constructor)
    app.connect("source-read", on_the_site)
    app.connect("build-finished", first_page)
