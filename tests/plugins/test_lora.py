"""LoRA: what it trains, on which matrices, and what it says when there are none."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments

from tests.hub_server import HubServer
from toolkit.api import OptionError, RunContext
from toolkit_plugins.memory.lora import LoRA
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.model.pretrained import PretrainedModel
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE


@pytest.fixture
def models(run_context: RunContext) -> Mapping[str, PreTrainedModel]:
    tokenizer = ByteBPE(vocab_size=300).build(["some words and some more"], run_context)
    return {
        "gpt2": GPT2(num_hidden_layers=2, hidden_size=32).build(tokenizer, run_context),
        "llama": Llama(num_hidden_layers=2, hidden_size=32).build(tokenizer, run_context),
    }


@pytest.mark.parametrize(("kind", "matrices"), [("gpt2", 8), ("llama", 14)])
def test_all_of_the_layers_matrices_and_nothing_else(
    models: Mapping[str, PreTrainedModel],
    run_context: RunContext,
    kind: str,
    matrices: int,
    recwarn: pytest.WarningsRecorder,
) -> None:
    ids = torch.randint(256, (1, 16))
    before = models[kind](input_ids=ids).logits
    adapted = LoRA(r=4, lora_alpha=8).apply(models[kind], run_context)
    assert torch.equal(adapted(input_ids=ids).logits, before)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * matrices
    assert all("lora_" in name and "lm_head" not in name for name in trained)
    assert {p.shape[0] for n, p in adapted.named_parameters() if "lora_A" in n} == {4}
    assert not list(recwarn)


def test_named_matrices(models: Mapping[str, PreTrainedModel], run_context: RunContext) -> None:
    adapted = LoRA(target_modules=("q_proj", "v_proj")).apply(models["llama"], run_context)
    trained = {name.split(".")[-4] for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {"q_proj", "v_proj"}
    assert adapted.peft_config["default"].fan_in_fan_out is False


def test_gpt2s_transposed_matrices_are_known_as_such(
    models: Mapping[str, PreTrainedModel], run_context: RunContext
) -> None:
    adapted = LoRA(target_modules=("c_attn",)).apply(models["gpt2"], run_context)
    assert adapted.peft_config["default"].fan_in_fan_out is True


@pytest.mark.parametrize("names", [("q_proj",), ("c_attn", "q_proj")])
def test_a_name_that_matches_nothing(
    models: Mapping[str, PreTrainedModel], run_context: RunContext, names: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError) as caught:
        LoRA(target_modules=names).apply(models["gpt2"], run_context)
    assert caught.value.option == "target_modules"
    assert "no module named 'q_proj'" in caught.value.message
    assert "c_attn, c_fc, c_proj" in caught.value.message


def test_masked_lm(hub: HubServer, run_context: RunContext) -> None:
    run = replace(run_context, task="masked-lm")
    path = "google-bert/bert-base-uncased"
    model = PretrainedModel(path=path).build(AutoTokenizer.from_pretrained(path), run)
    adapted = LoRA().apply(model, run)
    ids = torch.randint(100, (2, 8))
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_the_adapter_knows_its_base(hub: HubServer, run_context: RunContext) -> None:
    path = "openai-community/gpt2"
    model = PretrainedModel(path=path).build(AutoTokenizer.from_pretrained(path), run_context)
    config = LoRA().apply(model, run_context).peft_config["default"]
    commit = hub.repositories["model", path].revisions["main"].commit
    assert (config.base_model_name_or_path, config.revision) == (path, commit)


def train(model: PreTrainedModel, folder: Path, *, checkpointing: bool = False, resume: bool = False) -> list[float]:
    ids = torch.randint(200, (16, 16), generator=torch.Generator().manual_seed(3))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        save_steps=3,
        logging_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        gradient_checkpointing=checkpointing,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 calls what transformers 5.23 renames
class TestTraining:
    def adapted(self, run: RunContext) -> PreTrainedModel:
        tokenizer = ByteBPE(vocab_size=300).build(["some words and some more"], run)
        torch.manual_seed(0)
        return LoRA().apply(GPT2(num_hidden_layers=2, hidden_size=32).build(tokenizer, run), run)

    def test_checkpointing_changes_nothing(self, run_context: RunContext, tmp_path: Path) -> None:
        plain = train(self.adapted(run_context), tmp_path / "plain")
        saving = train(self.adapted(run_context), tmp_path / "saving", checkpointing=True)
        assert saving == pytest.approx(plain, abs=1e-6)
        assert plain[-1] < plain[0]

    def test_a_resume_goes_on_from_the_adapter(self, run_context: RunContext, tmp_path: Path) -> None:
        whole = train(self.adapted(run_context), tmp_path)
        assert not (tmp_path / "checkpoint-3" / "model.safetensors").exists()
        assert train(self.adapted(run_context), tmp_path, resume=True) == whole
