"""What the hooks copy and what they leave; on the processor, where host and device are one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import resolved, write_recipe
from toolkit.api import RunContext
from toolkit.errors import RecipeError
from toolkit.testing.bench import Bench
from toolkit.training.strategies import checkpoint_layers
from toolkit_plugins.memory import activation_offload
from toolkit_plugins.memory.activation_offload import ActivationOffload, HostCopies


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that was packed: (tensor, what is kept of it)."""
    seen: list[Any] = []

    class Recording(HostCopies):
        def pack(self, tensor: torch.Tensor) -> Any:
            seen.append((tensor, super().pack(tensor)))
            return seen[-1][1]

    monkeypatch.setattr(activation_offload, "HostCopies", Recording)
    return seen


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_same_gradients_from_copies(
    tmp_path: Path, run_context: RunContext, packed: list[Any], family: str, checkpointed: bool
) -> None:
    bench, results = Bench(tmp_path, rehearsal=False), []
    for offloaded in (False, True):
        model = bench.model(family)
        if offloaded:
            model = ActivationOffload(least_bytes=1000).apply(model, run_context)
        if checkpointed:
            checkpoint_layers(model, every=1)
        model.train()(input_ids=bench.batch(), labels=bench.batch()).loss.backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    copied = [tensor for tensor, kept in packed if isinstance(kept, tuple)]
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    assert len(copied) >= 2
    assert not [tensor for tensor in copied if tensor.nbytes < 1000 or tensor.data_ptr() in weights]
    assert not [kept for tensor, kept in packed if isinstance(kept, tuple) and kept[1].data_ptr() == tensor.data_ptr()]


def test_nothing_is_copied_in_evaluation_or_after_a_failed_pass(
    tmp_path: Path, run_context: RunContext, packed: list[Any]
) -> None:
    model = ActivationOffload(least_bytes=0).apply(Bench(tmp_path, rehearsal=False).model("gpt2"), run_context)
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2]]))
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10**6]]))
    packed.clear()
    (torch.ones(10, requires_grad=True) ** 2).sum().backward()
    assert packed == []


def test_without_a_gpu_it_says_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"activation-offload needs a cuda device.*or use gradient-checkpointing"):
        resolved(write_recipe(tmp_path, memory=["activation-offload"]))
