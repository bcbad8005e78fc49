"""Every plugin that we register keeps its contract, tried with the kit that other people try theirs with."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer
from tests.tiny import texts
from toolkit.api import KINDS, Strategy
from toolkit.registry import Registry
from toolkit.system.device import detect
from toolkit.testing import check_plugin
from toolkit.testing.memory import lacking_here

GPT2 = "openai-community/gpt2"
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}

OPTIONS: dict[tuple[str, str], dict[str, Any] | None] = {
    ("dataset", "hub"): {"path": "HuggingFaceFW/fineweb-edu"},
    ("dataset", "wikitext"): {"version": "wikitext-2-raw-v1"},
    ("dataset", "text-files"): {"files": "*.txt", "sample_by": "line"},
    ("dataset", "python-docs"): None,
    ("dataset", "tokens"): {"files": "*.txt", "format": "nanogpt", "end_token_id": 0x0A2E},  # a full stop, a line break
    ("filter", "exact-duplicates"): {"normalize": True},
    ("filter", "near-duplicates"): None,
    ("filter", "length"): {"min_words": 3, "max_words": 200},
    ("filter", "regex"): {"pattern": "cat", "replace": "dog"},
    ("filter", "gopher-quality"): {"min_words": 5},
    ("filter", "gopher-repetition"): None,
    ("filter", "c4-quality"): None,
    ("filter", "language"): {"languages": ["en"]},
    ("filter", "decontamination"): {"files": "*.txt"},
    ("dataset", "mix"): {
        "sources": [
            {"name": "lines", "weight": 1, "dataset": {"plugin": "text-files", "files": "*.txt", "sample_by": "line"}},
            {"name": "whole", "weight": 2, "dataset": {"plugin": "text-files", "files": "*.txt"}},
        ]
    },
    ("tokenizer", "pretrained"): {"path": GPT2},
    ("tokenizer", "byte-bpe"): {"vocab_size": 300},
    ("model", "pretrained"): {"path": GPT2},
    ("model", "gpt2"): SMALL,
    ("model", "llama"): SMALL,
    ("objective", "causal-lm"): {"block_size": 32, "document_mask": True},
    ("objective", "masked-lm"): {"block_size": 32},
    ("optimizer", "adamw"): None,
    ("optimizer", "muon"): None,
    ("memory", "small-batch"): {"micro_batch_size": 1},
    ("memory", "auto"): None,
    ("memory", "frequent-saves"): {"save_steps": 100},
    ("memory", "gradient-checkpointing"): None,
    ("memory", "chunked-loss"): None,
    ("memory", "low-memory-optimizer"): None,
    ("memory", "activation-offload"): None,
    ("memory", "frozen-layers"): None,
    ("memory", "release-gradients"): None,
    ("memory", "weights-in-bf16"): None,
    ("memory", "mixed-precision"): None,
    ("memory", "fp8"): None,
    ("memory", "lora"): {"r": 2},
    ("memory", "qlora"): {"r": 2},
    ("memory", "shard"): None,
    ("callback", "samples"): {"every_steps": 1, "max_new_tokens": 4},
    ("callback", "early-stopping"): {"patience": 1},
    ("exporter", "model-folder"): None,
    ("exporter", "merge-lora"): None,
    ("exporter", "push-to-hub"): {"repo_id": "example/model"},
    ("launcher", "slurm"): {"partition": "main", "directives": ["--qos=long"]},
    ("launcher", "skypilot"): {"accelerator": "H100"},
    ("launcher", "kubeflow"): {"manifest": "job"},
    ("launcher", "ray"): None,
    ("launcher", "compose"): None,
}
"""What each of them is tried with; None is its defaults, as a rehearsal has them."""

OURS = [
    (kind, entry.name)
    for kind in KINDS
    for entry in metadata.distribution("pretrain-toolkit").entry_points.select(group=f"toolkit.{kind}")
]


def test_there_are_plugins_of_all_ten_kinds_and_each_is_tried() -> None:
    assert len(OURS) > 20
    assert {kind for kind, _ in OURS} == set(KINDS)
    assert len(KINDS) == 10
    assert set(OURS) == set(OPTIONS)


TRIALS = [
    pytest.param(kind, name, marks=pytest.mark.slow if name == "python-docs" else (), id=f"{kind}-{name}")
    for kind, name in OURS
]
"""Each, to be tried; those are slow that read a library of sources several times."""


@pytest.mark.parametrize(("kind", "name"), TRIALS)
def test_it_keeps_the_contract_of_its_kind(
    kind: str, name: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    registry, options = Registry.discover(), OPTIONS.get((kind, name))
    failed = [(check.detail, check.tried) for check in check_plugin(kind, name, registry, options) if not check.passed]
    plugin = registry.load(kind, name).model_validate(options or {})
    lacking = lacking_here(plugin, detect()) if isinstance(plugin, Strategy) else ""
    if name == "language" and not find_spec("py3langid"):
        assert {detail.partition(":")[0] for detail, _ in failed} == {"it refuses"}
        return
    assert failed == ([(f"not tried here: it needs {lacking}", False)] if lacking else [])
    assert [file.name for file in tmp_path.iterdir()] == ["texts.txt"], "it leaves files where it works"
