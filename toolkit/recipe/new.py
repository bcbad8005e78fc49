"""Creates a new recipe as a copy of another one, comments included. There is no inheritance between recipes."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.errors import UnavailableError, UsageError
from toolkit.recipe import catalog, document


def write_copy(origin: str, new_name: str) -> str:
    """Copy the recipe `origin` to NEW_NAME.yaml, and return the path as commands take it: ./NEW_NAME.yaml.

    Raises:
        UsageError: there is no such recipe, the new file exists already, or its name is not valid.
        UnavailableError: it cannot be written.
    """
    source = catalog.find(origin)
    target = Path(f"{new_name.removesuffix('.yml').removesuffix('.yaml')}.yaml")
    if not re.fullmatch(r"[\w.-]*\w\.yaml", target.name) or target.name.startswith((".", "-")):
        raise UsageError(f"{new_name!r} is not a valid recipe name: use letters, digits, - and _")
    shown = str(target) if target.is_absolute() else f"./{target}"
    text = document.read(source).text
    # The comments name the command that runs the recipe; in the copy they should name the new recipe.
    named = rf"\btoolkit recipe run (?:[\w./-]*/)?{re.escape(source.stem)}(?:\.ya?ml)?(?![\w.-])"
    text = re.sub(named, lambda _: f"toolkit recipe run {shown}", text)
    write_new(target, text, shown)
    return shown


def write_new(target: Path, text: str, shown: str) -> None:
    """Create a recipe's file, called `shown` in messages.

    Raises:
        UsageError: it is there already.
        UnavailableError: it cannot be written.
    """
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{shown} already exists and was not changed; choose another name") from None
    except OSError as error:
        raise UnavailableError(f"cannot write {shown}: {error.strerror}") from None
