"""Freezes the lower layers of a model and trains only the upper ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from toolkit.api import Claim, Fidelity, OptionError, RunContext, Strategy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class FrozenLayers(Strategy):
    """Freeze the first layers and the embeddings: no gradients and no optimizer state for them.

    With the embeddings frozen too, no activations of the frozen layers are kept and their backward pass is skipped, so
    the step is faster. It is not the same as training the whole model, and makes sense only from pretrained weights.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"trainable-parameters"})
    fidelity: ClassVar[Fidelity] = "different"
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "adapters"

    layers: int = Field(default=1, ge=0)
    """How many of the first layers to freeze."""
    embeddings: bool = True
    """Freeze the token and position embeddings as well; a head tied to them is frozen with them."""

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with the frozen parameters set to require no gradient.

        Raises:
            OptionError: no layer would be left to train, or nothing would be frozen.
        """
        layers = layers_of(model)
        if self.layers >= len(layers):
            raise OptionError(
                f"this model has {len(layers)} layers, one of which has to learn; freeze {len(layers) - 1} or fewer",
                option="layers",
            )
        if not self.layers and not self.embeddings:
            raise OptionError("this freezes nothing; set layers, or embeddings: true", option="layers")
        for layer in layers[: self.layers]:
            layer.requires_grad_(False)
        if self.embeddings:
            inside = {module for layer in layers for module in layer.modules()}
            for embedding in embeddings_of(model):
                if embedding not in inside:
                    embedding.requires_grad_(False)
        trained, total = model.num_parameters(only_trainable=True), model.num_parameters()
        run.log.info("frozen-layers trains %s of %s parameters", f"{trained:,}", f"{total:,}")
        return model

    def rehearse(self) -> FrozenLayers:
        """The same, freezing the first layer at most: the model is small."""
        return self.model_copy(update={"layers": min(self.layers, 1)})


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The model's layers, from input to output: the contents of its longest ModuleList."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def embeddings_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The model's lookup tables: token, position and token-type embeddings."""
    import torch

    return [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
