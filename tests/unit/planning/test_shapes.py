"""What is counted by hand is what the models have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.random_models import tokenizer_folder
from toolkit.api import RunContext
from toolkit.planning.shapes import Architecture, TransformerShape, shape_of, usual_vocabulary
from toolkit.registry import Registry
from toolkit.system.device import detect
from toolkit.training.model_flops import flops_per_token


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("size", [4e5, 8e6])
def test_parameters_and_flops_are_those_of_the_model_that_the_recipe_builds(
    architecture: Architecture, size: float, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    shape = shape_of(size, architecture)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(tmp_path, shape.vocabulary))
    options = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
    }
    plugin = Registry.discover().load("model", architecture).model_validate(options)
    run = RunContext("shape", tmp_path, tmp_path, 1, detect(), "causal-lm", shape.block_size)
    with torch.device("meta"):
        model = plugin.build(tokenizer, run)
        flops = flops_per_token(model, shape.block_size)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.flops_per_token == flops
    positions = shape.block_size if architecture == "gpt2" else 0
    embedded = (shape.vocabulary + positions) * shape.width
    assert shape.hidden_parameters == shape.parameters - embedded


def test_the_shape_of_gpt_2_is_found_again() -> None:
    found = shape_of(124_439_808, "gpt2", 50257)
    assert (found.layers, found.width, found.heads, found.block_size) == (12, 768, 12, 1024)
    assert found.parameters == 124_439_808


@pytest.mark.parametrize("size", [5e5, 2e6, 1e7, 5e7, 3e8, 1e9, 7e9])
def test_proportions_are_usual_and_the_size_is_near(size: float) -> None:
    found = shape_of(size, "llama")
    assert found.parameters == pytest.approx(size, rel=0.25)
    assert 24 <= found.width / found.layers <= 192
    assert found.width % found.heads == 0
    assert found.vocabulary == usual_vocabulary(found.width)


def test_attention_takes_a_quarter_of_the_arithmetic_at_most() -> None:
    for width in (96, 256, 704, 2048):
        shape = TransformerShape("gpt2", 12, width, 4096)
        attention = 12 * shape.layers * shape.width * shape.block_size
        assert attention <= shape.flops_per_token / 4
