"""More tokens than a model knows, a multimodal model's language model, experts: what is trained of each."""

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
)

from toolkit.api import OptionError, RunContext
from toolkit.planning.fake_components import fake_tensors
from toolkit_plugins.exporter.merge_lora import MergeLoRA
from toolkit_plugins.exporter.model_folder import ModelFolder
from toolkit_plugins.memory.lora import LoRA
from toolkit_plugins.model.pretrained import PretrainedModel
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

KNOWN = 300
SHAPE = {
    "vocab_size": KNOWN,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.fixture
def tokenizer(run_context: RunContext) -> PreTrainedTokenizerBase:
    """One that has three tokens more than the models know."""
    tokenizer = ByteBPE(vocab_size=KNOWN).build(["some words, and some more words"] * 3, run_context)
    fill = [f"<word {number}>" for number in range(KNOWN - len(tokenizer))]
    tokenizer.add_tokens([*fill, "<gene>", "<protein>", "<cell>"])
    assert len(tokenizer) == KNOWN + 3
    return tokenizer


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=request.param)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_more_tokens_than_the_model_knows_are_refused_with_the_option_that_adds_them(
    folder: str, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
) -> None:
    with pytest.raises(OptionError, match=r"knows 300 tokens and the tokenizer has 303.*resize_embeddings: true"):
        PretrainedModel(path=folder).build(tokenizer, run_context)


def test_new_rows_are_the_mean_of_the_old_ones_in_the_embedding_and_the_head(
    folder: str, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
) -> None:
    plugin = PretrainedModel(path=folder, resize_embeddings=True)
    old = AutoModelForCausalLM.from_pretrained(folder)
    model = plugin.build(tokenizer, run_context)
    for ours, theirs in (
        (model.get_input_embeddings(), old.get_input_embeddings()),
        (model.get_output_embeddings(), old.get_output_embeddings()),
    ):
        assert torch.equal(ours.weight[:KNOWN], theirs.weight)
        assert torch.equal(ours.weight[KNOWN:], theirs.weight.mean(dim=0).expand(3, -1))
    assert model.config.vocab_size == KNOWN + 3
    with fake_tensors():
        planned = plugin.skeleton(tokenizer, run_context)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in planned.named_parameters()} == shapes


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 calls what transformers 5.23 renames
def test_lora_trains_the_rows_of_new_tokens_which_a_merge_keeps(
    folder: str, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
) -> None:
    model = PretrainedModel(path=folder, resize_embeddings=True).build(tokenizer, run_context)
    adapted = LoRA(r=2).apply(model, run_context)
    ids = torch.arange(KNOWN - 2, KNOWN + 3)[None]
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    adapted(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with pytest.raises(OptionError, match="take the exporter merge-lora"):
        ModelFolder().check(adapted, run_context)
    MergeLoRA().check(adapted, run_context)
    logits = adapted(input_ids=ids).logits
    merged = adapted.merge_and_unload()
    assert torch.allclose(merged(input_ids=ids).logits, logits, atol=1e-5)
    new = merged.get_input_embeddings().weight[KNOWN:]
    assert not torch.equal(new[0], new[1])


def test_the_language_model_of_a_multimodal_one_is_trained_alone(
    tokenizer: PreTrainedTokenizerBase, run_context: RunContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = {**SHAPE, "vocab_size": KNOWN + 3, "head_dim": 16, "sliding_window": 32}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=1,
            image_token_index=KNOWN,
            boi_token_index=KNOWN + 1,
            eoi_token_index=KNOWN + 2,
        )
    ).eval()
    whole.save_pretrained(tmp_path / "whole")
    plugin = PretrainedModel(path=str(tmp_path / "whole"))
    with caplog.at_level(logging.INFO, "toolkit"):
        model = plugin.build(tokenizer, run_context)
    assert "its language model is trained, without the rest" in caplog.text
    assert type(model) is Gemma3ForCausalLM
    ids = torch.arange(16)[None]
    assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "alone")
    alone = PretrainedModel(path=str(tmp_path / "alone")).build(tokenizer, run_context)
    assert torch.equal(alone(input_ids=ids).logits, whole(input_ids=ids).logits)
    with fake_tensors():
        planned = plugin.skeleton(tokenizer, run_context)
    assert planned.num_parameters() == model.num_parameters()
    assert type(plugin.rehearse().build(tokenizer, run_context)) is Gemma3ForCausalLM


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("q_proj", "v_proj"), True),
        pytest.param(
            "all-linear",
            False,
            marks=pytest.mark.skipif(
                Version(peft.__version__) < Version("0.21"), reason="older ones take the word all-linear apart"
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 calls what transformers 5.23 renames
def test_lora_says_whether_it_leaves_experts_out(
    run_context: RunContext, caplog: pytest.LogCaptureFixture, names: Any, said: bool
) -> None:
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4))
    with caplog.at_level(logging.INFO, "toolkit"):
        adapted = LoRA(target_modules=names).apply(model, run_context)
    factors = [name for name, value in adapted.named_parameters() if value.requires_grad and "experts" in name]
    assert bool(factors) is not said
    sentence = "LoRA leaves the experts as they are: 2 stacks of matrices such as model.layers.0.mlp.experts"
    assert (sentence in caplog.text) is said
    MergeLoRA().check(adapted, run_context)


def test_lora_on_a_norm_is_refused(run_context: RunContext) -> None:
    with pytest.raises(OptionError, match="peft has no factors for all of input_layernorm, q_proj") as caught:
        LoRA(target_modules=("q_proj", "input_layernorm")).apply(LlamaForCausalLM(LlamaConfig(**SHAPE)), run_context)
    assert caught.value.option == "target_modules"
