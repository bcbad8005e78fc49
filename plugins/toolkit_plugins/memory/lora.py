"""LoRA: trains low-rank factors beside frozen matrices."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from toolkit.api import Claim, Device, Fidelity, OptionError, RunContext, Settings, Strategy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class LoRA(Strategy):
    """Freeze the model and train a low-rank update, the product of two thin matrices, beside each chosen matrix.

    Only these factors have optimizer state: a hundredth as much. It is not the same as training the whole model, and
    makes sense only from pretrained weights. Hu et al. 2021, https://arxiv.org/abs/2106.09685.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"trainable-parameters"})
    fidelity: ClassVar[Fidelity] = "different"
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "adapters"

    r: int = Field(default=8, ge=1)
    """Rank of the update: the small dimension of the factors."""
    lora_alpha: float = Field(default=16, gt=0)
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the factors."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead, so that high ranks still learn. https://arxiv.org/abs/2312.03732."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which matrices to adapt: module names ([c_attn, c_proj], say), or all-linear for every matrix but the head's."""

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """One, with the usual rank; other ranks hardly differ in memory."""
        return [cls()]

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with factors; at first they change nothing, because one of each pair is zero."""
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers.pytorch_utils import Conv1D

        chosen = self._chosen(model)
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type] # peft takes any number and divides it
            lora_dropout=self.lora_dropout,
            use_rslora=self.use_rslora,
            target_modules="all-linear" if self.target_modules == "all-linear" else list(self.target_modules),
            # peft has no task type for masked-lm; without one it passes all arguments through unchanged.
            task_type=TaskType.CAUSAL_LM if run.task == "causal-lm" else None,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in chosen.values()),
            # The commit that the weights came from, so that the adapter is loaded onto the very same ones.
            revision=getattr(model, "base_revision", None),
            trainable_token_indices=_rows_of_new_tokens(model, chosen),
        )
        experts = _stacked(model)
        with warnings.catch_warnings():
            # peft 0.21 reads a property that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
            # It sets the rank and alpha of experts by name patterns that it then cannot match.
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match", category=RuntimeWarning)
            try:
                adapted: Any = get_peft_model(model, config)
            except ValueError as error:  # a module that peft cannot adapt, such as a norm
                names = ", ".join(sorted({name.rpartition(".")[2] for name in chosen}))
                raise OptionError(
                    f"peft has no factors for all of {names}: {error}; name some of them in target_modules",
                    option="target_modules",
                ) from error
        # Otherwise peft asks the Hub about the base's vocabulary at every checkpoint, and hangs where there is no
        # network; the factors are all that was trained.
        adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
        trained, total = adapted.get_nb_trainable_parameters()
        run.log.info(
            "LoRA trains %s of %s parameters (%.2f %%), beside %s matrices",
            f"{trained:,}",
            f"{total:,}",
            100 * trained / total,
            len(chosen),
        )
        if left_out := experts.keys() - _with_factors(adapted):
            run.log.info(
                "LoRA leaves the experts as they are: %s stacks of matrices such as %s, %.0f %% of the parameters, get "
                "no factors",
                len(left_out),
                min(experts[key][0] for key in left_out),
                100 * sum(experts[key][1] for key in left_out) / total,
            )
        result: PreTrainedModel = adapted
        return result

    def _chosen(self, model: PreTrainedModel) -> dict[str, torch.nn.Module]:
        """The modules to adapt, by name.

        Raises:
            OptionError: a name matches nothing; peft would not complain as long as another one matches.
        """
        import torch
        from transformers.pytorch_utils import Conv1D

        head = model.get_output_embeddings()
        linear: dict[str, torch.nn.Module] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
        }
        if self.target_modules == "all-linear":
            return linear
        chosen: dict[str, torch.nn.Module] = {}
        for target in self.target_modules:
            matches = {
                name: module for name, module in model.named_modules() if name == target or name.endswith(f".{target}")
            }
            if not matches:
                known = sorted({name.rpartition(".")[2] for name in linear})
                raise OptionError(
                    f"this model has no module named {target!r}; its matrices are named: {', '.join(known)}",
                    option="target_modules",
                )
            chosen |= matches
        if not chosen:
            raise OptionError("name at least one module, or say all-linear", option="target_modules")
        return chosen


def _rows_of_new_tokens(model: PreTrainedModel, chosen: Mapping[str, torch.nn.Module]) -> dict[str, list[int]] | None:
    """The embedding rows to train beside the factors, by module: those of tokens new to the pretrained model.

    Frozen, all of them would stay at the mean of the old rows, and be one and the same token.
    """
    if not (tokens := getattr(model, "new_tokens", None)):
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight  # peft trains a tied head's rows with the embedding's
    wanted = (embedding,) if tied else (embedding, head)
    return {name: tokens for name, module in model.named_modules() if module in wanted and name not in chosen}


def _stacked(model: PreTrainedModel) -> dict[int, tuple[str, int]]:
    """The parameters that stack all experts of a layer in one tensor: their names and sizes, by identity."""
    import torch

    return {
        id(parameter): (f"{name}.{kind}", parameter.numel())
        for name, module in model.named_modules()
        if not isinstance(module, torch.nn.modules.conv._ConvNd)
        for kind, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def _with_factors(adapted: PreTrainedModel) -> set[int]:
    """The identities of the bare parameters, as opposed to modules, that got factors; peft adapts some models so."""
    from peft.tuners.lora.layer import ParamWrapper

    return {id(module.get_param()) for module in adapted.modules() if isinstance(module, ParamWrapper)}
