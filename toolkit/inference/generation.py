"""Text generation: the sample at the end of a run, and `toolkit generate`.

Generating leaves no trace: the global RNG state and the model's train/eval mode are restored.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolkit.errors import UsageError, nearest
from toolkit.logs import libraries_quiet
from toolkit.storage.run_directory import MODEL_FOLDER, RunDirectory
from toolkit.system import environment_variables
from toolkit.system.device import detect

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILL_MASK_CANDIDATES = 5
"""Candidates that a masked model's sample shows for the masked word."""
FILL_MASK_PROMPT = "This function returns the {mask} of the list."
"""What a masked model fills in at the end of its run."""


@environment_variables.set_aside()
@libraries_quiet()
def generate(
    run: RunDirectory, *, prompt: str, max_new_tokens: int, temperature: float, top_k: int | None, seed: int
) -> str:
    """Let a run's exported model continue the prompt; a masked model fills in the prompt's mask.

    Raises:
        UsageError: the run has no exported model, or a masked model's prompt has nothing to fill in.
    """
    model, tokenizer = load_model(run)
    if run.record["task"] == "masked-lm":
        return fill_mask_text(model, tokenizer, sentence=prompt)
    return sample_text(
        model,
        tokenizer,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )


def load_model(run: RunDirectory, name: str = MODEL_FOLDER) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that a run has exported, the model in eval mode on this machine's device.

    Args:
        run: the run.
        name: of the exported folder.

    Raises:
        UsageError: it has not exported any yet.
    """
    folder = run.folder / name
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        if name != MODEL_FOLDER:
            exports = run.record.get("exports", {})
            names = (path.name for path in run.folder.iterdir() if path.is_dir() and path.name in exports)
            raise UsageError(f"{run.name} has exported no {name}; {nearest(name, names)}")
        raise UsageError(f"{run.name} has no model yet (it is {run.status}); run its recipe again to resume it")
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    auto: Any = AutoModelForMaskedLM if run.record["task"] == "masked-lm" else AutoModelForCausalLM
    if (folder / "adapter_config.json").is_file():
        model = _adapter_on_its_base(folder, auto)
    else:
        model = auto.from_pretrained(folder)
    return model.eval().to(detect().kind), AutoTokenizer.from_pretrained(folder)


def _adapter_on_its_base(folder: Path, auto: Any) -> Any:
    """The base model that an adapter names, with the adapter on it.

    transformers can load an adapter's folder too, but 5.17 silently leaves the adapter out.
    """
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    base = auto.from_pretrained(config.base_model_name_or_path, revision=config.revision)
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
        return PeftModel.from_pretrained(base, folder)


def sample_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> str:
    """Return the prompt and the model's continuation; an empty prompt stands for the start of a document.

    Temperature 0 decodes greedily. The text ends at an end token, after `max_new_tokens`, or at the model's last
    position.
    """
    import torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [start]
    positions = getattr(model.config, "max_position_embeddings", None) or len(ids) + max_new_tokens
    ids = ids[-max(1, positions - 1) :]
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": top_k or 0}
    with _undisturbed(model, seed), torch.no_grad():
        written = cast(Any, model).generate(
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=max(1, min(max_new_tokens, positions - len(ids))),
            pad_token_id=end if pad is None else pad,
            suppress_tokens=None if pad in (None, end) else [pad],  # training never taught the model to avoid it
            **(drawn if temperature > 0 else {"do_sample": False}),
        )
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


def fill_mask_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, sentence: str = FILL_MASK_PROMPT
) -> str:
    """Return the sentence with the most likely words for its mask, each with its probability.

    `sentence` holds the tokenizer's mask token, or `{mask}` or `[MASK]` in its place.

    Raises:
        UsageError: there is nothing to fill in.
    """
    import torch

    mask = str(tokenizer.mask_token)
    text = sentence.replace("{mask}", mask).replace("[MASK]", mask)
    ids = tokenizer(text)["input_ids"]
    if tokenizer.mask_token_id not in ids:
        raise UsageError(
            f"this is a masked language model: write [MASK] for the missing word, as in {FILL_MASK_PROMPT!r}"
        )
    hole = ids.index(tokenizer.mask_token_id)
    positions = getattr(model.config, "max_position_embeddings", None) or len(ids)
    start = max(0, min(hole - positions // 2, len(ids) - positions))  # of a long text, the window around the mask
    seen = torch.tensor([ids[start : start + positions]], device=model.device)
    with _undisturbed(model, 0), torch.no_grad():
        chances = model(input_ids=seen).logits[0, hole - start].float().softmax(-1).topk(FILL_MASK_CANDIDATES)
    guesses = ", ".join(
        f"{str(tokenizer.decode([int(token)])).strip()} ({float(chance):.0%})"
        for chance, token in zip(chances.values, chances.indices, strict=True)
    )
    return f"{text.replace(mask, '[MASK]')}: {guesses}"


@contextlib.contextmanager
def _undisturbed(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Run in eval mode with a seed of its own, then restore RNG state and mode."""
    import torch

    devices = [model.device] if model.device.type == "cuda" else []
    training = model.training
    model.train(False)
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        model.train(training)
