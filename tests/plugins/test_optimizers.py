"""Optimizers: which parameter is stepped how, and that the Trainer can save and resume them to the bit."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from toolkit.api import Optimizer, RunContext, scale_learning_rate
from toolkit_plugins.memory.lora import LoRA
from toolkit_plugins.optimizer.adamw import AdamW
from toolkit_plugins.optimizer.muon import Muon, batches_of, hidden_matrices, orthogonalized

TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.1, attn_pdrop=0, **TOKENS
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def llama(*, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        **TOKENS,
    )
    return LlamaForCausalLM(config)


def bert() -> PreTrainedModel:
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return BertForMaskedLM(config)


def built(plugin: Optimizer, model: torch.nn.Module, run: RunContext, *, decay: float = 0.1) -> torch.optim.Optimizer:
    return plugin.build(model, learning_rate=1e-3, weight_decay=decay, run=run)


def names(model: torch.nn.Module, parameters: object) -> set[str]:
    known = {parameter: name for name, parameter in model.named_parameters()}
    return {known[parameter] for parameter in parameters}


@pytest.mark.parametrize("plugin", [AdamW(), Muon()])
@pytest.mark.parametrize("make", [gpt2, llama, bert])
class TestEveryOptimizer:
    def test_every_parameter_is_in_one_group(self, plugin: Optimizer, make: object, run_context: RunContext) -> None:
        model = make()
        grouped = [p for group in built(plugin, model, run_context).param_groups for p in group["params"]]
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == set(model.parameters())

    def test_matrices_decay_and_vectors_do_not(self, plugin: Optimizer, make: object, run_context: RunContext) -> None:
        for group in built(plugin, make(), run_context).param_groups:
            assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] == 0.1}

    def test_a_models_own_learning_rates_are_granted(
        self, plugin: Optimizer, make: object, run_context: RunContext
    ) -> None:
        model = make()
        embedding = model.get_input_embeddings()
        scale_learning_rate(embedding, "weight", 0.25)
        groups = built(plugin, model, run_context).param_groups
        (scaled,) = [group for group in groups if embedding.weight in set(group["params"])]
        if model.get_output_embeddings().weight is not embedding.weight:
            assert len(scaled["params"]) == 1
        # The rate times the decay stays what it is for the others.
        assert (scaled["lr"], scaled["weight_decay"]) == pytest.approx((2.5e-4, 0.4))
        assert {group["lr"] for group in groups if group is not scaled} <= {1e-3, 0.02}

    def test_what_is_frozen_stays_out(self, plugin: Optimizer, make: object, run_context: RunContext) -> None:
        model = make()
        frozen = next(model.parameters()).requires_grad_(False)
        optimizer = built(plugin, model, run_context)
        assert not any(p is frozen for group in optimizer.param_groups for p in group["params"])


def test_adamw_is_torchs(run_context: RunContext) -> None:
    optimizer = built(AdamW(betas=(0.8, 0.9), eps=1e-6), gpt2(), run_context)
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (1e-3, (0.8, 0.9), 1e-6, True)


class TestMuon:
    @pytest.mark.parametrize("make", [gpt2, llama, lambda: llama(tied=True), bert])
    def test_only_the_layers_own_matrices_are_hidden(self, make: object) -> None:
        model = make()
        for name in names(model, hidden_matrices(model)):
            assert name.endswith("weight")
            assert not any(
                word in name.lower() for word in ("embed", "wte", "wpe", "norm", "ln_", "lm_head", "decoder")
            )
        assert len(hidden_matrices(model)) == {"gpt2": 8, "llama": 14, "bert": 7}[model.config.model_type]

    def test_a_step_has_singular_values_near_one(self) -> None:
        for shape in ((32, 32), (16, 64), (64, 16)):
            values = torch.linalg.svdvals(orthogonalized(torch.randn(shape), steps=5, dtype=torch.float32))
            assert values.min() > 0.3
            assert values.max() < 1.3

    def test_half_precision_is_close(self) -> None:
        matrix = torch.randn(32, 64)
        exact, rough = (orthogonalized(matrix, steps=5, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
        assert torch.allclose(exact, rough.float(), atol=0.05)

    def test_a_step_is_torchs_step_where_torch_knows_the_shape(self, run_context: RunContext) -> None:
        """torch's Muon multiplies in bfloat16, so it is the same only to bfloat16's precision."""
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 48, bias=False)
        ours, theirs = layer.weight, torch.nn.Parameter(layer.weight.detach().clone())
        start = layer.weight.detach().clone()
        model = torch.nn.Sequential(layer)
        mine = built(Muon(), model, run_context)
        reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95)
        for _ in range(3):
            gradient = torch.randn(48, 16)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            mine.step()
            reference.step()
        with torch.no_grad():
            assert (ours - theirs).norm() < 0.02 * (ours - start).norm()

    def test_a_transposed_matrix_makes_the_transposed_step(self, run_context: RunContext) -> None:
        """GPT-2 stores (in, out) where torch's Linear stores (out, in): the same map must learn alike."""
        from transformers.pytorch_utils import Conv1D

        torch.manual_seed(0)
        for inputs, outputs in ((16, 48), (48, 16)):
            linear, conv = torch.nn.Linear(inputs, outputs), Conv1D(outputs, inputs)
            conv.weight.data = linear.weight.data.T.clone()
            gradient = torch.randn(outputs, inputs)
            linear.weight.grad, conv.weight.grad = gradient, gradient.T.clone()
            before = linear.weight.detach().clone()
            for module in (linear, conv):
                built(Muon(), torch.nn.Sequential(module), run_context, decay=0.0).step()
            assert torch.allclose(linear.weight, conv.weight.T, atol=1e-6)
            step = torch.linalg.matrix_norm(before - linear.weight.detach(), 2) / 0.02
            assert step.item() == pytest.approx(math.sqrt(max(1, outputs / inputs)), rel=0.35)

    @pytest.mark.parametrize("make", [gpt2, llama], ids=["stored (in, out)", "stored (out, in)"])
    def test_in_batches_it_makes_the_steps_that_it_makes_one_by_one(
        self, make: object, run_context: RunContext
    ) -> None:
        """As on a GPU, which it is told that it has; only the order of sums may differ."""
        gpu = replace(run_context.device, kind="cuda", bf16=False)
        alone, together = make(), make()
        optimizers = [
            built(Muon(), alone, replace(run_context, device=replace(gpu, kind="cpu"))),
            built(Muon(), together, replace(run_context, device=gpu)),
        ]
        ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            alone(input_ids=ids, labels=ids).loss.backward()
            for one, other in zip(alone.parameters(), together.parameters(), strict=True):
                other.grad = one.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
            alone.zero_grad()
        for one, other in zip(alone.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
        first, second = (optimizer.state_dict()["state"] for optimizer in optimizers)
        assert {key: set(state) for key, state in first.items()} == {key: set(state) for key, state in second.items()}

    def test_a_batch_is_of_one_shape_and_bounded(self) -> None:
        matrices = [torch.nn.Parameter(torch.empty(shape)) for shape in [(2, 4), (4, 2), (2, 4), (2, 4), (6, 6)]]
        batches = list(batches_of(matrices, elements=16))
        assert sorted(len(batch) for batch in batches) == [1, 1, 1, 2]
        assert {id(matrix) for batch in batches for matrix in batch} == set(map(id, matrices))
        assert all(len({matrix.shape for matrix in batch}) == 1 for batch in batches)
        assert [len(batch) for batch in batches_of(matrices, elements=0)] == [1] * 5

    def test_a_schedule_scales_all_groups(self, run_context: RunContext) -> None:
        optimizer = built(Muon(), gpt2(), run_context)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        assert schedule.get_last_lr() == [0.01, 0.0005, 0.0005]

    def test_at_rate_zero_nothing_moves(self, run_context: RunContext) -> None:
        model = gpt2()
        optimizer = built(Muon(), model, run_context)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        ids = torch.randint(64, (2, 16))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        assert all(map(torch.equal, before, model.parameters()))

    @pytest.mark.parametrize("make", [gpt2, lambda: llama(tied=True)])
    def test_it_learns(self, make: object, run_context: RunContext) -> None:
        model = make()
        optimizer = built(Muon(), model, run_context)
        ids = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(1))
        losses = []
        for _ in range(15):
            loss = model(input_ids=ids, labels=ids).loss
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0] - 0.5

    def test_without_hidden_matrices_adamw_takes_all(
        self, run_context: RunContext, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "toolkit")
        model = LoRA().apply(gpt2(), run_context)
        optimizer = built(Muon(), model, run_context)
        assert type(optimizer) is torch.optim.AdamW
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
        assert "AdamW takes all" in caplog.text

    def test_with_hidden_matrices_alone(self, run_context: RunContext) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
        optimizer = built(Muon(), model, run_context)
        model[0].weight.grad = torch.ones(4, 4)
        optimizer.step()
        assert [group["lr"] for group in optimizer.param_groups] == [0.02]


def trained(plugin: Optimizer, make: object, folder: Path, run: RunContext, *, resume: bool) -> tuple[Trainer, list]:
    """Six steps of a real Trainer that saves at the third; or the last three, from that save."""
    ids = torch.randint(64, (24, 16), generator=torch.Generator().manual_seed(2))
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        warmup_steps=2,
        logging_steps=1,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=5,
        dataloader_pin_memory=False,
    )
    model = make()
    optimizer = plugin.build(model, learning_rate=1e-3, weight_decay=0.1, run=run)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return trainer, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("plugin", [AdamW(), Muon()], ids=["adamw", "muon"])
@pytest.mark.parametrize("make", [gpt2, lambda: llama(tied=True)], ids=["gpt2", "tied llama"])
def test_a_resumed_training_is_the_same_to_the_bit(
    plugin: Optimizer, make: object, tmp_path: Path, run_context: RunContext
) -> None:
    whole, losses = trained(plugin, make, tmp_path, run_context, resume=False)
    torch.manual_seed(99)
    resumed, again = trained(plugin, make, tmp_path, run_context, resume=True)
    assert losses == again
    assert resumed.state.global_step == 6
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    first, second = whole.optimizer.state_dict(), resumed.optimizer.state_dict()
    assert first["param_groups"] == second["param_groups"]
    for index, state in first["state"].items():
        assert all(torch.equal(value, second["state"][index][name]) for name, value in state.items())
