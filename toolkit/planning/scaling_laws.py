"""Published laws of pre-training from scratch: how large a model, on how many tokens, in which steps.

N is a model's parameters, D the tokens that it is trained on, C the FLOPs that this takes, about 6 N D. A law holds
where it was fitted; each says where that was.

DeepSeek LLM (Bi and others 2024, https://arxiv.org/abs/2401.02954, equation 1: a rate of 0.3118 C^-0.125, batches of
0.2920 C^0.3271 tokens, fitted from 1e17 to 2e19 FLOPs) is not used: it knows C alone, and so gives a large model on
few tokens the rate of a small one on many. Where N and D are in proportion, its batches are much like the Step Law's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """A law by its paper, and the sizes of the models that it was fitted on."""

    source: str
    url: str
    fitted_from: float
    fitted_to: float

    @property
    def cited(self) -> str:
        """The paper in a line."""
        return f"{self.source}, {self.url}"


CHINCHILLA = Law("Hoffmann and others 2022, refitted by Besiroglu and others 2024", "arXiv:2404.10102", 44e6, 16e9)
STEP_LAW = Law("Step Law, Li and others 2025", "arXiv:2503.04715", 59e6, 1.1e9)
REPETITION = Law("Muennighoff and others 2023", "arXiv:2305.16264", 7e6, 9e9)
WARM_UP = Law("Porian and others 2024", "arXiv:2406.19146", 5e6, 901e6)

A, ALPHA, B, BETA = 482.01, 0.3478, 2085.43, 0.3658
"""L = 1.8172 + A / N^ALPHA + B / D^BETA, in nats per token. Hoffmann and others printed rounded values of a fit that
had not converged (A 406.4, 0.34; B 410.7, 0.28), which contradict their own other two estimates."""
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
REPEATS = 15.387756
"""Epochs after the first within which a repeated token loses 1/e of its value: R*_D of Muennighoff and others."""
EPOCHS_THAT_PAY = 4
"""Up to here repeated tokens are almost as good as new ones (Muennighoff and others 2023)."""
LARGEST_WARM_UP = 0.1
"""Share of all steps, where a large model sees few tokens."""


def optimal_parameters(flops: float) -> float:
    """N for which C FLOPs reach the lowest loss: G (C / 6)^(BETA / (ALPHA + BETA)). Hoffmann and others 2022, eq. 4."""
    return float(G * (flops / 6) ** (BETA / (ALPHA + BETA)))


def flops_for_parameters(parameters: float) -> float:
    """C for which this is the best size; the inverse of `optimal_parameters`."""
    return float(6 * (parameters / G) ** ((ALPHA + BETA) / BETA))


def flops_for_tokens(tokens: float) -> float:
    """C for which this is the best number of tokens: 6 (G D)^((ALPHA + BETA) / ALPHA)."""
    return float(6 * (G * tokens) ** ((ALPHA + BETA) / ALPHA))


def worth_in_new_tokens(unique: float, epochs: float) -> float:
    """How many new tokens as many epochs over `unique` tokens are worth: U + U R* (1 - exp(-(epochs - 1) / R*)).

    Muennighoff and others 2023, equation 5, fitted up to 1,500 epochs.
    """
    if epochs <= 1:
        return unique * epochs
    return unique * (1 + REPEATS * (1 - math.exp((1 - epochs) / REPEATS)))


def step_law_learning_rate(hidden_parameters: float, tokens: float) -> float:
    """AdamW's peak rate, 1.79 N^-0.713 D^0.307, with N without embeddings; cosine decay. Li and others 2025."""
    return float(1.79 * hidden_parameters**-0.713 * tokens**0.307)


def small_model_share(hidden_parameters: float) -> float:
    """What of the Step Law's rate is best for a model that is smaller than those it was fitted on.

    Measured here, with AdamW: 2.4e-3 for 426,000 parameters without embeddings on 560,000 tokens, where the Step Law
    has 1.0e-2, and 2.0e-3 for 853,000 on 400,000, where it has 5.5e-3 (docs/quickstart-choice.md). Between these and
    the edge of the law, a power of the size: (N / 59M)^0.26. Checked at 107,000:
    tests/benchmarks/results/suggested_learning_rate.txt.
    """
    return min(1.0, float((hidden_parameters / STEP_LAW.fitted_from) ** 0.26))


def step_law_batch(tokens: float) -> float:
    """Tokens of a step, 0.58 D^0.571, whatever the size of the model. Li and others 2025."""
    return float(0.58 * tokens**0.571)


def warm_up_tokens(parameters: float, tokens: float) -> float:
    """Tokens of the linear warm-up: one per parameter, as in Porian and others 2024, but at most a tenth of all."""
    return min(parameters, LARGEST_WARM_UP * tokens)
