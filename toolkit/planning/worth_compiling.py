"""When `training.torch_compile: auto` compiles: what a plan expects, and what a run then decides by measuring."""

from __future__ import annotations

from toolkit.api import Device, Settings

WORTH_TRYING_SECONDS = {"cpu": 600.0, "cuda": 300.0}
"""Training time from which `auto` compiles to see what that saves: it takes about half a minute."""
MIN_SAVED_SHARE = 0.02
"""Share of a step's time from which compiled steps are taken; less cannot be told from noise."""


def may_compile(training: Settings, device: Device) -> bool:
    """Whether `auto` tries it at all: of MPS nothing is known, and a step in backward has no pass without a trace."""
    return device.kind in WORTH_TRYING_SECONDS and not training.deterministic and not training.release_gradients


def is_expected(
    training: Settings, device: Device, *, sharded: bool, eager: float, compiled: float, steps: int | None
) -> bool:
    """Whether the steps of a run will be compiled, as far as it is known from their planned seconds.

    `auto` does not try it on a sharded model (`lifecycle/compile_choice.py`).
    """
    if training.torch_compile != "auto":
        return training.torch_compile
    return (
        steps is not None
        and not sharded
        and may_compile(training, device)
        and eager * steps >= WORTH_TRYING_SECONDS[device.kind]
        and eager - compiled >= MIN_SAVED_SHARE * eager
    )
