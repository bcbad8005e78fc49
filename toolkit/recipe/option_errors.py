"""What pydantic finds wrong with an option, in the terms of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from toolkit.errors import nearest


def option_error(error: ErrorDetails, model: type[BaseModel], *, also: Sequence[str] = ()) -> str:
    """A pydantic error in a recipe's words; `model` is the class of the options, `also` those that a recipe adds."""
    known = [*model.model_fields, *also]
    for part in error["loc"][:-1]:  # to the class that the option belongs to, if options are nested
        info = model.model_fields.get(str(part))
        if inner := _model_in(info.annotation if info else None):
            model, known = inner, [*inner.model_fields]
    field = str(error["loc"][-1]) if error["loc"] else ""
    given = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return f"no such option; {nearest(field, known)}"
        case "missing":
            info = model.model_fields.get(field)
            about = f" ({info.description.splitlines()[0].rstrip('.')})" if info and info.description else ""
            return f"this option is required{about}"
        case "value_error":
            return str(error["ctx"]["error"])
        case "literal_error" if isinstance(given, str):
            expected = error["ctx"]["expected"]
            return f"{given!r} is not one of {expected}"
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, but this is {_shown(given)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
