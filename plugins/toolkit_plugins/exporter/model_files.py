"""Writes a model folder, a card that tells what the model is, and proves that the folder loads.

Used by every exporter that leaves a model; what model that is, is theirs to decide.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import Results, RunContext, ToolkitError
from toolkit_plugins.exporter.version_four import add_old_names

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = "The quick brown fox jumps over the lazy dog, and 42 naïve cafés wait — \n\tdef f(x): return x\n"
"""What the reloaded folder has to read as the trained model does: words, digits, accents, white space."""

COMPARED = 32
"""Tokens whose logits are compared: every weight is anyway, and 50,257 logits of each token take their memory twice."""


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights as safetensors, tokenizer, configs; readable by whom the umask lets read."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_old_names(folder, tokenizer)
    readable(folder)


def readable(folder: Path) -> None:
    """Give all files the mode that a new file has; safetensors writes its own so that only the owner can read it."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            with contextlib.suppress(OSError):  # a file system without modes
                file.chmod(mode)


def prove(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    reload: Callable[[Path], PreTrainedModel],
) -> str:
    """Load the folder again, compare what it computes with what the model computes, and say the outcome.

    Raises:
        ToolkitError: they differ. A folder that loads in silence as something else is worse than none.
    """
    import torch
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer.encode(TEXT)
    special = (set(again.all_special_ids), again.pad_token_id) == (
        set(tokenizer.all_special_ids),
        tokenizer.pad_token_id,
    )
    if not ids or again.encode(TEXT) != ids or len(again) != len(tokenizer) or not special:
        raise ToolkitError(f"the tokenizer that was written to {folder} does not read text as the trained one does")
    ids = ids[: min(COMPARED, getattr(model.config, "max_position_embeddings", None) or COMPARED)]
    loaded = reload(folder)
    stored = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if name not in stored or not torch.equal(weight.cpu(), stored[name]):
            raise ToolkitError(f"the model that was written to {folder} is not the trained one: {name} differs")
    ours, theirs = logits(model, ids), logits(loaded, ids)
    difference = (ours - theirs).abs().max().item()
    if difference == 0.0:
        return f"loaded again, it has the same weights and logits, bit for bit (over {len(ids)} tokens)"
    # Another device sums in another order, so the last half of a number's digits may differ.
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


def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The model's logits on the CPU in float32, shape (tokens, vocabulary), without dropout."""
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
    """How a folder with all weights is loaded: by the folder alone, with the task's head."""

    def reload(folder: Path) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        auto: Any = AutoModelForCausalLM if run.task == "causal-lm" else AutoModelForMaskedLM
        model: PreTrainedModel = auto.from_pretrained(folder, dtype="auto", local_files_only=True, use_safetensors=True)
        return model

    return reload


def write_card(
    folder: Path,
    results: Results,
    run: RunContext,
    *,
    parameters: int,
    what: str,
    proof: str,
    base: str | None = None,
    loading: str | None = None,
) -> None:
    """Write README.md: what the model is, what it learned from, how well, under which licences, and how to load it."""
    head: dict[str, Any] = {"library_name": "peft" if loading else "transformers"}
    if base:
        head["base_model"] = base
    head["pipeline_tag"] = "text-generation" if run.task == "causal-lm" else "fill-mask"
    head["tags"] = ["pretrain-toolkit"]
    auto = "AutoModelForCausalLM" if run.task == "causal-lm" else "AutoModelForMaskedLM"
    code = loading or (
        f"from transformers import AutoTokenizer, {auto}\n\n"
        f'model = {auto}.from_pretrained("PATH")\ntokenizer = AutoTokenizer.from_pretrained("PATH")'
    )
    sections = [
        # A JSON value is a YAML value.
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items()) + "---",
        f"# {run.name}",
        what,
        *(["**This is a rehearsal: the model is tiny and has learned nothing.**"] if run.rehearsal else []),
        f"* parameters: {parameters:,}\n* objective: {run.task}, {run.block_size} tokens per sequence\n"
        f"* seed: {run.seed}\n* check: {proof}",
        "## Results",
        "\n".join(lines(results.metrics)) or "None were measured.",
        "## Data",
        "\n".join(lines(results.data)) or "No account was given.",
        "## Licences",
        "\n".join(f"* {license}" for license in results.licenses)
        or "The sources name none. Look them up before you pass the model on.",
        "## Use",
        f"```python\n{code}\n```",
        "## Settings",
        f"The complete recipe; `toolkit recipe run` repeats the training.\n\n```yaml\n{results.recipe.strip()}\n```",
    ]
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested facts as a nested list; numbers as people read them."""
    for key, value in facts.items():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping):
            yield f"{indent}* {name}:"
            yield from lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            yield f"{indent}* {name}: {', '.join(map(str, value))}"
        else:
            yield f"{indent}* {name}: {_number(value)}"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return json.dumps(value, ensure_ascii=False) if "\n" in str(value) else str(value)
    return f"{value:,.0f}" if isinstance(value, int) or (value.is_integer() and abs(value) >= 1000) else f"{value:.6g}"
