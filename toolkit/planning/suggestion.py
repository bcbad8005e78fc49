"""What to train with the data and the time that there are: size, batch, learning rate, steps, each with its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

from toolkit import formatting
from toolkit.errors import UsageError
from toolkit.planning import scaling_laws as laws
from toolkit.planning.device_speed import Speed, speed_of
from toolkit.planning.shapes import Architecture, TransformerShape, shape_of

LARGEST_EVALUATION = 0.05
EVALUATION_TOKENS = 500_000
"""Tokens held out, or a twentieth if that is less: enough for the third digit of the loss."""
SMALLEST_VOCABULARY = 300
"""All bytes, and a few special tokens and merges."""
FEWEST_STEPS = 50
FEWEST_SEQUENCES = 4
"""In a step, so that it holds more than one document."""
LARGEST_DEVIATION = 0.25
"""Relative, from the size that was asked for."""


@dataclass(frozen=True)
class Suggestion:
    """A run from scratch, as the laws have it. Tokens are those of the run's own tokenizer."""

    architecture: Architecture
    layers: int
    width: int
    heads: int
    vocabulary: int
    block_size: int
    parameters: int
    """Embeddings included; the head is tied."""
    sequences_per_step: int
    tokens_per_step: int
    learning_rate: float
    warmup_steps: int
    steps: int
    tokens: int
    """Trained on, repeated ones included."""
    unique_tokens: int | None
    """As they were given; a share of `eval_fraction` is held out."""
    eval_fraction: float
    epochs: float | None
    flops: float
    seconds: float
    device: str
    sources: dict[str, str]
    """For size, batch, learning rate, warm-up, tokens, time: where the value comes from."""
    cautions: tuple[str, ...]
    """What the laws do not cover, and what the data or the time does not allow, in sentences."""


def suggest(
    *,
    tokens: float | str | None = None,
    hours: float | None = None,
    flops: float | str | None = None,
    model_size: float | str | None = None,
    architecture: Architecture = "llama",
    vocab_size: int | None = None,
    device: str | None = None,
    processes: int = 1,
    mfu: float | None = None,
) -> Suggestion:
    """Size, batch, learning rate and steps of a run from scratch, by published laws, for this machine or another.

    Args:
        tokens: unique tokens that there are: 1e8, or "100M".
        hours: of training on the device, without evaluations and saves.
        flops: in place of `hours`: "1e18".
        model_size: parameters, embeddings included, in place of the best number: "30M".
        architecture: "llama" or "gpt2".
        vocab_size: of the tokenizer; if not given, it grows with the model.
        device: for this device in place of this machine's: "h100", "t4", ...
        processes: devices that share a step.
        mfu: the share of the device's rate that your runs reach, in place of an assumption.

    Returns:
        The numbers, `sources` for each, and `cautions`: what the laws do not cover, and what the data does not allow.
        `toolkit.planning.suggested_recipe.recipe_text` writes the recipe.

    Raises:
        UsageError: an argument is missing or invalid, there is no such device, or the time is too short for a run.
        UnavailableError: torch cannot use the GPU of this machine.
    """
    unique, budget, parameters = (
        _number(tokens, "tokens", "100M"), _number(flops, "flops", "1e18"), _number(model_size, "model-size", "30M")
    )  # fmt: skip
    if unique is budget is parameters is hours is None:
        raise UsageError("say what there is: --tokens 100M, --hours 2 or --flops 1e18, or --model-size 30M")
    if hours is not None and budget is not None:
        raise UsageError("--hours and --flops are two names of one budget; give one of them")
    if architecture not in get_args(Architecture):
        raise UsageError(f"--model {architecture}: known are {', '.join(get_args(Architecture))}")
    least = {"hours": (hours, 0), "processes": (processes, 1), "vocab-size": (vocab_size, SMALLEST_VOCABULARY)}
    for option, (value, lowest) in least.items():
        if value is not None and not (lowest <= value < math.inf and value > 0):
            raise UsageError(f"--{option} {value}: must be " + (f"at least {lowest}" if lowest else "more than 0"))
    if mfu is not None and not 0 < mfu <= 1:
        raise UsageError(f"--mfu {mfu}: a share of the device's rate, such as 0.4")
    name, speed = speed_of(device, processes, mfu)
    budget = budget if hours is None else max(1.0, hours * 3600 * speed.model_flops)
    return _Reckoning(unique, budget, parameters, speed).suggestion(
        lambda size: shape_of(size, architecture, vocab_size), device=name, processes=processes
    )


@dataclass(frozen=True)
class _Reckoning:
    """What is given, None where it is not."""

    unique: float | None
    budget: float | None
    """FLOPs."""
    parameters: float | None
    speed: Speed

    def suggestion(self, shaped: Callable[[float], TransformerShape], *, device: str, processes: int) -> Suggestion:
        """The run that follows.

        Raises:
            UsageError: there is no such size, or it would have too few steps.
        """
        held_out = float(f"{self._held_out():.2g}")
        most = self.unique * (1 - held_out) * laws.EPOCHS_THAT_PAY if self.unique else math.inf
        best = laws.flops_for_parameters(self.parameters) if self.parameters else laws.flops_for_tokens(most)
        size = self.parameters or laws.optimal_parameters(min(self.budget or math.inf, best))
        shape = shaped(size)
        deviation = abs(shape.parameters / size - 1)
        if size > shape.parameters * 2 or (self.parameters and deviation > LARGEST_DEVIATION):
            raise UsageError(
                f"no model of {formatting.compact(size)} parameters is suggested; the nearest, a {shape.architecture} "
                f"with {shape.vocabulary:,} tokens in its vocabulary, has {formatting.compact(shape.parameters)}"
            )
        allowed = self.budget or (best if self.parameters else math.inf)
        wanted = min(allowed / shape.flops_per_token, most)
        sequences = _usual_batch(laws.step_law_batch(wanted) / shape.block_size, processes)
        per_step = sequences * shape.block_size
        steps = math.floor(wanted / per_step)
        if steps < FEWEST_STEPS:
            needed = FEWEST_STEPS * per_step
            least = formatting.duration(needed * shape.flops_per_token / self.speed.model_flops)
            raise UsageError(
                f"that is enough for {formatting.counted(steps, 'step')} of {per_step:,} tokens, which is no run yet; "
                f"{FEWEST_STEPS} take {formatting.compact(needed)} tokens and {least} on {device}"
            )
        trained = steps * per_step
        rate, rate_source = _learning_rate(shape, trained)
        return Suggestion(
            architecture=shape.architecture,
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            vocabulary=shape.vocabulary,
            block_size=shape.block_size,
            parameters=shape.parameters,
            sequences_per_step=sequences,
            tokens_per_step=per_step,
            learning_rate=float(f"{rate:.2g}"),
            warmup_steps=max(1, round(laws.warm_up_tokens(shape.parameters, trained) / per_step)),
            steps=steps,
            tokens=trained,
            unique_tokens=round(self.unique) if self.unique else None,
            eval_fraction=held_out,
            epochs=trained / (self.unique * (1 - held_out)) if self.unique else None,
            flops=float(trained * shape.flops_per_token),
            seconds=trained * shape.flops_per_token / self.speed.model_flops,
            device=device,
            sources={
                "size": "as asked" if self.parameters else laws.CHINCHILLA.cited,
                "batch": laws.STEP_LAW.cited,
                "learning rate": rate_source,
                "warm-up": laws.WARM_UP.cited,
                "tokens": laws.REPETITION.cited if wanted == most else laws.CHINCHILLA.cited,
                "time": self.speed.source,
            },
            cautions=tuple(self._cautions(shape, trained, held_out)),
        )

    def _held_out(self) -> float:
        return min(LARGEST_EVALUATION, EVALUATION_TOKENS / self.unique) if self.unique else LARGEST_EVALUATION

    def _cautions(self, shape: TransformerShape, trained: int, held_out: float) -> Iterator[str]:
        parameters, flops = shape.parameters, float(trained * shape.flops_per_token)
        if self.unique:
            unique = self.unique * (1 - held_out)
            if (epochs := trained / unique) > 1:
                worth = formatting.compact(laws.worth_in_new_tokens(unique, epochs))
                yield (
                    f"{epochs:.1f} epochs of {formatting.compact(unique)} tokens are worth {worth} new ones "
                    f"({laws.REPETITION.cited})"
                )
            if self.budget and self.budget > 1.5 * flops:
                yield (
                    f"the budget would pay for {formatting.compact(self.budget / flops)} times this run, but more than "
                    f"{laws.EPOCHS_THAT_PAY} epochs add less and less: use it for more data or for several seeds, or "
                    f"ask for a larger model with --model-size"
                )
        if self.parameters and not 0.5 < parameters / (best := laws.optimal_parameters(flops)) < 2:
            yield f"for this much training {formatting.compact(best)} parameters are best ({laws.CHINCHILLA.cited})"
        if not self.parameters and parameters > 2 * laws.optimal_parameters(flops):
            yield (
                f"the law asks for {formatting.compact(laws.optimal_parameters(flops))} parameters; the smallest model "
                f"that is suggested has {formatting.compact(parameters)}"
            )
        outside = [
            f"{formatting.compact(law.fitted_from)} to {formatting.compact(law.fitted_to)} ({what})"
            for what, law in {"size": laws.CHINCHILLA, "batch, learning rate": laws.STEP_LAW}.items()
            if not law.fitted_from <= parameters <= law.fitted_to
        ]
        if outside:
            yield (
                f"extrapolated to {formatting.compact(parameters)} parameters: the laws were fitted on "
                f"{' and '.join(outside)}"
            )


def _usual_batch(sequences: float, processes: int) -> int:
    """The nearest of 1, 2, 3, 4, 6, 8, 12, ..., in whole sequences for each process; the optimum is broad."""
    each = max(FEWEST_SEQUENCES / processes, sequences / processes)
    usual = [base << power for base in (2, 3) for power in range(24)]
    return processes * min([1, *usual], key=lambda size: abs(math.log(size / each)))


def _learning_rate(shape: TransformerShape, tokens: int) -> tuple[float, str]:
    rate = laws.step_law_learning_rate(shape.hidden_parameters, tokens)
    share = laws.small_model_share(shape.hidden_parameters)
    if share == 1:
        return rate, laws.STEP_LAW.cited
    words = f"{laws.STEP_LAW.cited}, times {share:.2f}, as measured for small models: docs/what-to-train.md"
    return share * rate, words


def _number(value: float | str | None, option: str, example: str) -> float | None:
    """A count as people write it: 100M, 2B, 1.5e9.

    Raises:
        UsageError: it is none, or below 1.
    """
    if value is None:
        return None
    if (number := formatting.parsed_count(value)) is None:
        raise UsageError(f"--{option} {value}: not a number of 1 or more; write it like {example}")
    return number
