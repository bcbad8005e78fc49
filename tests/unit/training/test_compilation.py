"""Compiled training steps: one graph for all layers, none for evaluation and generation, and a model left as it was."""

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.tiny import assert_same_run, command, train, write_recipe
from toolkit.errors import InterruptedRun, RunMismatchError
from toolkit.events import Message
from toolkit.lifecycle import compile_choice
from toolkit.storage.run_directory import RunDirectory
from toolkit.training import compilation
from toolkit.training.compilation import compiled, reason
from toolkit.training.loss import StepLoss
from toolkit.training.strategies import checkpoint_layers

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 64}


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
"""Compiled dropout draws other numbers."""


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(**SIZES, n_positions=16, **NO_DROPOUT)),
        "llama": LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, max_position_embeddings=16)),
    }


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_all_layers_share_a_graph_and_only_training_uses_it(name: str, checkpointed: bool) -> None:
    from torch._dynamo.utils import counters

    model = models()[name].train()
    if checkpointed:
        checkpoint_layers(model, every=1)
    loss = StepLoss(model, "causal-lm", None, name="", in_evaluation=True)
    tokens = torch.arange(32).reshape(2, 16)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        loss(model(input_ids=tokens, use_cache=False), tokens).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    torch._dynamo.reset()
    counters.clear()
    with compiled(model, loss):
        fused = gradients()
        assert counters["stats"]["unique_graphs"] == 2  # a layer, and the loss
        with torch.no_grad():
            for length in range(2, 9):
                loss(model(input_ids=tokens[:, :length]), tokens[:, :length])
        gradients()
        assert counters["stats"]["unique_graphs"] == 2
        assert not counters["graph_break"]
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(map(torch.equal, plain, gradients()))


def test_what_torch_says_is_cut_to_its_cause() -> None:
    error = RuntimeError("backend failed")
    error.__cause__ = OSError("\nno compiler\n\nset TORCHDYNAMO_VERBOSE=1")
    assert reason(error) == "no compiler"


def decided(run: Path) -> Any:
    return RunDirectory(run).record["identity"]["training.torch_compile"]


class TestAuto:
    def test_in_a_short_run_is_off_and_says_nothing(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path)
        result, events = train(recipe)
        assert decided(result.folder) is False
        assert not any("torch_compile" in event.text for event in events if isinstance(event, Message))

    def test_what_it_decided_holds_for_a_resume(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path)
        with pytest.raises(InterruptedRun):
            train(recipe, stop_after=3)
        with pytest.raises(RunMismatchError) as caught:
            train(recipe, "training.torch_compile=true")
        assert caught.value.differences == ("training.torch_compile: the run has False, the recipe now says True",)
        assert train(recipe, "training.torch_compile=false")[0].steps == 8

    def test_without_a_compiler_it_is_off_and_says_why(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(compile_choice.WORTH_TRYING_SECONDS, "cpu", 0.0)
        monkeypatch.setattr(compilation, "compiled", without_compiler)
        result, events = train(write_recipe(tmp_path))
        assert decided(result.folder) is False
        assert [event.text for event in events if isinstance(event, Message) and "torch_compile" in event.text] == [
            "torch_compile: off, because torch.compile does not work here: no compiler"
        ]

    @pytest.mark.slow
    @needs_compiler
    def test_where_it_is_on_a_resume_is_exact(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folders = tmp_path / "whole", tmp_path / "parts"
        for folder in folders:
            folder.mkdir()
        whole, parts = (write_recipe(folder, memory=["chunked-loss"]) for folder in folders)
        with monkeypatch.context() as always:
            always.setitem(compile_choice.WORTH_TRYING_SECONDS, "cpu", 0.0)
            always.setattr(compile_choice, "MIN_SAVED_SHARE", -math.inf)
            result, events = train(whole)
            assert any("torch_compile: on: " in event.text for event in events if isinstance(event, Message))
            with pytest.raises(InterruptedRun):
                train(parts, stop_after=3)
        resumed, _ = train(parts)  # which would decide against it
        assert decided(resumed.folder) is True
        assert_same_run(resumed.folder, result.folder)


@contextlib.contextmanager
def without_compiler(model: Any, loss: Any) -> Iterator[None]:
    """Compiled layers on a machine that cannot compile."""

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    layers = compilation.repeated_layers(model)
    for layer in layers:
        layer.forward = refused
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@pytest.mark.slow
@needs_compiler
def test_what_was_compiled_is_kept_for_the_next_start(tmp_path: Path) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    write_recipe(tmp_path, training={"torch_compile": True, "max_steps": 2})
    cache = tmp_path / "cache"

    def start(name: str) -> set[Path]:
        places = {"TOOLKIT_CACHE": str(cache), "TORCHINDUCTOR_CACHE_DIR": default_cache_dir()}
        process = command("recipe", "run", "tiny.yaml", f"--name={name}", cwd=tmp_path, **places)
        _, told = process.communicate()
        assert process.returncode == 0, told
        return set((cache / "compiled").rglob("*.so"))

    first = start("first")
    assert first
    assert start("second") == first


@pytest.mark.slow
def test_a_recipe_that_insists_ends_with_one_message(tmp_path: Path) -> None:
    write_recipe(tmp_path, training={"torch_compile": True})
    cache = str(tmp_path / "compiled")
    process = command("recipe", "run", "tiny.yaml", cwd=tmp_path, CXX="/nonexistent", TORCHINDUCTOR_CACHE_DIR=cache)
    _, told = process.communicate()
    assert process.returncode == 3
    assert "error: training.torch_compile: true, and torch.compile does not work here: " in told
    assert "C++ compiler" in told
    assert "torch_compile: auto" in told
    assert "Traceback" not in told
