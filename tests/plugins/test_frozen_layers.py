"""What is frozen gets no gradient, and the rest learns."""

from pathlib import Path

import pytest
import torch

from toolkit.api import OptionError, RunContext
from toolkit.testing.bench import Bench
from toolkit_plugins.memory.frozen_layers import FrozenLayers


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("family", "frozen"),
    [
        ("gpt2", ("transformer.h.0.", "transformer.wte.", "transformer.wpe.")),
        ("llama", ("model.layers.0.", "model.embed_tokens.")),
        ("bert", ("bert.encoder.layer.0.", "bert.embeddings.word", "bert.embeddings.pos", "bert.embeddings.token")),
    ],
)
def test_the_first_layers_and_the_embeddings(
    tmp_path: Path, run_context: RunContext, family: str, frozen: tuple[str, ...]
) -> None:
    bench = Bench(tmp_path, rehearsal=False)
    model = FrozenLayers(layers=1).apply(bench.model(family), run_context)
    names = {name for name, _ in model.named_parameters()}
    assert names - trained(model) == {name for name in names if name.startswith(frozen)}
    model(input_ids=bench.batch(), labels=bench.batch()).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained(model)


def test_the_embeddings_may_learn(tmp_path: Path, run_context: RunContext) -> None:
    model = FrozenLayers(layers=1, embeddings=False).apply(Bench(tmp_path, rehearsal=False).model("gpt2"), run_context)
    assert "transformer.wte.weight" in trained(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers": 2}, "has 2 layers, .* freeze 1 or fewer"), ({"layers": 0, "embeddings": False}, "freezes nothing")],
)
def test_too_many_or_none(tmp_path: Path, run_context: RunContext, options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        FrozenLayers(**options).apply(Bench(tmp_path, rehearsal=False).model("gpt2"), run_context)
