"""Builds models with transformers: from a config, from weights, from a multimodal model, with a larger embedding."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from toolkit.api import RunContext

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


def _auto_class(run: RunContext) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return AutoModelForCausalLM if run.task == "causal-lm" else AutoModelForMaskedLM


def from_config(config: PreTrainedConfig, run: RunContext) -> PreTrainedModel:
    """A model with random weights in float32, as in a loaded one, whatever dtype the config has."""
    import torch

    model: PreTrainedModel = _auto_class(run).from_config(config, dtype=torch.float32)
    return model


def without_weights(config: PreTrainedConfig, run: RunContext) -> PreTrainedModel:
    """The model's modules, on the meta device."""
    import torch

    with torch.device("meta"):
        return from_config(config, run)


def load(path: str, config: PreTrainedConfig, run: RunContext, **where: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The task's model (the whole of a multimodal one) with its weights in float32, and transformers' loading report.

    Only the report tells which shapes differ, and which weights were missing and so are random.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    auto: Any = _auto_class(run) if config.get_text_config() is config else AutoModelForImageTextToText
    model, report = auto.from_pretrained(
        path,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **where,
    )
    return model, report


def language_model(multimodal: Any, alone: Any) -> PreTrainedModel | None:
    """Take the language model out of a multimodal one, which can then be dropped; None if their classes differ.

    Args:
        multimodal: the whole model, with its weights.
        alone: the language model `without_weights`, which becomes the result.
    """
    decoder, head = multimodal.get_decoder(), multimodal.get_output_embeddings()
    prefix = alone.base_model_prefix
    if type(decoder) is not type(getattr(alone, prefix)) or head is None:
        return None
    setattr(alone, prefix, decoder)
    alone.set_output_embeddings(head)
    alone.config = decoder.config  # one object for both, as in a model loaded directly
    alone.generation_config = multimodal.generation_config
    alone.tie_weights()
    result: PreTrainedModel = alone
    return result


def without_unused_settings(config: GenerationConfig | None) -> list[str]:
    """Unset the generation settings that transformers ignores but refuses to save, and return their names.

    Old models have a temperature beside `do_sample: false`. They load, but cannot be saved again.
    """
    if config is None:
        return []
    try:
        config.validate(strict=True)
    except ValueError as error:
        unused = re.findall(r"^- `(\w+)`: ", str(error), re.MULTILINE)
        for name in unused:
            setattr(config, name, None)
        config.validate(strict=True)
        return unused
    return []


def resize(model: PreTrainedModel, added: range) -> None:
    """Add rows for the added tokens, each the mean of the old rows, to the embedding and to the head.

    transformers' own `mean_resizing` also adds noise of 1e-9 of the rows' covariance, which takes minutes to compute
    for a large model and changes nothing; the mean alone is the same at every start.
    """
    import torch

    model.resize_token_embeddings(added.stop, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for parameter in layer.parameters() if layer is not None else ():
                parameter[added.start :] = parameter[: added.start].mean(dim=0)
    note_new_tokens(model, added)


def note_new_tokens(model: Any, added: range) -> None:
    """Record on the model, for lora, which rows are new, and that this base cannot be found anywhere again."""
    if added:
        model.new_tokens = list(added)
        model.name_or_path = ""
