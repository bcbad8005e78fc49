"""The check that a run with the plugin, killed and resumed, ends as if it had never stopped."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.api import Objective, Strategy
from toolkit.errors import RecipeError, TrainingError, UnavailableError, UsageError
from toolkit.lifecycle.verify_resume import Verdict, verify_resume
from toolkit.logs import libraries_quiet
from toolkit.recipe.schema import LIST_SECTIONS
from toolkit.registry import Registry
from toolkit.system.device import detect
from toolkit.testing.bench import Check
from toolkit.testing.memory import lacking_here

RECIPE: Mapping[str, Any] = {
    "recipe": 1,
    "dataset": "python-docs",
    "tokenizer": "byte-bpe",
    "model": {"plugin": "gpt2", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "dropout": 0.1},
    "objective": "causal-lm",
    "memory": [],
    "training": {"global_batch_size": 4, "learning_rate": 1e-3},
}
"""The recipe around the plugin that is checked."""
LOADED_AGAIN = ("dataset", "filter", "tokenizer")
"""Kinds that the small copy of the recipe replaces; a run uses them only when it starts or resumes."""
COMPANIONS: tuple[Mapping[str, Any], ...] = (
    {},
    {"model": {"plugin": "llama", "num_hidden_layers": 2, "hidden_size": 64}},
    {"memory": [{"plugin": "lora", "r": 2}]},
    {"model": {"plugin": "pretrained", "path": "."}, "objective": "masked-lm"},
)
"""Changes to RECIPE that a plugin may need; it is checked with the first that it does not refuse."""


def check_resume(
    kind: str, name: str, options: Mapping[str, Any] | None = None, plugin_folders: Iterable[Path] = ()
) -> Check:
    """Train a small recipe with the plugin, kill it with SIGKILL and resume it. Takes half a minute."""
    if kind == "launcher":
        return Check("resume", True, "not needed: a launcher writes files, and takes no part in a run")
    if kind in LOADED_AGAIN:
        return Check("resume", True, f"not needed: of a {kind} a resume asks what was tried in another process above")
    registry = Registry.discover(plugin_folders)
    plugin = registry.load(kind, name).model_validate(options or {})
    if isinstance(plugin, Strategy) and (lacking := lacking_here(plugin, detect())):
        return Check("resume", False, f"not tried here: it needs {lacking}", tried=False)
    component = {"plugin": name, **(options or {})}
    section = next((section for section, of in LIST_SECTIONS.items() if of == kind), kind)
    own = {section: [component] if section in LIST_SECTIONS else component}
    refusals: dict[str, None] = {}
    masked = isinstance(plugin, Objective) and plugin.task == "masked-lm"
    for companions in COMPANIONS[-1:] if masked else COMPANIONS:
        beside = own[section] + companions.get(section, []) if section in LIST_SECTIONS else own[section]
        try:
            verdict = _verdict({**RECIPE, **companions, section: beside}, plugin_folders)
        except UnavailableError as error:
            return Check("resume", False, f"not tried here: {error}", tried=False)
        except (UsageError, RecipeError) as refusal:
            refusals[str(refusal)] = None
        except TrainingError as error:
            return Check("resume", False, str(error))
        else:
            if verdict.difference:
                return Check("resume", False, f"after a kill, a run with it is another: {verdict.difference}")
            compared = f"{verdict.losses} losses, {verdict.tensors} values"
            return Check("resume", True, f"killed twice, it ends the same: {compared}")
    return Check("resume", False, f"not tried: it refuses every small recipe: {'; '.join(refusals)}", tried=False)


def _verdict(recipe: Mapping[str, Any], plugin_folders: Iterable[Path]) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="toolkit-check-") as folder:
        if recipe["model"] == COMPANIONS[-1]["model"]:
            _write_bert(folder)
        file = Path(folder, "check.yaml")
        text = json.dumps(recipe).replace('"path": "."', f'"path": {json.dumps(folder)}')
        file.write_text(text, encoding="utf-8")
        return verify_resume(str(file), plugin_folders=plugin_folders)


def _write_bert(folder: str) -> None:
    """Write a small BERT: no plugin builds a model with a masked-lm head from scratch."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    with libraries_quiet():
        BertForMaskedLM(BertConfig(vocab_size=1000, **sizes)).save_pretrained(folder)  # type: ignore[arg-type]  # sizes are int
