"""What `toolkit plugin show` tells of a plugin."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.cli import render

if TYPE_CHECKING:
    from toolkit.api import Plugin
    from toolkit.registry import Registry

FACTS = ("claims", "fidelity", "phase", "task")
"""What a class may declare beside its options."""


def account_of(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """The plugin's description, facts, options and place, and an example, as plain data."""
    from toolkit.recipe.schema import FILTERS, FILTERS_PROPERTY

    loaded = registry.load(kind, name)
    schema = loaded.model_json_schema()
    properties = schema.setdefault("properties", {})
    properties |= {FILTERS: FILTERS_PROPERTY} if kind == "dataset" else {}
    described = {option: _option(option, schema) for option in properties}
    declared = {fact: getattr(loaded, fact) for fact in FACTS if hasattr(loaded, fact)}
    return {
        "kind": kind,
        "name": name,
        "description": inspect.cleandoc(loaded.__doc__ or ""),
        "facts": {
            **{fact: sorted(value) if isinstance(value, frozenset) else value for fact, value in declared.items()},
            **_requirements(loaded),
        },
        "distribution": registry.offer(kind, name).distribution,
        "class": f"{loaded.__module__}:{loaded.__qualname__}",
        "place": _place(loaded),
        "options": list(described.values()),
        "example": _example(kind, name, described),
    }


def _requirements(loaded: type[Plugin]) -> dict[str, list[str]]:
    """What a memory strategy requires with its default options."""
    from toolkit.api import Strategy

    if not issubclass(loaded, Strategy):
        return {}
    try:
        requires = loaded.model_construct().requires()
    except AttributeError:  # they depend on an option without a default
        return {}
    return {"requires": sorted(f"{one.kind} {one.name}" for one in requires)}


def _option(option: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    property_ = schema["properties"][option]
    return {
        "name": option,
        "type": _type(property_, schema.get("$defs", {})),
        "required": option in schema.get("required", []),
        "default": property_.get("default"),
        "description": " ".join(property_.get("description", "").split()),
    }


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words: `integer >= 1`, `auto | bf16`, `list of text`."""
    if "$ref" in schema:
        return _type(definitions.get(name := schema["$ref"].rpartition("/")[2], {"type": name}), definitions)
    if "anyOf" in schema:
        return " | ".join(_type(choice, definitions) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), definitions)}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[limit]}" for limit, sign in signs.items() if limit in schema]
    words = {"object": "mapping", "number": "number", "string": "text", "boolean": "true | false"}
    word = str(schema.get("type", "any"))
    return " ".join([words.get(word, word), *limits])


def _place(loaded: type[Plugin]) -> str:
    """file:line of the class, which editors and terminals turn into a link."""
    return f"{inspect.getsourcefile(loaded)}:{inspect.getsourcelines(loaded)[1]}"


def _example(kind: str, name: str, described: Mapping[str, Mapping[str, Any]]) -> str:
    """A recipe line that names the plugin, with its required options and one other."""
    from toolkit.recipe.schema import FILTERS, LIST_SECTIONS

    shown = {option: f"<{about['type']}>" for option, about in described.items() if about["required"]}
    optional = {option: about["default"] for option, about in described.items() if about["default"] is not None}
    for option, default in list(optional.items())[:1]:
        shown[option] = render.yaml_word(default)
    inner = ", ".join([f"plugin: {name}", *(f"{option}: {value}" for option, value in shown.items())])
    if kind == "launcher":
        return f"toolkit recipe launch NAME --on {name}" + "".join(f" --option {key}={to}" for key, to in shown.items())
    lists = {of: section for section, of in LIST_SECTIONS.items()} | {"filter": FILTERS}
    return f"{lists[kind]}: [{{{inner}}}]" if kind in lists else f"{kind}: {{{inner}}}"
