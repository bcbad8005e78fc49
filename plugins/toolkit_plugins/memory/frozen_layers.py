"""Trains the upper layers of a model alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from toolkit.api import Claim, Fidelity, Memory, OptionError, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class FrozenLayers(Memory):
    """Leave the first layers, and the embeddings, as they are: no gradients and no optimizer state for them.

    With the embeddings frozen too, nothing is kept of the frozen layers' activations, and their backward pass is saved:
    the step is faster. It is another training than that of the whole model, and makes sense on a pretrained one.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"trainable-parameters"})
    fidelity: ClassVar[Fidelity] = "different"
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "adapters"

    layers: int = Field(default=1, ge=0)
    """How many of the first layers to freeze."""
    embeddings: bool = True
    """Freeze the embeddings of tokens and positions as well; a head that is tied to them is frozen with them."""

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with parameters that require no gradient.

        Raises:
            OptionError: there are not so many layers, or nothing would be frozen.
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
        """The same with at most the first layer: the model is small."""
        return self.model_copy(update={"layers": min(self.layers, 1)})


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The model's layers, from the input to the output: what the longest list of modules holds."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def embeddings_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The tables that are looked up: tokens, positions, kinds of token."""
    import torch

    return [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
