"""Makes a folder that transformers 5 has written readable for transformers 4.

Version 5 renamed the class of most tokenizers, a list of their tokens, and the settings of rotary position embeddings.
Version 4 fails on the first two and ignores the third, so that a model silently computes something else. Version 5
reads the old names as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_BOS_AND_EOS = {"CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer"}
"""Tokenizers to which version 4 adds BOS and EOS by settings, where version 5 goes by tokenizer.json."""
OF_LOADING = ("backend", "is_local", "local_files_only")
"""Entries by version 5 that only say how the tokenizer was loaded."""
BASE = {"gpt_neox": "rotary_emb_base", "modernbert": "global_rope_theta"}
LOCAL_BASE = {"modernbert": "local_rope_theta"}
PARTIAL = {"gpt_neox": "rotary_pct"}
"""Old names by model type, where they differ from the usual ones."""


def add_old_names(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the old names beside the new ones, or in their place where version 4 fails on the new ones."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for name in OF_LOADING:
        settings.pop(name, None)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(more := settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = more
        del settings["extra_special_tokens"]
    if settings.get("tokenizer_class") in OWN_BOS_AND_EOS:
        ids = tokenizer.encode("a")
        settings["add_bos_token"] = ids[0] == tokenizer.bos_token_id
        settings["add_eos_token"] = ids[-1] == tokenizer.eos_token_id
    _write(file, settings)
    config = folder / "config.json"
    if config.exists():  # an adapter has none
        _write(config, with_old_rope(json.loads(config.read_text(encoding="utf-8"))))


def with_old_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The config, and those nested in it, with `rope_parameters` also under their old names."""
    config = {name: with_old_rope(value) if isinstance(value, dict) else value for name, value in config.items()}
    rope, kind = config.get("rope_parameters"), config.get("model_type", "")
    if not isinstance(rope, Mapping):
        return config
    local = rope.get("sliding_attention")
    everywhere = rope.get("full_attention", rope)
    base, partial = BASE.get(kind, "rope_theta"), PARTIAL.get(kind, "partial_rotary_factor")
    old = {base: everywhere.get("rope_theta"), partial: everywhere.get("partial_rotary_factor")}
    if isinstance(local, Mapping):
        old[LOCAL_BASE.get(kind, "rope_local_base_freq")] = local.get("rope_theta")
    if everywhere.get("rope_type", "default") != "default":
        apart = ("rope_theta", "partial_rotary_factor")
        old["rope_scaling"] = {name: value for name, value in everywhere.items() if name not in apart}
    return config | {name: value for name, value in old.items() if value is not None}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
