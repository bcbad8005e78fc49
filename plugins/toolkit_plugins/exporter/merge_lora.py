"""LoRA factors merged into the model, which then needs no peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import OptionError, Results, RunContext, ToolkitError
from toolkit_plugins.exporter.model_card import CardedExporter
from toolkit_plugins.exporter.model_files import ids_to_compare, logits, prove, reload_full, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUNDING = 1e-2
"""How much merging may change a logit: W + BA is rounded once, while Wx + BAx is rounded at each product."""


def _shared_with(model: PreTrainedModel) -> dict[str, str]:
    """Adapted modules whose matrix another module shares, such as a head tied to the embedding, with the others."""
    from peft.tuners.lora import LoraLayer  # not the wrapper of new tokens' rows, which merges into a tied head too

    owners: dict[int, list[str]] = {}
    adapted: dict[str, int] = {}
    for name, module in model.named_modules():
        weight = getattr(module.get_base_layer() if isinstance(module, LoraLayer) else module, "weight", None)
        if weight is None:  # a container, or a layer's stacked experts
            continue
        if isinstance(module, LoraLayer):
            adapted[name] = id(weight)
        else:
            owners.setdefault(id(weight), []).append(name.removesuffix(".base_layer"))
    others = {name: [owner for owner in owners[weight] if owner != name] for name, weight in adapted.items()}
    return {_short(name): ", ".join(map(_short, shared)) for name, shared in others.items() if shared}


def _short(name: str) -> str:
    return name.removeprefix("base_model.model.")


class MergeLoRA(CardedExporter):
    """Write the model with the LoRA factors merged in: a plain model, as large as its base."""

    @property
    def folder(self) -> str:
        """Always `model`."""
        return "model"

    def export_bytes(self, *, weights: int, saved: int) -> int:
        """The merged model, and the written one loaded again."""
        return 2 * weights

    def check(self, model: PreTrainedModel, run: RunContext) -> None:
        """Refuse a model without LoRA, a 4-bit base, and an adapted matrix that another module shares."""
        if not hasattr(model, "peft_config"):
            raise OptionError(
                "the model has no LoRA to merge; take the exporter model-folder, or the memory strategy lora"
            )
        if getattr(model, "is_loaded_in_4bit", False):
            raise OptionError("qlora's matrices have 4 bits and would lose more by merging; take model-folder")
        for name, others in _shared_with(model).items():
            raise OptionError(
                f"LoRA's factors of {name} cannot be merged: it shares its matrix with {others}, which would change "
                f"too; leave it out of lora's target_modules, or export the adapter with model-folder"
            )

    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        results: Results,
        run: RunContext,
    ) -> None:
        """Merge a copy, check it against the model, write it, and prove that it loads.

        Raises:
            ToolkitError: the merged or the written model computes something else.
        """
        self.check(model, run)
        adapted: Any = model
        config = adapted.peft_config["default"]
        device = adapted.device
        merged = copy.deepcopy(adapted.to("cpu")).merge_and_unload()  # copied on the CPU, where memory is plentiful
        ids = ids_to_compare(model, tokenizer)
        difference = (logits(adapted, ids) - logits(merged, ids)).abs().max().item()
        adapted.to(device)
        if difference > ROUNDING:
            raise ToolkitError(f"merging changed the model: logits differ by up to {difference:.2g}")
        write(merged, tokenizer, folder)
        proof = prove(merged, tokenizer, folder, reload=reload_full(run))
        base = config.base_model_name_or_path or None
        what = (
            f"A {merged.config.model_type} model trained with pretrain-toolkit: LoRA on "
            f"{base or 'a model of this run'}, merged. Its logits are those of base and adapter to {difference:.1g}."
        )
        self.write_card(folder, results, run, parameters=merged.num_parameters(), what=what, proof=proof, base=base)
        run.log.info("merged model written; %s", proof)
