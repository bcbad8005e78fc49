"""A step makes the host wait for nothing on the device, unless it logs, evaluates or saves.

On a GPU each read of a tensor's value waits until all that was asked of the GPU is done. On a CPU the same reads are
counted; the loss guard judges as on a GPU.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import train, write_recipe
from toolkit.training import loss_guard
from toolkit.training.trainer import RecipeTrainer

READS = {"tolist", "cpu", "numpy", "item", "__bool__", "__float__", "__int__", "__index__"}
LOGGED, SAVED, STEPS = 5, 10, 12


class Reads:
    """Counts the reads of tensors' values by the step that made them, with the places in the code."""

    def __init__(self) -> None:
        self.step = 0
        self.of_steps: dict[int, list[str]] = defaultdict(list)
        self.on_host: set[int] = set()
        """Addresses of tensors that lie on the host wherever the model is."""

    def note(self, tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.data_ptr() in self.on_host:
            return
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        self.of_steps[self.step].append(" < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-3:-8:-1]))


class OfFunctions(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.reads.note(args[0])
        return func(*args, **(kwargs or {}))


class OfOperations(TorchDispatchMode):
    """What torch's own code reads."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.reads.note(args[0])
        return func(*args, **(kwargs or {}))


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"memory": [{"plugin": "small-batch", "micro_batch_size": 2}]},
    "in chunks": {"memory": ["chunked-loss", "gradient-checkpointing"]},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_none_in_a_step_that_does_not_log_evaluate_or_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    reads = Reads()

    class Counted(RecipeTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            with OfFunctions(reads), OfOperations(reads):
                return super().train(*args, **kwargs)

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            reads.step = self.state.global_step + 1
            if self.guard._on_device:  # it is read once the step before is done
                reads.on_host.add(self.guard._on_device._host_copy.data_ptr())
            return super().get_batch_samples(*args, **kwargs)

    monkeypatch.setattr("toolkit.training.build.RecipeTrainer", Counted)
    monkeypatch.setattr(loss_guard, "ASYNCHRONOUS_DEVICES", {"cpu"})
    training = {"max_steps": STEPS, "logging_steps": LOGGED, "eval_steps": SAVED, "save_steps": SAVED}
    train(write_recipe(tmp_path, training=training, **recipe))
    assert reads.of_steps[LOGGED]  # the loss
    waited = {step: places for step, places in reads.of_steps.items() if step not in (0, 1, LOGGED, SAVED, STEPS)}
    assert waited == {}
