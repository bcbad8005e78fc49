"""Matrices of 4 bits with factors beside them; on the processor, which bitsandbytes can quantize on too."""

from pathlib import Path

import pytest
import torch

from tests.tiny import resolved, write_recipe
from toolkit.api import RunContext
from toolkit.errors import RecipeError
from toolkit.testing.bench import Bench
from toolkit_plugins.memory.qlora import QLoRA


def test_what_is_missing_and_what_to_use_instead(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"qlora needs a cuda device, .*, or use lora, which needs neither"):
        resolved(write_recipe(tmp_path, memory=["qlora"]))


@pytest.mark.parametrize(("family", "matrices"), [("gpt2", 8), ("llama", 14)])
def test_the_frozen_matrices_are_quantized(tmp_path: Path, run_context: RunContext, family: str, matrices: int) -> None:
    nn = pytest.importorskip("bitsandbytes.nn", exc_type=ImportError)
    bench = Bench(tmp_path, rehearsal=False)
    # In training mode: in evaluation, bitsandbytes has another layout on the processor, for widths of 64 and more.
    plain, model = bench.model(family), QLoRA(r=4).apply(bench.model(family), run_context).to("cpu")
    quantized = [module for module in model.modules() if isinstance(module, nn.Linear4bit)]
    assert len(quantized) == matrices
    assert all(module.weight.dtype == torch.uint8 for module in quantized)
    ids = bench.batch()
    difference = (model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max()
    assert 0 < difference < 0.3
    model(input_ids=ids, labels=ids).loss.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, parameter in model.named_parameters() if "lora_" in name}
