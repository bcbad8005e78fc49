"""The trained model as a folder that `from_pretrained` loads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import OptionError, Results, RunContext
from toolkit_plugins.exporter.model_card import REPOSITORY, CardedExporter
from toolkit_plugins.exporter.model_files import prove, reload_full, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelFolder(CardedExporter):
    """Write weights, tokenizer, configs and a model card, then load the model again and compare.

    For a model with LoRA, only the adapter is written, which needs its base to load; merge-lora writes both as one.
    """

    @property
    def folder(self) -> str:
        """Always `model`."""
        return "model"

    def check(self, model: PreTrainedModel, run: RunContext) -> None:
        """Refuse an adapter whose base exists only in this run."""
        if hasattr(model, "peft_config") and not model.peft_config["default"].base_model_name_or_path:
            raise OptionError(
                "this adapter's base was made in this run and is saved nowhere, so the adapter alone would be of no "
                "use; take the exporter merge-lora"
            )

    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        results: Results,
        run: RunContext,
    ) -> None:
        """Write the folder, prove that it loads, and write its model card.

        Raises:
            OptionError: the adapter's base exists only in this run.
            ToolkitError: what was written does not load as the same model.
        """
        self.check(model, run)
        if hasattr(model, "peft_config"):
            self._export_adapter(model, tokenizer, folder, results, run)
            return
        write(model, tokenizer, folder)
        proof = prove(model, tokenizer, folder, reload=reload_full(run))
        what = f"A {model.config.model_type} model trained with pretrain-toolkit."
        self.write_card(folder, results, run, parameters=model.num_parameters(), what=what, proof=proof)
        run.log.info("model written; %s", proof)

    def _export_adapter(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        results: Results,
        run: RunContext,
    ) -> None:
        config = model.peft_config["default"]
        base = config.base_model_name_or_path
        write(model, tokenizer, folder)
        proof = prove(model, tokenizer, folder, reload=lambda written: _adapter_on_base(model, written))
        where = f"{base} at {config.revision}" if config.revision else base
        adapter, _ = model.get_nb_trainable_parameters()
        if run.task == "causal-lm":
            loading = (
                "from peft import AutoPeftModelForCausalLM\n\n"
                f'model = AutoPeftModelForCausalLM.from_pretrained("{REPOSITORY}")'
            )
        else:
            loading = (
                "from peft import PeftModel\nfrom transformers import AutoModelForMaskedLM\n\n"
                f'base = AutoModelForMaskedLM.from_pretrained("{base}")\n'
                f'model = PeftModel.from_pretrained(base, "{REPOSITORY}")'
            )
        what = f"A LoRA adapter trained with pretrain-toolkit. It belongs to {where}, and needs it."
        self.write_card(folder, results, run, parameters=adapter, what=what, proof=proof, base=base, loading=loading)
        run.log.info("adapter for %s written; %s", where, proof)


def _adapter_on_base(model: Any, folder: Path) -> PreTrainedModel:
    """The written adapter on the base that is in memory, so that nothing is fetched over the network."""
    import copy

    from peft import PeftModel

    device = model.device
    model.to("cpu")
    # The frozen weights are shared, not copied: nothing changes them, and they are nearly all of the model.
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    base = copy.deepcopy(model, frozen).unload()
    model.to(device)
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
        again: Any = PeftModel.from_pretrained(base, folder)
    result: PreTrainedModel = again
    return result
