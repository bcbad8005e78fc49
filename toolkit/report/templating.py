"""The templates of the pages, how they write numbers, and the file that a page goes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import formatting
from toolkit.errors import UnavailableError
from toolkit.system.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment


def templates() -> Environment:
    """The environment of the templates, which escapes what it puts in, and knows the filters for numbers."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("toolkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"count": count, "shown": shown}
    found.filters |= {
        name: getattr(formatting, name)
        for name in ("compact", "counted", "duration", "loss", "perplexity", "share", "size")
    }
    return found


def write_page(page: str, target: Path) -> None:
    """Write a page of HTML.

    Raises:
        UnavailableError: the file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, page)
    except OSError as error:
        raise UnavailableError(f"cannot write the report {target}: {error.strerror}; choose another --output") from None


def count(value: float) -> str:
    """An exact count with thousands separators: 1,234,567."""
    return f"{round(value):,}"


def shown(value: Any) -> str:
    """A plain value in YAML notation."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{float(value):g}" if isinstance(value, float) else str(value)
