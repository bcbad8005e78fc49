"""Strategies of a recipe's `memory` section: what they declare before a run, and what they do in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from toolkit.api.context import RunContext
from toolkit.api.plugins import Plugin
from toolkit.api.settings import Settings
from toolkit.system.device import Device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Fidelity = Literal["exact", "approximate", "different"]
"""A strategy's effect on the numbers: none; lower precision; a different model or training."""

Claim = str
"""A resource that a single strategy manages exclusively. Ours are:

activations, activation-placement, logits (and the loss that is computed from them), gradients (which are there all
together between the backward pass and the optimizer step), optimizer, precision, weights, trainable-parameters, batch,
saves.

Any other word is as good: two strategies that claim the same word exclude each other.
"""


@dataclass(frozen=True)
class Change:
    """The value that a strategy gives a training setting, and the reason to show."""

    value: Any
    why: str = ""


@dataclass(frozen=True)
class Requirement:
    """Something that a strategy needs in order to work."""

    kind: Literal["device", "package", "claim"]
    name: str
    """Of the device, `cuda` or `mps`; of the package, as it is imported and installed; of a claim that another strategy
    of the recipe has to hold."""
    cure: str = ""
    """What else the user can do, to be shown after an `or`: `use lora, which needs no GPU`."""
    compute_capability: tuple[int, int] | None = None
    """Of the device `cuda`, the least (major, minor) that will do."""


class SummedLoss(Protocol):
    """Computes the training loss of a micro-batch, summed over its predicted tokens."""

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum over the predicted tokens, in nats: a float32 scalar that gradients can flow through.

        The sum and not the mean: the toolkit divides it by the number of predicted tokens in the whole step, so that
        gradient accumulation and the number of devices do not change the numbers.

        Args:
            inputs: what each token is predicted from: the logits in float32, (batch, length, vocabulary), or the hidden
                states before the head, (batch, length, hidden).
            targets: the token id to predict at each position, already shifted for causal-lm, (batch, length); -100
                where none is predicted. Multiply by `targets != -100` rather than index with it: a plan computes the
                loss of tensors without values, which cannot decide a shape.
        """


@dataclass(frozen=True)
class Loss:
    """A loss function, and what it is computed from."""

    summed: SummedLoss
    inputs: Literal["logits", "hidden_states"] = "logits"
    """With `hidden_states` the head is not computed, and the logits never exist; the loss applies the head's weights
    (`model.get_output_embeddings()`) itself. Models whose logits are not the output of a plain Linear are refused."""
    compiled: Callable[[], SummedLoss] | None = None
    """Returns the same loss with its kernels in torch.compile, for runs that compile their steps; called once."""


class Strategy(Plugin):
    """Trades something for memory, for safety or for a different training.

    It declares its effects before torch is imported, so that conflicts can be derived and shown.
    """

    kind: ClassVar[str] = "memory"
    fidelity: ClassVar[Fidelity]
    claims: ClassVar[frozenset[Claim]] = frozenset()
    """Resources that this strategy manages; no two strategies may claim the same one."""
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "activations"
    """When `apply` and `wrap_optimizer` run; because of it, the order in the recipe never matters."""

    def requires(self) -> Sequence[Requirement]:
        """Return what has to be there with these options; nothing, unless overridden."""
        return ()

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Return the training settings that this strategy sets, by name; `settings` are the recipe's."""
        return {}

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with the strategy applied; the model itself, unless overridden."""
        return model

    def loss(self, model: PreTrainedModel, run: RunContext) -> Loss | None:
        """Return a training loss in place of the cross-entropy; None, the default, leaves it.

        Called once, after all strategies have been applied to the model. Only one strategy of a recipe may return a
        loss. The held-out loss stays the mean cross-entropy per token, so that runs can be compared; a strategy whose
        fidelity is `exact`, which computes that number in another way, computes it there too.
        """
        return None

    def wrap_optimizer(
        self, optimizer: torch.optim.Optimizer, model: PreTrainedModel, run: RunContext
    ) -> torch.optim.Optimizer:
        """Return the optimizer that the run uses, around the given one; the given one itself, unless overridden.

        The wrapper has the parameter groups of the inner optimizer, whose `lr` the learning-rate schedule sets, and
        keeps everything that it remembers in `state` or `param_groups`, which a checkpoint holds and a resume loads.
        With `release-gradients`, `step` is called once per parameter, while the others have no gradient.
        """
        return optimizer
