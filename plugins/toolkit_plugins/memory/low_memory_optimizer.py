"""Optimizers that keep less state per weight than Adam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from toolkit.api import Change, Claim, Device, Fidelity, OptionError, Requirement, RunContext, Settings, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES = {
    "adafactor": "adafactor",
    "adamw-8bit": "adamw_8bit",
    "galore": "galore_adamw",
    "apollo": "apollo_adamw",
}
"""Their names in `transformers.TrainingArguments.optim`."""
WHY = {
    "adafactor": "a mean per row and column in place of Adam's 8 bytes per weight",
    "adamw-8bit": "2 bytes of state per weight; embeddings keep 8",
    "galore": "Adam's state for projected gradients",
    "apollo": "Adam's state for projected gradients, which say how far to go",
}
PACKAGES = {"adafactor": (), "adamw-8bit": ("bitsandbytes",)} | {
    name: ("bitsandbytes", f"{name}_torch") for name in ("galore", "apollo")
}


class LowMemoryOptimizer(Strategy):
    """Train with an optimizer whose state is small; AdamW's takes 8 bytes per trained weight.

    It replaces the recipe's `optimizer`, with the recipe's learning rate, schedule and weight decay (of matrices only),
    and with that optimizer's betas and eps where it has them too. A different optimizer takes different steps:
    approximate.

    * adafactor: next to no state, no extra package. The learning rate is the recipe's (no relative step, no parameter
      scaling), and updates are clipped to an RMS of 1. A few more passes over each gradient than AdamW.
      Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235.
    * adamw-8bit: AdamW with 8-bit state, except for embeddings (with weights-in-bf16, for those too). Needs
      bitsandbytes. Hardly slower.
      Dettmers et al. 2021, https://arxiv.org/abs/2110.02861.
    * galore: AdamW on gradients projected to a rank-`rank` subspace of each matrix. Needs galore_torch and
      bitsandbytes. Costs a singular value decomposition of every matrix every 200 steps.
      Zhao et al. 2024, https://arxiv.org/abs/2403.03507.
    * apollo: the subspace is random and only scales the update of each channel. Needs apollo_torch and bitsandbytes.
      Zhu et al. 2024, https://arxiv.org/abs/2412.05270.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"optimizer"})
    fidelity: ClassVar[Fidelity] = "approximate"

    optimizer: Literal["adafactor", "adamw-8bit", "galore", "apollo"] = "adafactor"
    """Which optimizer; see above for what each needs and costs."""
    rank: int = Field(default=128, ge=1)
    """Rank of the subspace in which galore and apollo keep state for each matrix."""

    def requires(self) -> Sequence[Requirement]:
        """The packages of the chosen optimizer."""
        cure = "use optimizer: adafactor, which needs no package"
        return [Requirement("package", package, cure) for package in PACKAGES[self.optimizer]]

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """The one that needs no package."""
        return [cls(optimizer="adafactor")]

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Set the Trainer's `optim`."""
        changes = {"optim": Change(NAMES[self.optimizer], WHY[self.optimizer])}
        if self.optimizer in ("galore", "apollo"):
            changes["optim_args"] = Change(f"rank={self.rank}")
        return changes

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model unchanged.

        Raises:
            OptionError: galore or apollo finds no matrices that it can project.
        """
        import torch

        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        if self.optimizer in ("galore", "apollo") and not set(linear) - {model.get_output_embeddings()}:
            raise OptionError(
                f"{self.optimizer} projects the gradients of Linear modules, and {type(model).__name__} has none in "
                f"its layers; take adafactor or adamw-8bit",
                option="optimizer",
            )
        return model

    def rehearse(self) -> LowMemoryOptimizer:
        """The same with a rank that fits a small model."""
        return self.model_copy(update={"rank": min(self.rank, 8)})
