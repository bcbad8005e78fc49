"""The JSON Schema of recipes, with which editors complete and check them: every plugin with all its options.

It loads every plugin. One that cannot be loaded is offered by name with its options unchecked, and is reported, so
that the editor still helps with the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.api import KINDS
from toolkit.errors import PluginError, UnavailableError
from toolkit.recipe.schema import (
    DEFAULTS,
    FILTERS,
    FILTERS_PROPERTY,
    FORMAT,
    LIST_SECTIONS,
    PLUGIN_KIND,
    SINGLE_SECTIONS,
)
from toolkit.recipe.settings import Training
from toolkit.registry import Registry

DESCRIPTIONS = {
    "recipe": "The format of this recipe.",
    "description": "One sentence that `toolkit recipe list` shows.",
    "plugin_paths": "Folders of plugins of your own, relative to this file, laid out as FOLDER/KIND/NAME.py.",
    "dataset": "Where the text comes from.",
    "tokenizer": "How text becomes token ids.",
    "model": "What is trained.",
    "objective": "What the model learns from the tokens.",
    "optimizer": "How gradients update the weights.",
    "memory": "Strategies that save memory, or protect the run, at a price; their order does not matter.",
    "callbacks": "What happens while the model trains.",
    "exporters": "What is done with the finished model.",
    "training": "How long, how fast, how often.",
}


def schema(registry: Registry) -> tuple[dict[str, Any], list[PluginError]]:
    """Return the JSON Schema of recipes that may use these plugins, and the errors of plugins that did not load."""
    definitions: dict[str, Any] = {}
    failures: list[PluginError] = []
    for kind in KINDS:
        options = []
        for name in registry.names(kind):
            try:
                options.append(_plugin(registry, kind, name, definitions))
            except PluginError as error:
                failures.append(error)
                options.append(_unknown(name, str(error)))
        definitions[kind] = {"oneOf": [_bare_name(registry.names(kind)), *options]}
    training, nested = _without_definitions(Training.model_json_schema(ref_template="#/$defs/training.{model}"))
    definitions |= {f"training.{name}": definition for name, definition in nested.items()}
    definitions["training"] = training
    parts = {section: _ref(kind) for section, kind in SINGLE_SECTIONS.items()}
    lists = {section: {"type": "array", "items": _ref(kind)} for section, kind in LIST_SECTIONS.items()}
    properties: dict[str, Any] = {
        "recipe": {"const": FORMAT},
        "description": {"type": "string"},
        "plugin_paths": {"type": "array", "items": {"type": "string"}},
        **parts,
        **lists,
        "training": _ref("training"),
    }
    for section, property_ in properties.items():
        property_["description"] = DESCRIPTIONS[section]
        if section in DEFAULTS:
            property_["default"] = DEFAULTS[section]
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Recipe of pretrain-toolkit",
        "type": "object",
        "additionalProperties": False,
        "required": [section for section in properties if section not in DEFAULTS],
        "properties": properties,
        "$defs": definitions,
    }
    return document, failures


def write(document: Mapping[str, Any], target: Path) -> None:
    """Write the schema where editors look for it, replacing an older one.

    Raises:
        UnavailableError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UnavailableError(f"cannot write {target}: {error.strerror}") from None


def _plugin(registry: Registry, kind: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of `{plugin: NAME, ...}`; adds what it refers to to the definitions."""
    prefix = f"{kind}.{name}"
    loaded = registry.load(kind, name)
    written, nested = _without_definitions(
        _with_plugins(loaded.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}"))
    )
    definitions |= {f"{prefix}.{model}": definition for model, definition in nested.items()}
    definitions[prefix] = {
        "type": "object",
        "title": f"{kind}: {name}",
        "description": written.get("description", ""),
        "additionalProperties": False,
        "required": ["plugin", *written.get("required", [])],
        "properties": {
            "plugin": {"const": name, "description": written.get("description", "")},
            **written.get("properties", {}),
            **({FILTERS: FILTERS_PROPERTY} if kind == "dataset" else {}),
        },
    }
    return _ref(prefix)


def _without_definitions(written: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    nested = written.pop("$defs", {})
    return written, nested


def _with_plugins(written: Any) -> Any:
    """The schema in which an option that is itself a plugin refers to the plugins of its kind."""
    if isinstance(written, list):
        return [_with_plugins(item) for item in written]
    if not isinstance(written, dict):
        return written
    if kind := written.get(PLUGIN_KIND):
        return {**_ref(kind), "description": written.get("description", "")}
    return {key: _with_plugins(value) for key, value in written.items()}


def _unknown(name: str, why: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["plugin"],
        "properties": {"plugin": {"const": name, "description": f"Its options are unknown: {why}"}},
    }


def _bare_name(names: list[str]) -> dict[str, Any]:
    return {"enum": names, "description": "The name of a plugin alone: all its options have their defaults."}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}
