"""Writes a model folder, and proves that it loads.

Used by every exporter that writes a model; which model that is, the exporter decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import RunContext, ToolkitError
from toolkit_plugins.exporter.version_four import add_old_names

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPARED_TEXT = "The quick brown fox jumps over the lazy dog, and 42 naïve cafés wait — \n\tdef f(x): return x\n"
"""The text that the reloaded tokenizer and model are compared on: words, digits, accents, white space."""

COMPARED_TOKENS = 32
"""Tokens whose logits are compared: few, as every weight is compared anyway, and with two models 50,257 logits per
token are held twice."""


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the weights as safetensors, the tokenizer and the configs, with the permissions that the umask allows."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_old_names(folder, tokenizer)
    readable(folder)


def readable(folder: Path) -> None:
    """Give all files the mode of a newly created file; safetensors writes files that only the owner can read."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            with contextlib.suppress(OSError):  # a file system without permission bits
                file.chmod(mode)


def prove(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    reload: Callable[[Path], PreTrainedModel],
) -> str:
    """Load the folder again, compare weights and logits with the model's, and return the outcome in words.

    Raises:
        ToolkitError: they differ. A folder that silently loads as something else is worse than none.
    """
    import torch
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer.encode(COMPARED_TEXT)
    special = (set(again.all_special_ids), again.pad_token_id) == (
        set(tokenizer.all_special_ids),
        tokenizer.pad_token_id,
    )
    if again.encode(COMPARED_TEXT) != ids or len(again) != len(tokenizer) or not special:
        raise ToolkitError(f"the tokenizer that was written to {folder} does not read text as the trained one does")
    ids = ids_to_compare(model, tokenizer)
    loaded = reload(folder)
    stored = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if name not in stored or not torch.equal(weight.cpu(), stored[name]):
            raise ToolkitError(f"the model that was written to {folder} is not the trained one: {name} differs")
    ours, theirs = logits(model, ids), logits(loaded, ids)
    difference = (ours - theirs).abs().max().item()
    if difference == 0.0:
        return f"loaded again, it has the same weights and logits, bit for bit (over {len(ids)} tokens)"
    # Another device sums in another order, so the lower half of a number's digits may differ.
    device: torch.device = model.device
    allowed = torch.finfo(model.dtype).eps ** 0.5 * max(1.0, ours.abs().max().item())
    if device.type == "cpu" or difference > allowed:
        raise ToolkitError(
            f"the model that was written to {folder} does not compute what the trained one does: "
            f"logits differ by up to {difference:.2g}"
        )
    return (
        f"loaded again, it has the same weights, bit for bit; its logits on the CPU are those on the "
        f"{device.type} device to {difference:.1g} (over {len(ids)} tokens)"
    )


def ids_to_compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first tokens of COMPARED_TEXT; or of the vocabulary, if the tokenizer knows no word of the text."""
    ids = tokenizer.encode(COMPARED_TEXT) or list(range(len(tokenizer)))
    return ids[: min(COMPARED_TOKENS, getattr(model.config, "max_position_embeddings", None) or COMPARED_TOKENS)]


def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The model's logits in evaluation mode, moved to the CPU in float32, shape (tokens, vocabulary)."""
    import torch

    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            result = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    finally:
        model.train(training)
    return result.float().cpu()  # type: ignore[no-any-return]  # a model call is untyped


def reload_full(run: RunContext) -> Callable[[Path], PreTrainedModel]:
    """The function that loads a folder with all weights: from the folder alone, with the task's head."""

    def reload(folder: Path) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        auto: Any = AutoModelForCausalLM if run.task == "causal-lm" else AutoModelForMaskedLM
        model: PreTrainedModel = auto.from_pretrained(folder, dtype="auto", local_files_only=True, use_safetensors=True)
        return model

    return reload
