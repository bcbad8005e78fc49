"""Exporters: what they write loads again as the same model, and what does not is refused."""

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.hub_server import HubServer
from tests.plugins.exports import RESULTS, with_lora
from toolkit.api import OptionError, RunContext, ToolkitError, UnavailableError
from toolkit_plugins.exporter import model_files
from toolkit_plugins.exporter.merge_lora import MergeLoRA
from toolkit_plugins.exporter.model_folder import ModelFolder
from toolkit_plugins.exporter.push_to_hub import PushToHub
from toolkit_plugins.memory.lora import LoRA
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.model.pretrained import PretrainedModel
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

GPT2_PATH = "openai-community/gpt2"
IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


@pytest.fixture
def scratch(run_context: RunContext):
    tokenizer = ByteBPE(vocab_size=300).build(["some words, and some more words"] * 3, run_context)
    return GPT2(num_hidden_layers=2, hidden_size=32, dropout=0.1).build(tokenizer, run_context), tokenizer


@pytest.fixture
def adapted(hub: HubServer, run_context: RunContext):
    tokenizer = AutoTokenizer.from_pretrained(GPT2_PATH)
    model = PretrainedModel(path=GPT2_PATH).build(tokenizer, run_context)
    return with_lora(model, run_context), tokenizer


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


class TestModelFolder:
    def test_transformers_loads_it_as_the_same_model(self, scratch, folder: Path, run_context: RunContext) -> None:
        model, tokenizer = scratch
        model.train()
        ModelFolder().export(model, tokenizer, folder, RESULTS, run_context)
        assert model.training
        again = AutoModelForCausalLM.from_pretrained(folder)
        for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert AutoTokenizer.from_pretrained(folder).encode("words") == tokenizer.encode("words")
        assert again.generation_config.eos_token_id == tokenizer.eos_token_id
        assert {file.name for file in folder.iterdir()} == {
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }

    def test_files_have_the_mode_that_the_umask_says(
        self, umask: int, scratch, folder: Path, run_context: RunContext
    ) -> None:
        ModelFolder().export(*scratch, folder, RESULTS, run_context)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
        assert set(modes.values()) == {0o666 & ~umask}

    def test_the_card_tells_data_results_licences_settings_and_use(
        self, scratch, folder: Path, run_context: RunContext
    ) -> None:
        ModelFolder().export(*scratch, folder, RESULTS, run_context)
        card = (folder / "README.md").read_text(encoding="utf-8")
        for line in (
            "* validation loss: 3.1416 nats per token",
            "* steps: 100\n* tokens seen: 1,234,567",
            "* trained on: 1,234 documents, 567,890 tokens",
            "* the documents: PSF-2.0",
            "```yaml\nrecipe: 1\ndataset: {plugin: python-docs}\n```",
            'AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
            "bit for bit",
            f"* parameters: {scratch[0].num_parameters():,}",
        ):
            assert line in card
        for internal in ("rehearsal", "excerpt", "padding"):
            assert internal not in card

    def test_the_head_of_the_card_is_yaml(self, scratch, folder: Path, run_context: RunContext) -> None:
        from huggingface_hub import ModelCard

        ModelFolder().export(*scratch, folder, RESULTS, run_context)
        data = ModelCard.load(folder / "README.md").data.to_dict()
        assert data == {
            "language": ["en"],
            "license": "other",
            "license_name": "PSF-2.0",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["pretrain-toolkit"],
        }

    def test_licence_and_language_are_the_persons_where_given(
        self, scratch, folder: Path, run_context: RunContext
    ) -> None:
        from huggingface_hub import ModelCard

        ModelFolder(license="cc-by-sa-4.0", language="no").export(*scratch, folder, RESULTS, run_context)
        data = ModelCard.load(folder / "README.md").data
        assert (data.license, data.language) == ("cc-by-sa-4.0", ["no"])

    def test_a_rehearsals_card_says_so(self, scratch, folder: Path, run_context: RunContext) -> None:
        ModelFolder().export(*scratch, folder, RESULTS, replace(run_context, rehearsal=True))
        assert "This is a rehearsal" in (folder / "README.md").read_text(encoding="utf-8")

    def test_weights_that_were_damaged_on_the_way_are_refused(
        self, scratch, folder: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def damage(written: Path) -> None:
            tensors = load_file(written / "model.safetensors")
            tensors["transformer.h.0.mlp.c_fc.weight"][0, 0] += 1e-3
            save_file(tensors, written / "model.safetensors", metadata={"format": "pt"})

        monkeypatch.setattr(model_files, "readable", damage)
        with pytest.raises(ToolkitError, match=r"is not the trained one: transformer\.h\.0\.mlp\.c_fc\.weight differs"):
            ModelFolder().export(*scratch, folder, RESULTS, run_context)

    def test_settings_that_were_lost_on_the_way_are_refused(
        self, scratch, folder: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lose(written: Path) -> None:
            config = written / "config.json"
            config.write_text(config.read_text().replace('"gelu_pytorch_tanh"', '"relu"'))

        monkeypatch.setattr(model_files, "readable", lose)
        with pytest.raises(ToolkitError, match="does not compute what the trained one does"):
            ModelFolder().export(*scratch, folder, RESULTS, run_context)

    def test_a_tokenizer_that_does_not_come_back_is_refused(
        self, scratch, folder: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, tokenizer = scratch
        other = ByteBPE(vocab_size=280).build(["quite another text, with quite other words"] * 3, run_context)
        monkeypatch.setattr(model_files, "readable", lambda written: other.save_pretrained(written))
        with pytest.raises(ToolkitError, match="does not read text as the trained one does"):
            ModelFolder().export(model, tokenizer, folder, RESULTS, run_context)

    def test_a_tokenizer_of_another_script_alone_is_exported(self, folder: Path, run_context: RunContext) -> None:
        letters = Tokenizer(models.BPE(vocab={letter: row for row, letter in enumerate("日本語文字")}, merges=[]))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="字", pad_token="文")
        assert not tokenizer.encode(model_files.COMPARED_TEXT)
        model = GPT2(num_hidden_layers=1, hidden_size=32).build(tokenizer, run_context)
        ModelFolder().export(model, tokenizer, folder, RESULTS, run_context)
        MergeLoRA().export(with_lora(model, run_context), tokenizer, folder, RESULTS, run_context)

    def test_masked_lm(self, hub: HubServer, folder: Path, run_context: RunContext) -> None:
        run, path = replace(run_context, task="masked-lm"), "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = PretrainedModel(path=path).build(tokenizer, run)
        ModelFolder().export(model, tokenizer, folder, RESULTS, run)
        again = AutoModelForMaskedLM.from_pretrained(folder)
        assert torch.equal(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)
        assert "pipeline_tag: fill-mask" in (folder / "README.md").read_text(encoding="utf-8")

    @pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 calls what transformers 5.23 renames
    def test_an_adapter_names_its_base_and_loads_on_it(self, adapted, folder: Path, run_context: RunContext) -> None:
        model, tokenizer = adapted
        ModelFolder().export(model, tokenizer, folder, RESULTS, run_context)
        assert not (folder / "model.safetensors").exists()
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"base_model: {GPT2_PATH}" in card
        assert "license: unknown" in card
        assert f"It belongs to {GPT2_PATH} at {model.peft_config['default'].revision}, and needs it." in card
        again = AutoPeftModelForCausalLM.from_pretrained(folder)
        assert torch.equal(again.eval()(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)

    def test_an_adapter_whose_base_is_nowhere_is_refused(self, scratch, folder: Path, run_context: RunContext) -> None:
        model, tokenizer = scratch
        with pytest.raises(OptionError, match="merge-lora"):
            ModelFolder().export(with_lora(model, run_context), tokenizer, folder, RESULTS, run_context)

    def test_a_rehearsed_adapter_needs_no_network(self, hub: HubServer, folder: Path, run_context: RunContext) -> None:
        run = replace(run_context, rehearsal=True)
        tokenizer = ByteBPE(vocab_size=300).build(["some words"], run)
        with hub.unplugged():
            model = PretrainedModel(path="example/never-seen").rehearse().build(tokenizer, run)
            ModelFolder().export(with_lora(model, run), tokenizer, folder, RESULTS, run)
        assert "base_model: example/never-seen" in (folder / "README.md").read_text(encoding="utf-8")


class TestMergeLoRA:
    def test_one_model_without_peft(self, adapted, folder: Path, run_context: RunContext) -> None:
        model, tokenizer = adapted
        before = {name: value.clone() for name, value in model.state_dict().items()}
        MergeLoRA().export(model, tokenizer, folder, RESULTS, run_context)
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert type(again).__name__ == "GPT2LMHeadModel"
        assert torch.allclose(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(again(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-3)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert f"LoRA on {GPT2_PATH}, merged" in (folder / "README.md").read_text(encoding="utf-8")

    def test_a_base_from_scratch_is_merged_too(self, scratch, folder: Path, run_context: RunContext) -> None:
        model, tokenizer = scratch
        MergeLoRA().export(with_lora(model, run_context), tokenizer, folder, RESULTS, run_context)
        assert "LoRA on a model of this run, merged" in (folder / "README.md").read_text(encoding="utf-8")

    @pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:fan_in_fan_out is set to True")
    @pytest.mark.parametrize("target", ["lm_head", "wte"])
    def test_factors_of_a_matrix_that_is_tied_are_refused_before_training(
        self, scratch, target: str, folder: Path, run_context: RunContext
    ) -> None:
        model, _ = scratch
        adapted = LoRA(r=4, target_modules=("c_attn", target)).apply(model, run_context)
        other = {"lm_head": "transformer.wte", "wte": "lm_head"}[target]
        with pytest.raises(OptionError, match=f"{target} cannot be merged: it shares its matrix with {other}"):
            MergeLoRA().check(adapted, run_context)

    @pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
    def test_factors_of_head_and_embedding_are_merged_where_they_are_two(
        self, target: str, scratch, folder: Path, run_context: RunContext
    ) -> None:
        _, tokenizer = scratch
        llama = Llama(num_hidden_layers=1, hidden_size=32, tie_word_embeddings=False).build(tokenizer, run_context)
        model = with_lora(llama, run_context, LoRA(r=4, target_modules=(target,)))
        MergeLoRA().export(model, tokenizer, folder, RESULTS, run_context)
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.allclose(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits, atol=1e-5)

    def test_a_model_without_lora_is_refused(self, scratch, folder: Path, run_context: RunContext) -> None:
        with pytest.raises(OptionError, match="no LoRA to merge"):
            MergeLoRA().export(*scratch, folder, RESULTS, run_context)


class TestPushToHub:
    def test_it_writes_no_folder(self) -> None:
        assert PushToHub(repo_id="me/mine").folder is None

    def test_a_rehearsal_uploads_nothing(
        self, hub: HubServer, scratch, folder: Path, run_context: RunContext, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "toolkit")
        hub.requests.clear()
        PushToHub(repo_id="me/mine").export(*scratch, folder, RESULTS, replace(run_context, rehearsal=True))
        assert hub.requests == []
        assert "a rehearsal uploads nothing" in caplog.text

    def test_the_token_comes_from_the_environment(self, scratch, folder: Path, run_context: RunContext) -> None:
        with pytest.raises(UnavailableError, match="set HF_TOKEN"):
            PushToHub(repo_id="me/mine").export(*scratch, folder, RESULTS, run_context)

    @pytest.mark.parametrize(
        ("status", "error", "message"),
        [(403, OptionError, "may not write to me/mine"), (500, UnavailableError, "did not take me/mine")],
    )
    def test_what_the_hub_refuses(
        self,
        hub: HubServer,
        scratch,
        folder: Path,
        run_context: RunContext,
        monkeypatch: pytest.MonkeyPatch,
        status: int,
        error: type[ToolkitError],
        message: str,
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        with hub.failing(status), pytest.raises(error, match=message):
            PushToHub(repo_id="me/mine").export(*scratch, folder, RESULTS, run_context)

    def test_an_unreachable_hub(
        self, hub: HubServer, scratch, folder: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        with hub.unplugged(), pytest.raises(UnavailableError, match="cannot be reached"):
            PushToHub(repo_id="me/mine").export(*scratch, folder, RESULTS, run_context)

    def test_the_whole_folder_in_one_commit(
        self, scratch, folder: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loopback Hub takes no uploads, so the two calls of the client are recorded instead."""
        calls = []
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        monkeypatch.setattr(
            "huggingface_hub.HfApi.create_repo", lambda self, *args, **kwargs: calls.append((self.token, args, kwargs))
        )
        monkeypatch.setattr("huggingface_hub.HfApi.create_commit", lambda self, *args, **kwargs: calls.append(args))
        ModelFolder().export(*scratch, folder, RESULTS, run_context)
        PushToHub(repo_id="me/mine").export(*scratch, folder, RESULTS, run_context)
        created, (repository, operations) = calls
        assert created == ("hf_mine", ("me/mine",), {"private": True, "exist_ok": True})
        assert repository == "me/mine"
        assert {operation.path_in_repo for operation in operations} == {file.name for file in folder.iterdir()}
        (card,) = (operation for operation in operations if operation.path_in_repo == "README.md")
        assert 'from_pretrained("me/mine")' in card.path_or_fileobj.decode()
