"""The checks of a memory strategy."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from toolkit.api import Change, Device, Strategy
from toolkit.errors import nearest
from toolkit.recipe.settings import Training
from toolkit.recipe.strategies import SETTINGS_OF_THE_RECIPE
from toolkit.system.device import detect
from toolkit.testing.bench import BLOCK_SIZE, Bench, NotTriedHere, first_accepted, require

if TYPE_CHECKING:
    import torch

DEVICES = (
    Device("cpu", "a processor", 8 << 30),
    Device("cpu", "a processor with bf16", 8 << 30, bf16=True),
    Device("cuda", "an older GPU", 16 << 30, compute_capability=(7, 5)),
    Device("cuda", "a newer GPU", 80 << 30, bf16=True, compute_capability=(9, 0)),
    Device("mps", "an Apple GPU", 16 << 30),
)
"""A strategy decides from the device alone, before anything starts, so it has to have an answer for each of these."""
GLOBAL_BATCH = 720_720
"""Divisible by every number up to 16, so that any usual micro-batch size divides it."""
ROUNDING = 1e-5
"""How much the floating-point summation order may change a logit or a gradient."""


def changes(plugin: Strategy, bench: Bench) -> str:
    """It sets only existing settings, to valid values, and none that belongs to the recipe alone."""
    settings = Training(global_batch_size=GLOBAL_BATCH, max_grad_norm=0)
    every: dict[str, set[str]] = {}
    for device in DEVICES:
        changed = plugin.changes(settings, device)
        require(plugin.changes(settings, device) == changed, "asked again about the same settings, it sets others")
        for setting, change in changed.items():
            known = setting in Training.model_fields
            require(known, f"it sets {setting!r}: no such setting; {nearest(setting, Training.model_fields)}")
            require(setting not in SETTINGS_OF_THE_RECIPE, f"it sets {setting}, which belongs to the recipe alone")
            require(isinstance(change, Change), f"it sets {setting} to {change!r}, which is no toolkit.api.Change")
            _require_valid(setting, change.value)
            every.setdefault(setting, set()).add(repr(change.value))
    told = [f"{setting} to {' or '.join(sorted(values))}" for setting, values in every.items()]
    return f"it sets {', '.join(told)}" if told else "it sets nothing"


def _require_valid(setting: str, value: Any) -> None:
    try:
        Training.model_validate({"global_batch_size": GLOBAL_BATCH, "max_grad_norm": 0, setting: value})
    except ValidationError as error:
        require(False, f"it sets {setting} to {value!r}: {error.errors()[0]['msg']}")


def apply(plugin: Strategy, bench: Bench) -> str:
    """After `apply` the model still learns; if `exact`, with the same numbers and the same trained parameters."""
    import torch

    from toolkit.training.loss import token_mean_loss
    from toolkit.training.without_effect import Watched

    device = detect()
    accelerator = next((one.name for one in plugin.requires() if one.kind == "device"), None)
    if lacking := lacking_here(plugin, device):
        raise NotTriedHere(f"not tried here: it needs {lacking}")
    place = accelerator or "cpu"

    def attempt(family: str) -> Any:
        return plugin.apply(bench.model(family), bench.run(device=device if accelerator else None))

    family, model = first_accepted(("gpt2", "llama"), attempt)
    usable = isinstance(model, torch.nn.Module) and hasattr(model, "config")  # peft's is no PreTrainedModel
    require(usable, f"apply returns a {type(model).__name__}, which is no model")
    Watched.of(bench.model(family), "causal-lm").then(model, "causal-lm", name="apply")
    batch = bench.batch().to(place)
    logits = model.to(place)(input_ids=batch).logits
    require(logits.shape[:2] == (4, BLOCK_SIZE), f"after apply, logits have the shape {tuple(logits.shape)}")
    require(bool(torch.isfinite(logits).all()), "after apply, some logits are not finite numbers")
    token_mean_loss("causal-lm")(model(input_ids=batch), batch).backward()
    learning = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    require(learning, "after apply, no parameter gets a gradient, so nothing would be learned")
    if plugin.fidelity == "exact":
        plain: Any = bench.model(family)
        _require_exact(model, plain.to(place), batch)
        return f"exact: the logits of a small {family} stay the same"
    return f"{plugin.fidelity}: a small {family} learns, {len(learning)} parameters"


def lacking_here(plugin: Strategy, device: Device) -> str:
    """Which of the strategy's requirements this machine lacks, in words."""
    needs = sorted(plugin.requires(), key=lambda one: (one.kind, one.name))
    devices = [f"a {one.name} device" for one in needs if one.kind == "device" and one.name != device.kind]
    packages = [one.name for one in needs if one.kind == "package" and not find_spec(one.name)]
    return " and ".join([*devices, *packages])


def _require_exact(model: torch.nn.Module, plain: torch.nn.Module, batch: torch.Tensor) -> None:
    import torch

    with torch.no_grad():
        difference = (model.eval()(input_ids=batch).logits - plain.eval()(input_ids=batch).logits).abs().max().item()
    require(
        difference <= ROUNDING,
        f"its fidelity is exact, and apply changes the logits by up to {difference:.2g}; "
        f"say approximate or different, or leave the numbers alone",
    )
    _require_same_gradients(model, plain, batch)
    one, other = (sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (model, plain))
    require(
        one == other, f"its fidelity is exact, and apply leaves {one:,} parameters to train where there were {other:,}"
    )


def _require_same_gradients(model: torch.nn.Module, plain: torch.nn.Module, batch: torch.Tensor) -> None:
    from toolkit.training.loss import token_mean_loss

    for each in (model, plain):
        each.train().zero_grad()
        token_mean_loss("causal-lm")(each(input_ids=batch), batch).backward()
    for one, (name, other) in zip(model.parameters(), plain.named_parameters(), strict=False):
        if one.grad is None or other.grad is None or one.grad.shape != other.grad.shape:
            continue
        difference = (one.grad - other.grad).abs().max().item()
        require(
            difference <= ROUNDING,
            f"its fidelity is exact, and apply changes the gradient of {name} by up to {difference:.2g}; "
            f"say approximate or different, or leave the numbers alone",
        )


CHECKS = (("changes", changes), ("apply", apply))
