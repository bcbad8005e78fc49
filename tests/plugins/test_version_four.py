"""What is exported loads in transformers 4.57 too: the same tokens of a text, and the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.plugins.exports import RESULTS, with_lora
from toolkit.api import RunContext
from toolkit_plugins.exporter.merge_lora import MergeLoRA
from toolkit_plugins.exporter.model_files import COMPARED_TEXT
from toolkit_plugins.exporter.model_folder import ModelFolder
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.model.pretrained import PretrainedModel
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE
from toolkit_plugins.tokenizer.pretrained import PretrainedTokenizer

READ = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

assert transformers.__version__.startswith("4.57")
told = {}
for folder in sys.argv[2:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(sys.argv[1])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    told[folder] = {
        "ids": ids,
        "logits": logits.tolist(),
        "special": [tokenizer.eos_token_id, tokenizer.pad_token_id, sorted(tokenizer.all_special_ids)],
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "generates": model.generation_config.eos_token_id,
    }
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module")
def version_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with transformers 4.57, and torch from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("version-four")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "transformers==4.57.*"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "zz-torch.pth").write_text(sysconfig.get_path("purelib") + "\n")  # comes after the environment's own
    return python


def published(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A model on the disk as transformers 5 publishes it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def exported(folder: Path, run: RunContext) -> dict[str, Path]:
    """Folders of models from scratch, of published ones, and of a merged one."""
    tokenizer = ByteBPE(vocab_size=300).build([COMPARED_TEXT] * 3, run)
    small: dict[str, Any] = {
        "vocab_size": len(tokenizer), "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 256, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    llama3 = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    partial = {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}
    per_layer = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    more = ByteBPE(vocab_size=290).build([COMPARED_TEXT] * 3, run)
    more.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|model|>"]})
    bases = {
        "llama3": published(folder / "a", LlamaForCausalLM(LlamaConfig(**small, rope_parameters=llama3)), tokenizer),
        "gpt-neox": published(
            folder / "b",
            GPTNeoXForCausalLM(GPTNeoXConfig(**small, rope_parameters=partial)),
            tokenizer,
        ),
        "gemma3": published(
            folder / "c",
            Gemma3ForCausalLM(
                Gemma3TextConfig(
                    **small, head_dim=16, num_key_value_heads=1, sliding_window=4, rope_parameters=per_layer,
                    layer_types=["sliding_attention", "full_attention"],
                )
            ),
            more,
        ),
    }  # fmt: skip
    models = {
        "gpt2": (GPT2(num_hidden_layers=2, hidden_size=32).build(tokenizer, run), tokenizer),
        "llama": (
            Llama(num_hidden_layers=2, hidden_size=32, rope_theta=5e5).build(tokenizer, run),
            tokenizer,
        ),
    }
    for name, base in bases.items():
        loaded = PretrainedTokenizer(path=str(base)).build([], run)
        models[name] = PretrainedModel(path=str(base)).build(loaded, run), loaded
    for name, (model, its_tokenizer) in models.items():
        (folder / name).mkdir()
        ModelFolder().export(model, its_tokenizer, folder / name, RESULTS, run)
    (folder / "merged").mkdir()
    MergeLoRA().export(with_lora(models["llama3"][0], run), tokenizer, folder / "merged", RESULTS, run)
    return {name: folder / name for name in (*models, "merged")}


@pytest.mark.slow
def test_transformers_4_reads_an_exported_folder_as_transformers_5_does(
    version_four: Path, tmp_path: Path, run_context: RunContext
) -> None:
    folders = exported(tmp_path, run_context)
    done = subprocess.run(
        [str(version_four), "-c", READ, COMPARED_TEXT, *map(str, folders.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for name, folder in folders.items():
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        there, ids = told[str(folder)], tokenizer.encode(COMPARED_TEXT)
        assert there["ids"] == ids, name
        special = [tokenizer.eos_token_id, tokenizer.pad_token_id, sorted(tokenizer.all_special_ids)]
        assert there["special"] == special, name
        assert there["text"] == COMPARED_TEXT, name
        assert there["generates"] == tokenizer.eos_token_id, name
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        assert torch.allclose(torch.tensor(there["logits"]), logits, atol=1e-5), name
