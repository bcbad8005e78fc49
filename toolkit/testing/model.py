"""The checks of a model plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.api import Model, ModelSkeleton, Task
from toolkit.testing.bench import BLOCK_SIZE, SEED, Bench, first_accepted, require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOGIT_TOLERANCE = 1e-4
"""Relative to the largest logit: another batch size may change the summation order."""
TASKS: tuple[Task, ...] = ("causal-lm", "masked-lm")


def _built(plugin: Model, bench: Bench) -> tuple[Task, PreTrainedModel]:
    from transformers import set_seed

    def attempt(task: Task) -> PreTrainedModel:
        set_seed(SEED)  # as the toolkit does before it calls build
        return plugin.build(bench.tokenizer, bench.run(task))

    return first_accepted(TASKS, attempt)


def build(plugin: Model, bench: Bench) -> str:
    """`build` returns a model in float32 on the CPU, with an embedding row for every token."""
    import torch
    from transformers import PreTrainedModel

    task, model = _built(plugin, bench)
    require(isinstance(model, PreTrainedModel), f"build returns a {type(model).__name__}, not a PreTrainedModel")
    places = {f"{parameter.dtype} on {parameter.device}" for parameter in model.parameters()}
    expected = f"{torch.float32} on cpu"
    require(places == {expected}, f"its parameters are {', '.join(sorted(places))} and not {expected}")
    embeddings: Any = model.get_input_embeddings()
    rows, tokens = embeddings.num_embeddings, len(bench.tokenizer)
    require(rows >= tokens, f"its embedding has {rows} rows for a tokenizer of {tokens} tokens")
    return f"{sum(p.numel() for p in model.parameters()):,} parameters for {task}"


def forward(plugin: Model, bench: Bench) -> str:
    """A forward pass takes a whole block, and gives finite logits."""
    import torch

    _, model = _built(plugin, bench)
    positions = getattr(model.config, "max_position_embeddings", None)
    room = positions is None or positions >= BLOCK_SIZE
    require(room, f"it has {positions} positions, and the run's block_size is {BLOCK_SIZE}")
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=bench.batch(2)).logits
    tokens = len(bench.tokenizer)
    shaped = logits.ndim == 3 and logits.shape[:2] == (2, BLOCK_SIZE) and logits.shape[2] >= tokens
    require(shaped, f"logits have the shape {tuple(logits.shape)} and not (2, {BLOCK_SIZE}, {tokens} or more)")
    require(bool(torch.isfinite(logits).all()), "some of its logits are not finite")
    return f"finite logits for a block of {BLOCK_SIZE} tokens"


def behaviour(plugin: Model, bench: Bench) -> str:
    """Logits depend on the preceding tokens alone, survive saving and loading, and the loss is the one trained."""
    import torch

    from toolkit.training.without_effect import check_built

    task, model = _built(plugin, bench)
    told = check_built(model, task)
    model.eval()
    batch = bench.batch(2)
    with torch.no_grad():
        logits = model(input_ids=batch).logits
        again = model(input_ids=batch).logits
        require(torch.equal(logits, again), "in evaluation mode the same text gives other logits a second time")
        alone = model(input_ids=batch[:1]).logits
        require(_close(alone, logits[:1]), "a text gives other logits beside another one")
        if task == "causal-lm":
            changed = batch.clone()
            changed[:, -1] = (changed[:, -1] + 1) % len(bench.tokenizer)
            earlier = model(input_ids=changed).logits[:, :-1]
            require(_close(earlier, logits[:, :-1]), "it sees the tokens that it is to predict")
    folder = bench.run(task).folder
    model.save_pretrained(folder)
    reloaded: Any = type(model).from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        same = torch.equal(reloaded.eval()(input_ids=batch).logits, logits)
    require(same, "saved and loaded again, it gives other logits")
    return told or "the same each time, beside other texts, and when saved and loaded again"


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < LOGIT_TOLERANCE * other.abs().max().clamp(min=1))


def seeded(plugin: Model, bench: Bench) -> str:
    """The weights depend on the seed alone."""
    import torch

    one, other = (_built(plugin, bench)[1].state_dict() for _ in range(2))
    require(one.keys() == other.keys(), "building it twice gives two different architectures")
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    require(not differing, f"the same seed gives other weights in {', '.join(differing[:3])}")
    return "the same seed gives the same weights"


def skeleton(plugin: Model, bench: Bench) -> str:
    """For a plan, it builds the same architecture from tensors that have a shape and no values."""
    from toolkit.planning.fake_components import fake_tensors, needs_no_values

    task, built = _built(plugin, bench)
    make = plugin.skeleton if isinstance(plugin, ModelSkeleton) else plugin.build
    with fake_tensors(), needs_no_values("model", type(plugin)):
        planned = {name: tuple(one.shape) for name, one in make(bench.tokenizer, bench.run(task)).named_parameters()}
    shapes = {name: tuple(one.shape) for name, one in built.named_parameters()}
    differing = sorted(name for name in planned.keys() | shapes.keys() if planned.get(name) != shapes.get(name))
    require(not differing, f"a plan would count another model: what build returns differs in {differing[:3]}")
    return "a plan counts the same parameters"


CHECKS = (("build", build), ("forward", forward), ("behaviour", behaviour), ("seed", seeded), ("skeleton", skeleton))
