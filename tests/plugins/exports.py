"""What the tests of exporters export: the results of a run, and a model with an adapter."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from toolkit.api import Results, RunContext
from toolkit_plugins.memory.lora import LoRA

RESULTS = Results(
    recipe="recipe: 1\ndataset: {plugin: python-docs}\n",
    data={"train": {"documents": 1234, "tokens": 567890}, "padding": 0.0, "excerpt": "the\nend"},
    metrics={"steps": 100, "tokens_seen": 1234567, "eval_loss": 3.14159265},
    licenses=("PSF-2.0",),
    languages=("en",),
)


def with_lora(model: PreTrainedModel, run: RunContext, lora: LoRA | None = None) -> PreTrainedModel:
    """A model whose adapter has learned something."""
    adapted = (lora or LoRA(r=4)).apply(model, run)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return adapted
