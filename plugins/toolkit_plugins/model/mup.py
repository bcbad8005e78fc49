"""muP, the parametrization in which the best learning rate does not depend on the width.

Yang et al. 2022 (Tensor Programs V), https://arxiv.org/abs/2203.03466, table 3, for Adam: everything is in the first
weights and in the learning rates, nothing in the forward pass, so that the model is an ordinary one. What does not
depend on the width, the standard deviation and the learning rate of the base, stays what it is without muP.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from toolkit.api import RunContext, scale_learning_rate
from toolkit_plugins.model.sizes import usual_heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_size(base: int | None) -> int | None:
    """The size of the attention heads of the base, which all widths share with muP; None without it.

    Attention's logits are divided by the root of the head size, as ever: with heads of one size, there is nothing in
    them that depends on the width.
    """
    return base // usual_heads(base) if base is not None else None


def heads_of(width: int, base: int | None) -> int:
    """The default number of heads: the usual one, or with muP as many of the base's size as fill the width.

    Raises:
        ValueError: heads of that size do not.
    """
    if (size := head_size(base)) is None:
        return usual_heads(width)
    if width % size:
        raise ValueError(
            f"muP keeps the head size of the base, and that of mup_base_hidden_size {base} is {size}; take a multiple "
            f"of it as hidden_size, not {width}"
        )
    return width // size


def check_untied(base: int | None, *, tied: bool) -> None:
    """Refuse muP with a tied head.

    Raises:
        ValueError: embedding and head are one matrix, which cannot have the learning rates of both.
    """
    if base is not None and tied:
        raise ValueError(
            "mup_base_hidden_size gives the head another learning rate than the embedding, so the two cannot be one "
            "matrix; set tie_word_embeddings: false"
        )


def parametrize(model: PreTrainedModel, *, width: int, base: int, run: RunContext) -> None:
    """Rescale the first weights of a model that transformers has initialized, and set its learning rates.

    | | standard deviation | learning rate |
    |---|---|---|
    | embeddings of tokens and positions, norms, biases | as it was | the recipe's |
    | matrices inside the layers | x sqrt(base / width) | x base / width |
    | head | x base / width | x base / width |
    """
    import torch

    head = model.get_output_embeddings()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim < 2 or isinstance(module, torch.nn.Embedding):
            continue
        with torch.no_grad():
            weight.mul_(base / width if module is head else sqrt(base / width))
        scale_learning_rate(module, "weight", base / width)
    run.log.info(
        "muP: width %s is %g times that of the base, so hidden matrices and head learn at %g times the learning rate",
        f"{width:,}",
        width / base,
        base / width,
    )
