"""Stochastic rounding: optimizer steps on weights stored in bfloat16.

bfloat16 has an 8-bit significand: rounding to nearest would lose an update smaller than 1/512 of its weight, and late
in training most updates are. Rounded up or down at random, in proportion, they are right on average.
Zamirai et al. 2020, https://arxiv.org/abs/2010.06192.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

ELEMENTS_PER_DRAW = 1 << 22
"""Random numbers drawn at a time: 16 MB of them."""
LOWER_HALF = 1 << 16
"""Range of the lower half of a float32's bits; the upper half is a bfloat16."""
STEP_COUNT_KEY = "roundings"
"""The key in the first parameter group under which steps are counted."""


class StochasticRounding(torch.optim.Optimizer):
    """Wraps any optimizer to compute its steps on bfloat16 weights in float32 and round them stochastically.

    One parameter at a time is upcast to float32, with its gradient, and stepped alone; the optimizer state stays
    float32. The random numbers derive from the seed and a step count that is part of the saved state: so a resumed run
    draws the same, and so does every process of a run, whose weights have to stay identical.
    """

    def __init__(self, inner: torch.optim.Optimizer, *, seed: int) -> None:
        self.inner = inner
        self.seed = seed
        super().__init__(inner.param_groups, inner.defaults)
        self.param_groups[0][STEP_COUNT_KEY] = 0
        self.state = inner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # closures are not used
        """Step each parameter that has a gradient."""
        assert closure is None
        self.param_groups[0][STEP_COUNT_KEY] += 1
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                weight = self._stepped(parameter, group)
                if parameter.dtype == torch.bfloat16:
                    device = parameter.device
                    if device not in generators:
                        number = (self.seed % 2**31 << 32) + self.param_groups[0][STEP_COUNT_KEY]
                        generators[device] = torch.Generator(device).manual_seed(number)
                    round_stochastically(weight, into=parameter, generator=generators[device])

    def _stepped(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """The weight after the inner optimizer's step, in float32; one that is already float32 is stepped in place.

        The parameter's own data is not swapped for float32 data: torch would make it a new leaf of the autograd graph,
        without the hooks with which several processes all-reduce their gradients.
        """
        assert parameter.grad is not None
        weight = parameter.detach().float()
        weight.grad = parameter.grad.float()
        self.inner.param_groups = [{**group, "params": [weight]}]
        self.inner.state = defaultdict(dict, {weight: self.state[parameter]})
        try:
            self.inner.step()
            self.state[parameter] = self.inner.state[weight]
        finally:  # do not keep the float32 copy if memory ran out
            self.inner.param_groups, self.inner.state = [], defaultdict(dict)
        return weight

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state in the dtype in which it was saved: torch would cast it to the weights' dtype."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(parameters, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor) and name != "step":
                    self.state[parameter][name] = value.to(parameter.device)


def round_stochastically(values: torch.Tensor, *, into: torch.Tensor, generator: torch.Generator) -> None:
    """Round float32 values to bfloat16, up or down with probability in proportion; `values` are overwritten."""
    values, into = torch.atleast_1d(values), torch.atleast_1d(into)
    rows = max(1, ELEMENTS_PER_DRAW // max(1, values[:1].numel()))
    for some, target in zip(values.split(rows), into.split(rows), strict=True):
        bits = some.view(torch.int32)
        # Adding a random lower half carries into the upper half with a probability proportional to the lower half.
        bits += torch.randint(LOWER_HALF, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
        bits &= -LOWER_HALF
        target.copy_(some)
