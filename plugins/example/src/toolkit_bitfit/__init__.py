"""A memory strategy of somebody else's: the smallest package that adds a plugin to pretrain-toolkit."""

from typing import Any, ClassVar

from toolkit.api import Claim, Fidelity, OptionError, RunContext, Strategy


class BitFit(Strategy):
    """Train the biases and norms alone: no gradients and no optimizer state for the matrices. arXiv:2106.10199."""

    claims: ClassVar[frozenset[Claim]] = frozenset({"trainable-parameters"})
    fidelity: ClassVar[Fidelity] = "different"

    norms: bool = True
    """Train the weights of the norms as well as the biases."""

    def apply(self, model: Any, run: RunContext) -> Any:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.ndim == 1 if self.norms else name.endswith("bias"))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise OptionError("this model has no biases; set norms: true", option="norms")
        return model
