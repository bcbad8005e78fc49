"""Models and tokenizers as people have them: every one that cannot be used is refused in a sentence with its cure."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from toolkit.api import OptionError, RunContext, ToolkitError, UnavailableError
from toolkit_plugins.model.pretrained import PretrainedModel
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE
from toolkit_plugins.tokenizer.pretrained import PretrainedTokenizer

Damage = Callable[[Path], object]

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:248dfc39\nsize 548105171\n"
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer in two shards, whole."""
    folder = tmp_path_factory.mktemp("made") / "model"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **SHAPE))
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture
def tokenizer(run_context: RunContext) -> PreTrainedTokenizerBase:
    return ByteBPE(vocab_size=300).build(["some words, and some more words"] * 3, run_context)


@pytest.fixture
def folder(made: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    tokenizer.save_pretrained(shutil.copytree(made, tmp_path / "model"))
    return tmp_path / "model"


def refusal(build: Callable[[], object]) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        build()
    assert isinstance(caught.value, OptionError | UnavailableError)
    assert caught.value.option == "path"
    assert "\n" not in caught.value.message
    return caught.value


def writes(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def without(*patterns: str) -> Damage:
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


def configured(**values: object) -> Damage:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return damage


def cut_off(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def in_place_of_weights(name: str) -> Damage:
    return lambda folder: (without("*.safetensors*")(folder), (folder / name).touch())


FIRST_SHARD = "model-00001-of-00003.safetensors"
TROUBLED_MODELS: dict[str, tuple[Damage, str]] = {
    "config of git-lfs": (writes("config.json", LFS_POINTER), "config.json is a git-lfs pointer"),
    "weights of git-lfs": (writes(FIRST_SHARD, LFS_POINTER), f"{FIRST_SHARD} is a git-lfs pointer"),
    "empty weights": (writes(FIRST_SHARD, ""), f"{FIRST_SHARD} is empty"),
    "weights that are a web page": (writes(FIRST_SHARD, "<html>" * 99), "no header of safetensors"),
    "weights cut off": (cut_off, "is cut off"),
    "a missing shard": (without(FIRST_SHARD), f"{FIRST_SHARD} is missing"),
    "an index of nothing": (writes("model.safetensors.index.json", "{}"), "names no weights"),
    "pickles": (in_place_of_weights("pytorch_model.bin"), "Convert them once"),
    "gguf": (in_place_of_weights("model-q4.gguf"), "a format for inference"),
    "no weights": (without("*.safetensors*"), "no weights in the safetensors format"),
    "no config": (without("config.json"), "it has no config.json"),
    "config that is not JSON": (writes("config.json", "{"), "config.json is not JSON"),
    "config of two bytes a letter": (writes("config.json", "{}".encode("utf-16")), "config.json is not JSON"),
    "config that is a list": (writes("config.json", "[]"), "config.json holds no JSON object"),
    "unknown architecture": (configured(model_type="of-next-year"), "pip install -U transformers"),
    "unknown number format": (configured(dtype="float7"), "float7"),
    "a width that is a word": (configured(hidden_size="wide"), "expected int"),
    "an unknown activation": (configured(hidden_act="of-next-year"), "of-next-year"),
    "a vocabulary that is not the weights'": (configured(vocab_size=999), "has the shape (300, 32), and (999, 32)"),
    "a layer without weights": (configured(num_hidden_layers=2), "allow_missing_weights: true"),
    "a generation config that is a list": (writes("generation_config.json", "[]"), "holds no JSON object"),
    **{
        how: (configured(quantization_config={"quant_method": how}), f"its weights are quantized ({how})")
        for how in ("gptq", "awq", "bitsandbytes", "fp8", "of-next-year")
    },
}


@pytest.mark.parametrize("name", TROUBLED_MODELS)
def test_a_model_that_cannot_be_used(
    folder: Path, tokenizer: PreTrainedTokenizerBase, run_context: RunContext, name: str
) -> None:
    damage, message = TROUBLED_MODELS[name]
    damage(folder)
    assert message in str(refusal(lambda: PretrainedModel(path=str(folder)).build(tokenizer, run_context)))


TROUBLED_TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "git-lfs": (writes("tokenizer.json", LFS_POINTER), "tokenizer.json is a git-lfs pointer"),
    "damaged": (writes("tokenizer.json", "{bad"), "tokenizer.json is not JSON"),
    "another format": (writes("tokenizer.json", "{}"), "its files are damaged"),
    "a newer format": (
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text().replace('"ByteLevel"', '"OfNextYear"')
        ),
        "pip install -U tokenizers",
    ),
    "a list of settings": (writes("tokenizer_config.json", "[]"), "tokenizer_config.json holds no JSON object"),
    "a Trainer's checkpoint": (
        lambda folder: (without("tokenizer*")(folder), (folder / "trainer_state.json").touch()),
        "saved without its tokenizer",
    ),
    "a processor": (
        lambda folder: (without("tokenizer*")(folder), (folder / "preprocessor_config.json").touch()),
        "the processor of a multimodal model",
    ),
}


@pytest.mark.parametrize("name", TROUBLED_TOKENIZERS)
def test_a_tokenizer_that_cannot_be_used(folder: Path, run_context: RunContext, name: str) -> None:
    damage, message = TROUBLED_TOKENIZERS[name]
    damage(folder)
    assert message in str(refusal(lambda: PretrainedTokenizer(path=str(folder)).build((), run_context)))


@pytest.mark.parametrize(
    ("file", "settings", "package"),
    [
        ("vocab.txt", {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}, "fugashi"),
        ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}, "pip install sentencepiece"),
    ],
)
def test_a_package_that_a_tokenizer_needs_is_named(
    folder: Path, run_context: RunContext, file: str, settings: dict[str, str], package: str
) -> None:
    without("tokenizer*")(folder)
    (folder / file).write_text("a\nb\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    error = refusal(lambda: PretrainedTokenizer(path=str(folder)).build((), run_context))
    assert package in str(error)
    assert error.exit_status == 3


def test_a_file_is_no_folder(folder: Path, tokenizer: PreTrainedTokenizerBase, run_context: RunContext) -> None:
    file = str(folder / FIRST_SHARD)
    assert "is a file" in str(refusal(lambda: PretrainedModel(path=file).build(tokenizer, run_context)))
    assert "is a file" in str(refusal(lambda: PretrainedTokenizer(path=file).build((), run_context)))


def test_the_folder_above_the_model(folder: Path, tokenizer: PreTrainedTokenizerBase, run_context: RunContext) -> None:
    error = refusal(lambda: PretrainedModel(path=str(folder.parent)).build(tokenizer, run_context))
    assert f"path: {folder}" in str(error)


def test_an_adapter_is_no_model(folder: Path, tokenizer: PreTrainedTokenizerBase, run_context: RunContext) -> None:
    without("*.safetensors*", "config.json")(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "example/base"}')
    for plugin in (PretrainedModel(path=str(folder)), PretrainedModel(path=str(folder)).rehearse()):
        message = str(refusal(lambda plugin=plugin: plugin.build(tokenizer, run_context)))  # type: ignore[misc]  # mypy infers no type for a default of a lambda
        assert "it holds an adapter" in message
        assert "path: example/base" in message


def test_weights_are_looked_at_before_a_plan_and_a_rehearsal(
    folder: Path, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
) -> None:
    cut_off(folder)
    plugin = PretrainedModel(path=str(folder))
    assert "is cut off" in str(refusal(lambda: plugin.skeleton(tokenizer, run_context)))
    assert "is cut off" in str(refusal(lambda: plugin.rehearse().build(tokenizer, run_context)))


def small(kind: str, **options: Any) -> transformers.PreTrainedModel:
    """A model of one layer of this class, with random weights."""
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model: transformers.PreTrainedModel = cls(cls.config_class(vocab_size=300, **options))
    return model


BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
BERT = {**SHAPE, "pad_token_id": 0}
NOT_FOR_CAUSAL_LM: dict[str, tuple[dict[str, Any], str]] = {
    "BartForConditionalGeneration": (BART, "an encoder-decoder (bart)"),
    "DistilBertForMaskedLM": (
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64},
        "no head for this objective",
    ),
    "BertForMaskedLM": (BERT, "looks at the tokens on both sides"),
    "BertForSequenceClassification": (BERT, "has no weights for cls.predictions"),
    "LlamaForSequenceClassification": (SHAPE, "has no weights for lm_head.weight of LlamaForCausalLM"),
}


@pytest.mark.parametrize("kind", NOT_FOR_CAUSAL_LM)
def test_no_head_starts_at_random(
    tokenizer: PreTrainedTokenizerBase, run_context: RunContext, tmp_path: Path, kind: str
) -> None:
    options, message = NOT_FOR_CAUSAL_LM[kind]
    small(kind, **options).save_pretrained(tmp_path)
    assert message in str(refusal(lambda: PretrainedModel(path=str(tmp_path)).build(tokenizer, run_context)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # transformers 5.17 calls it
def test_a_head_under_names_that_are_not_read(
    tokenizer: PreTrainedTokenizerBase, run_context: RunContext, tmp_path: Path
) -> None:
    """microsoft/deberta-v3-*: the published head is another class's."""
    small("DebertaV2ForMaskedLM", **BERT, relative_attention=True, pos_att_type=["p2c"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("cls.predictions", "lm_predictions.lm_head"): value for name, value in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    run = replace(run_context, task="masked-lm")
    message = str(refusal(lambda: PretrainedModel(path=str(tmp_path)).build(tokenizer, run)))
    assert "no weights for cls.predictions.bias and 5 more" in message
    assert "lm_predictions.lm_head.bias" in message
    PretrainedModel(path=str(tmp_path), allow_missing_weights=True).build(tokenizer, run)
