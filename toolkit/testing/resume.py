"""A run with the plugin in it, killed and resumed, ends as if it had never stopped."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import RecipeError, TrainingError, UsageError
from toolkit.recipe.schema import MANY
from toolkit.testing.bench import Check
from toolkit.verify_resume import verify_resume

RECIPE: Mapping[str, Any] = {
    "recipe": 1,
    "dataset": "python-docs",
    "tokenizer": "byte-bpe",
    "model": {"plugin": "gpt2", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "dropout": 0.1},
    "objective": "causal-lm",
    "memory": [],
    "training": {"global_batch_size": 4, "learning_rate": 1e-3},
}
"""What stands beside the plugin that is tried."""
STOOD_IN_FOR = ("dataset", "tokenizer")
"""Kinds that the small copy of a recipe has others of: a run does not meet them again once the tokens are packed."""


def check_resume(
    kind: str, name: str, options: Mapping[str, Any] | None = None, plugin_folders: Iterable[Path] = ()
) -> Check:
    """Train a small recipe with the plugin in it, kill it with SIGKILL and resume it. Takes half a minute."""
    if kind in STOOD_IN_FOR:
        return Check("resume", True, f"not tried: a run does not meet its {kind} again once the tokens are packed")
    component = {"plugin": name, **(options or {})}
    section = next((section for section, of in MANY.items() if of == kind), None)
    sections: dict[str, Any] = {section: [component]} if section else {kind: component}
    with tempfile.TemporaryDirectory(prefix="toolkit-check-") as folder:
        recipe = Path(folder, "check.yaml")
        recipe.write_text(json.dumps({**RECIPE, **sections}), encoding="utf-8")
        try:
            verdict = verify_resume(str(recipe), plugin_folders=plugin_folders)
        except (UsageError, RecipeError) as refusal:
            return Check("resume", True, f"not tried: it refuses to stand in a small recipe alone: {refusal}")
        except TrainingError as error:
            return Check("resume", False, str(error))
    if verdict.difference:
        return Check("resume", False, f"after a kill, a run with it is another: {verdict.difference}")
    return Check("resume", True, f"killed twice, it ends the same: {verdict.losses} losses, {verdict.tensors} values")
