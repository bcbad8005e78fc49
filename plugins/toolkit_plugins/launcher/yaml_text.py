"""Plain data as the YAML that people write."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any


def as_yaml(*documents: Mapping[str, Any], comment: str = "") -> str:
    """The documents as one file; text of several lines as a block."""
    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import walk_tree

    yaml, text = YAML(), io.StringIO()
    yaml.representer.ignore_aliases = lambda *_: True  # readers of YAML skip anchors
    yaml.width, yaml.explicit_start = 1_000_000, len(documents) > 1
    yaml.indent(mapping=2, sequence=4, offset=2)
    text.write("".join(f"# {line}\n" for line in comment.splitlines()))
    for document in documents:
        walk_tree(document)
        yaml.dump(document, text)
    return text.getvalue()
