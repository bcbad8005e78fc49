"""The checks of an optimizer plugin."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toolkit.api import Optimizer
from toolkit.testing.bench import Bench, require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LEARNING_RATES = (1e-3, 1e-2, 1e-1)
"""One of these has to work: Adam, Muon and plain SGD want learning rates that differ by a factor of a hundred."""
STEPS = 8


def parameters(plugin: Optimizer, bench: Bench) -> str:
    """It has each parameter that requires a gradient exactly once, and an lr in every group for the schedule."""
    model = bench.model("gpt2")
    frozen = model.get_input_embeddings().requires_grad_(False)
    built = _built(plugin, bench, model)
    held = [parameter for group in built.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in model.named_parameters()}
    require(len(held) == len(set(held)), "some parameter is in it twice")
    forgotten = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in set(held)]
    require(not forgotten, f"it leaves out {', '.join(forgotten[:3])}")
    taken = [names[parameter] for parameter in frozen.parameters() if parameter in set(held)]
    require(not taken, f"it takes {', '.join(taken)}, which requires no gradient")
    require(all("lr" in group for group in built.param_groups), "a parameter group has no lr")
    return f"{len(held)} parameters in {len(built.param_groups)} groups"


def steps(plugin: Optimizer, bench: Bench) -> str:
    """A few steps on one batch lower its loss."""
    outcomes = []
    for rate in LEARNING_RATES:
        model = bench.model("gpt2")
        losses = trained(model, _built(plugin, bench, model, rate), bench, STEPS)
        if losses[-1] < losses[0] - 0.01:
            return f"the loss falls from {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps of {rate:g}"
        outcomes.append(f"{losses[0]:.3f} to {losses[-1]:.3f} with {rate:g}")
    require(False, f"{STEPS} steps on one batch do not lower its loss: {'; '.join(outcomes)}")
    return ""


def settings(plugin: Optimizer, bench: Bench) -> str:
    """It uses the recipe's learning rate, as scaled by the schedule, and its weight decay."""

    def moved(*, learning_rate: float, weight_decay: float, schedule: float = 1.0) -> float:
        """How far one step moves the parameters in total."""
        model = bench.model("gpt2")
        before = [parameter.detach().clone() for parameter in model.parameters()]
        run = bench.run()
        built = plugin.build(model, learning_rate=learning_rate, weight_decay=weight_decay, run=run)
        for group in built.param_groups:
            group["lr"] = group["lr"] * schedule
        trained(model, built, bench, 1)
        pairs = zip(model.parameters(), before, strict=True)
        return float(sum((parameter.detach() - old).double().abs().sum() for parameter, old in pairs))

    step = moved(learning_rate=1e-3, weight_decay=0.0)
    require(moved(learning_rate=2e-3, weight_decay=0.0) != step, "it does not use the learning_rate that it is given")
    still = moved(learning_rate=1e-3, weight_decay=0.0, schedule=0.0)
    require(
        still < 1e-3 * step,
        "with lr 0 in its groups it still moves the parameters, so the recipe's schedule would have no effect",
    )
    require(moved(learning_rate=1e-3, weight_decay=0.5) != step, "it does not use the weight_decay that it is given")
    return "learning rate, schedule and weight decay have their effect"


def state(plugin: Optimizer, bench: Bench) -> str:
    """With its state saved and loaded, it takes the same steps: resuming a run depends on it."""
    require_same_after_loading(lambda model: _built(plugin, bench, model), bench.model("gpt2"), bench)
    return "with its state loaded, it takes the same steps"


def require_same_after_loading(
    build: Callable[[Any], torch.optim.Optimizer], start: PreTrainedModel, bench: Bench
) -> None:
    """Train a copy of the model with an optimizer, then go on with it and, from its saved state, with another."""
    import torch

    model = copy.deepcopy(start)
    built = build(model)
    trained(model, built, bench, 3)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(built.state_dict(), file)
    file.seek(0)
    resumed = build(twin)
    # This is how the Trainer loads checkpoints: tensors and plain values, no pickled code.
    resumed.load_state_dict(torch.load(file, weights_only=True))
    trained(model, built, bench, 2)
    trained(twin, resumed, bench, 2)
    pairs = zip(model.named_parameters(), twin.parameters(), strict=True)
    differing = [name for (name, one), other in pairs if not torch.equal(one, other)]
    require(not differing, f"after loading its state_dict the next steps differ in {', '.join(differing[:3])}")


def _built(
    plugin: Optimizer, bench: Bench, model: PreTrainedModel, rate: float = LEARNING_RATES[0]
) -> torch.optim.Optimizer:
    import torch

    built = plugin.build(model, learning_rate=rate, weight_decay=0.01, run=bench.run())
    require(isinstance(built, torch.optim.Optimizer), f"build returns a {type(built).__name__}, not an optimizer")
    return built


def trained(model: PreTrainedModel, built: torch.optim.Optimizer, bench: Bench, count: int) -> list[float]:
    """Train on one batch, and return the loss before each step and after the last one."""
    from toolkit.training.loss import token_mean_loss

    batch, losses = bench.batch().to(next(model.parameters()).device), []
    for _ in range(count):
        loss = token_mean_loss("causal-lm")(model(input_ids=batch), batch)
        losses.append(loss.item())
        built.zero_grad()
        loss.backward()
        built.step()
    losses.append(token_mean_loss("causal-lm")(model(input_ids=batch), batch).item())
    return losses


CHECKS = (("parameters", parameters), ("steps", steps), ("settings", settings), ("state", state))
