"""The checks of a memory strategy."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pydantic import ValidationError

from toolkit.api import Candidates, Change, Device, Loss, Requirement, Strategy
from toolkit.errors import nearest
from toolkit.recipe.settings import Training
from toolkit.recipe.strategies import SETTINGS_OF_THE_RECIPE, unmet
from toolkit.system.device import detect
from toolkit.testing.bench import BLOCK_SIZE, SEED, Bench, NotTriedHere, first_accepted, require
from toolkit.testing.optimizer import require_same_after_loading, trained

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
SETTINGS = Training(global_batch_size=GLOBAL_BATCH, max_grad_norm=0)
LOSS_TOLERANCE = 1e-5
"""Relative: how much the order of floating-point summation may change a loss."""
ROUNDING = 1e-5
"""How much the floating-point summation order may change a logit or a gradient."""


def requires(plugin: Strategy, bench: Bench) -> str:
    """What it requires is something that the toolkit can look for."""
    needs = plugin.requires()
    for one in needs:
        require(isinstance(one, Requirement), f"requires returns {one!r}, which is not a toolkit.api.Requirement")
        known = get_args(get_type_hints(Requirement)["kind"])
        require(one.kind in known, f"it requires a {one.kind!r}; known: {', '.join(known)}")
    return ", ".join(f"{one.kind} {one.name}" for one in needs) or "nothing"


def changes(plugin: Strategy, bench: Bench) -> str:
    """It sets only existing settings, to valid values, and none that belongs to the recipe alone."""
    every: dict[str, set[str]] = {}
    for device in DEVICES:
        for setting, value in _changed(plugin, device).items():
            every.setdefault(setting, set()).add(repr(value))
    told = [f"{setting} to {' or '.join(sorted(values))}" for setting, values in every.items()]
    return f"it sets {', '.join(told)}" if told else "it sets nothing"


def candidates(plugin: Strategy, bench: Bench) -> str:
    """What it offers `auto` is of its own kind, and valid."""
    if not isinstance(plugin, Candidates):
        return "auto never chooses it"
    offered: dict[str, None] = {}
    for device in DEVICES:
        found, again = (list(plugin.candidates(SETTINGS, device)) for _ in range(2))
        require(found == again, "asked again about the same settings, candidates returns others")
        for one in found:
            require(type(one) is type(plugin), f"candidates returns {one!r}, which is not a {type(plugin).__name__}")
            _changed(one, device)
            offered[repr(one)] = None
    return f"auto may choose {', '.join(offered)}" if offered else "auto never chooses it"


def _changed(plugin: Strategy, device: Device) -> dict[str, Any]:
    """The value of each setting that it sets."""
    changed = plugin.changes(SETTINGS, device)
    require(plugin.changes(SETTINGS, device) == changed, "asked again about the same settings, it sets others")
    for setting, change in changed.items():
        known = setting in Training.model_fields
        require(known, f"it sets {setting!r}: no such setting; {nearest(setting, Training.model_fields)}")
        require(setting not in SETTINGS_OF_THE_RECIPE, f"it sets {setting}, which only the recipe may set")
        require(isinstance(change, Change), f"it sets {setting} to {change!r}, which is not a toolkit.api.Change")
        _require_valid(setting, change.value)
    return {setting: change.value for setting, change in changed.items()}


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

    family, model, place = _applied(plugin, bench)
    usable = isinstance(model, torch.nn.Module) and hasattr(model, "config")  # peft's is no PreTrainedModel
    require(usable, f"apply returns a {type(model).__name__}, which is not a model")
    Watched.of(bench.model(family), "causal-lm").then(model, "causal-lm", name="apply")
    _, other, _ = _applied(plugin, bench)
    pairs = zip(model.state_dict().items(), other.state_dict().values(), strict=False)
    differing = [name for (name, one), again in pairs if not torch.equal(one, again)]
    require(not differing, f"applied again to the same model, with the same seed, it gives other {differing[:1]}")
    batch = bench.batch().to(place)
    logits = model.to(place)(input_ids=batch).logits
    require(logits.shape[:2] == (4, BLOCK_SIZE), f"after apply, logits have the shape {tuple(logits.shape)}")
    require(bool(torch.isfinite(logits).all()), "after apply, some logits are not finite")
    token_mean_loss("causal-lm")(model(input_ids=batch), batch).backward()
    learning = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    require(learning, "after apply, no parameter gets a gradient, so nothing would be learned")
    if plugin.fidelity == "exact":
        plain: Any = bench.model(family)
        _require_exact(model, plain.to(place), batch)
        return f"exact: the logits of a small {family} stay the same"
    return f"{plugin.fidelity}: a small {family} learns, {len(learning)} parameters"


def _applied(plugin: Strategy, bench: Bench) -> tuple[str, Any, str]:
    """A small model's family, the model with the strategy applied, and the device for it.

    Raises:
        NotTriedHere: this machine lacks something that the strategy requires.
    """
    from transformers import set_seed

    device = detect()
    accelerator = next((one.name for one in plugin.requires() if one.kind == "device"), None)
    if lacking := lacking_here(plugin, device):
        raise NotTriedHere(f"not tried here: it needs {lacking}")

    def attempt(family: str) -> Any:
        model = bench.model(family)
        set_seed(SEED)
        return plugin.apply(model, bench.run(device=device if accelerator else None))

    family, model = first_accepted(("gpt2", "llama"), attempt)
    return family, model, accelerator or "cpu"


def loss(plugin: Strategy, bench: Bench) -> str:
    """Its loss is a sum over the labelled tokens, with gradients; if `exact`, it is the cross-entropy."""
    import torch

    from toolkit.training.loss import StepLoss, token_mean_loss

    if type(plugin).loss is Strategy.loss:
        return "the loss stays the cross-entropy"
    _, model, place = _applied(plugin, bench)
    model.to(place)
    own = plugin.loss(model, bench.run())
    if own is None:
        return "the loss stays the cross-entropy, with these options"
    require(isinstance(own, Loss), f"loss returns a {type(own).__name__}, which is not a toolkit.api.Loss")
    step = StepLoss(model, "causal-lm", own, name="this strategy", in_evaluation=True)
    batch = bench.batch().to(place)

    def summed(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with step.head_withheld():
            outputs = model(input_ids=rows)
        return step(outputs, labels, num_items_in_batch=1)

    value = summed(batch, batch)
    is_number = isinstance(value, torch.Tensor) and value.ndim == 0 and bool(torch.isfinite(value))
    require(is_number, f"the loss of a small model is {value!r}, which is not a finite scalar")
    require(torch.equal(summed(batch, batch), value), "computed again for the same batch, the loss is another")
    parts = (summed(batch[:1], batch[:1]) + summed(batch[1:], batch[1:])).item()
    require(
        abs(parts - value.item()) <= LOSS_TOLERANCE * abs(value.item()),
        f"of a batch the loss is {value.item():.6g}, and its two parts add up to {parts:.6g}: return the sum over the "
        f"predicted tokens and not the mean, or gradient accumulation changes the numbers",
    )
    unlabelled = summed(batch, torch.full_like(batch, -100)).item()
    require(unlabelled == 0, f"the loss of tokens without a label is {unlabelled:.3g}; leave out targets of -100")
    model.zero_grad()
    value.backward()
    require(any(one.grad is not None for one in model.parameters()), "no parameter gets a gradient from the loss")
    if plugin.fidelity == "exact":
        expected = token_mean_loss("causal-lm")(model(input_ids=batch), batch, num_items_in_batch=1).item()
        same = abs(value.item() - expected) <= LOSS_TOLERANCE * expected
        require(same, f"its fidelity is exact, and its loss is {value.item():.6g}; the cross-entropy is {expected:.6g}")
    _require_planned_loss(plugin, bench)
    return f"its loss, of the {own.inputs.replace('_', ' ')}, adds up over parts of a batch"


def _require_planned_loss(plugin: Strategy, bench: Bench) -> None:
    """Compute the loss as a plan does, with tensors that have a shape and no values."""
    import torch

    from toolkit.planning.fake_components import fake_tensors, needs_no_values
    from toolkit.training.loss import StepLoss

    with fake_tensors(), needs_no_values("loss", None):
        _, model, _ = _applied(plugin, bench)
        step = StepLoss(model, "causal-lm", plugin.loss(model, bench.run()), name="this strategy", in_evaluation=True)
        batch = torch.zeros((2, BLOCK_SIZE), dtype=torch.int64)
        with step.head_withheld():
            outputs = model(input_ids=batch)
        step(outputs, batch).backward()


def wrap_optimizer(plugin: Strategy, bench: Bench) -> str:
    """Its optimizer steps, follows the learning rate, and takes the same steps once its state is saved and loaded."""
    import torch

    from toolkit.training.strategies import check_wrapper

    if type(plugin).wrap_optimizer is Strategy.wrap_optimizer:
        return "the optimizer stays as it is"
    _, model, place = _applied(plugin, bench)
    model.to(place)

    def build(of: Any) -> torch.optim.Optimizer:
        inner = torch.optim.AdamW([one for one in of.parameters() if one.requires_grad], lr=1e-2, weight_decay=0.0)
        return check_wrapper(plugin.wrap_optimizer(inner, of, bench.run()), of=inner)

    require_same_after_loading(build, model, bench)
    still = copy.deepcopy(model)
    wrapped = build(still)
    for group in wrapped.param_groups:
        group["lr"] = 0.0
    trained(still, wrapped, bench, 1)
    pairs = zip(still.named_parameters(), model.parameters(), strict=True)
    moved = [name for (name, one), other in pairs if not torch.equal(one, other)]
    require(not moved, f"with lr 0 in its groups it moves {moved[:1]}; share the param_groups of the optimizer inside")
    return f"{type(wrapped).__name__} follows the learning rate, and with its state loaded takes the same steps"


def lacking_here(plugin: Strategy, device: Device) -> str:
    """Which of the strategy's requirements this machine lacks, in words."""
    needs = sorted(plugin.requires(), key=lambda one: (one.kind, one.name))
    missing = [unmet(one, device, ()) for one in needs if one.kind == "device"]
    devices = [words.partition(",")[0] for words in missing if words]
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


CHECKS = (
    ("requires", requires),
    ("changes", changes),
    ("candidates", candidates),
    ("apply", apply),
    ("loss", loss),
    ("optimizer", wrap_optimizer),
)
