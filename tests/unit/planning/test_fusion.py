"""A compiled step in a plan: what crosses memory, what is kept for backward, and what torch.compile really keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.planned import RATES, SMALL
from tests.tiny import resolved, write_recipe
from toolkit.planning.fake_step import trace
from toolkit.planning.fusion import Access, fused
from toolkit.planning.plan import make_plan
from toolkit.planning.trace import Event, Kind, Phase, Trace, Work

KB = 1000
MODELS = {
    "gpt2": {"plugin": "gpt2", **SMALL, "dropout": 0.0},
    "llama": {"plugin": "llama", **SMALL, "num_key_value_heads": 1},
}


def made(
    *operations: tuple[Phase, int, dict[int, int], dict[int, int]], freed: dict[int, int], weight: int = 0
) -> Trace:
    """The compiled form of a step.

    Args:
        operations: each with phase, FLOPs, and the bytes that it reads and writes, by storage.
        freed: by storage, the operation after which it is released.
        weight: the storage that is there from the beginning.
    """
    events: list[Event] = []
    known = {weight}
    for number, (phase, _, _, writes) in enumerate(operations):
        for storage in writes.keys() - known:
            events.append(Event(storage, writes[storage], phase))
            known.add(storage)
        for storage in sorted(s for s, after in freed.items() if after == number):
            size = next(event.size for event in events if event.storage == storage)
            events.append(Event(storage, -size, phase))
    work = [
        Work(phase, "float32", flops, sum(reads.values()) + sum(writes.values()))
        for phase, flops, reads, writes in operations
    ]
    accesses = [Access(reads, writes, phase != "backward") for phase, _, reads, writes in operations]
    kinds: list[Kind] = ["weights" if storage == weight else "activations" for storage in range(max(known) + 1)]
    step = Trace(
        micro_batch_size=1, passes=1, kinds=tuple(kinds), before={weight: 7 * KB}, events=tuple(events),
        work=tuple(work), built_bytes=0, parameters=0, trained_parameters=0, trained_bytes=0, saved_weights_bytes=0,
        communication=(), shards=1,
    )  # fmt: skip
    return fused(step, accesses)


def test_what_lies_between_two_products_is_read_and_written_once() -> None:
    step = made(
        ("forward", 1, {0: 7 * KB}, {1: KB}),
        ("forward", 0, {1: KB}, {2: KB}),  # made and used inside the kernel
        ("forward", 0, {1: KB, 2: KB}, {3: 2 * KB}),
        ("forward", 1, {3: 2 * KB}, {4: KB}),
        freed={1: 2, 2: 2, 3: 3, 4: 3},
    )
    assert [(work.flops, work.moved_bytes, work.fresh_bytes) for work in step.work] == [
        (1, 8 * KB, 0),
        (0, 3 * KB, 2 * KB),
        (1, 3 * KB, 0),
    ]
    assert step.fullest()["forward"].size == (7 + 1 + 2) * KB
    assert all(event.storage != 2 for event in step.events)


def backward_reads(large: int) -> Trace:
    """A kernel whose result 2, so large, only backward reads; its input 1 is 1 KB and free before that."""
    return made(
        ("forward", 1, {0: 7 * KB}, {1: KB}),
        ("forward", 0, {1: KB}, {2: large}),
        ("forward", 0, {2: large}, {3: KB}),
        ("forward", 1, {3: KB}, {4: KB}),
        ("backward", 1, {4: KB}, {5: KB}),
        ("backward", 0, {5: KB, 2: large}, {6: KB}),
        ("backward", 1, {6: KB}, {7: KB}),
        freed={1: 1, 2: 5, 3: 4, 4: 4, 5: 5, 6: 6, 7: 6},
    )


def test_backward_computes_again_what_is_larger_than_its_source() -> None:
    step = backward_reads(3 * KB)
    assert [work.moved_bytes for work in step.work if not work.flops] == [2 * KB, 3 * KB]
    released = [(event.storage, event.phase) for event in step.events if event.size < 0]
    assert released == [
        (3, "backward"),
        (4, "backward"),
        (1, "backward"),
        (5, "backward"),
        (6, "backward"),
        (7, "backward"),
    ]
    assert step.fullest()["backward"].size == (7 + 1 + 1 + 1 + 1) * KB


def test_what_is_smaller_than_its_source_is_kept() -> None:
    step = backward_reads(KB // 2)
    assert [work.moved_bytes for work in step.work if not work.flops] == [2 * KB + KB // 2, 2 * KB + KB // 2]
    assert (1, "forward") in [(event.storage, event.phase) for event in step.events if event.size < 0]


def test_a_micro_batch_between_two_is_compiled_alike(tmp_path: Path) -> None:
    recipe = resolved(write_recipe(tmp_path, model=MODELS["llama"]))
    two, three, five = (trace(recipe, micro_batch_size=size, accumulation=2) for size in (2, 3, 5))
    line = two.at_micro_batch(5, other=three)
    assert line is not None
    assert line.compiled is not None
    assert five.compiled is not None
    assert line.compiled.work == five.compiled.work
    assert line.compiled.fullest() == five.compiled.fullest()


def test_the_plan_is_of_compiled_steps_where_a_run_will_compile_them(tmp_path: Path) -> None:
    recipe = resolved(write_recipe(tmp_path, model=MODELS["llama"], training={"global_batch_size": 32}))
    short = make_plan(recipe, rates=RATES)
    off, on, long = (
        make_plan(recipe.with_training(**settings), rates=RATES)
        for settings in ({"torch_compile": False}, {"torch_compile": True}, {"max_steps": 10**9})
    )
    assert short.seconds_per_step == off.seconds_per_step
    assert long.seconds_per_step == on.seconds_per_step < off.seconds_per_step
    assert on.flops_per_step == off.flops_per_step
    assert [made.how_time.endswith("of compiled steps") for made in (short, off, long, on)] == [
        False,
        False,
        True,
        True,
    ]
    # Whether `auto` compiles is certain only once it is tried, and until then there has to be room for eager steps.
    assert long.phases == off.phases
    assert on.parts["framework"] > off.parts["framework"]
    assert on.phases["loss"] - on.parts["framework"] < off.phases["loss"] - off.parts["framework"]
    never = make_plan(recipe.with_training(max_steps=10**9, deterministic=True), rates=RATES)
    assert never.seconds_per_step == off.seconds_per_step


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", MODELS)
def test_backward_finds_what_torch_compile_keeps(
    family: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own partitioner, without the kernels that a compiler would then make of its graphs."""
    import torch

    from toolkit.training.compilation import compiled
    from toolkit.training.components import context_of
    from toolkit.training.loss import StepLoss

    recipe = resolved(write_recipe(tmp_path, model=MODELS[family], training={"precision": precision}))
    context = context_of(recipe, tmp_path)
    model: Any = recipe.recipe.model.plugin.build(recipe.recipe.tokenizer.plugin.skeleton(context), context)
    loss = StepLoss(model.train(), "causal-lm", None, name="", in_evaluation=False)
    ids = torch.zeros(2, 32, dtype=torch.long)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers(), ids]}

    def kept() -> int:
        found: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            loss(model(input_ids=ids, use_cache=False), ids, torch.tensor(64))
        return sum(storage.nbytes() for storage in found.values())

    eager = kept()
    by_inductor = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda of, **how: by_inductor(of, backend="aot_eager_decomp_partition", **how)
    )
    with compiled(model, loss):
        in_reality = kept()
    step = trace(recipe, micro_batch_size=2, accumulation=2)
    assert step.compiled is not None
    planned = at_the_turn(step.compiled)
    assert 0.98 * in_reality <= planned <= 1.15 * in_reality
    assert planned - in_reality <= abs(eager - in_reality) / 3  # and nearer to it than an eager step


def at_the_turn(step: Trace) -> int:
    """Bytes of activations and logits when the first backward pass begins."""
    held = 0
    for event in step.events:
        if event.phase == "backward":
            return held
        held += event.size
    raise AssertionError("there is no backward pass")
