"""Shards over several processes: the numbers of one process, half of the memory, and resumes on any number of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.group import run_together
from tests.tiny import SUM_ORDER, assert_same_run, callback, losses, train, weights, write_recipe
from toolkit.errors import RecipeError

NOTES = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    def note(module, arguments, named):
        if module.training:
            with open(f"{args.output_dir}/../blocks-{args.process_index}.jsonl", "a") as file:
                rows = named["input_ids"].tolist()
                print(*(f"[{state.global_step}, {row}]" for row in rows), sep="\\n", file=file)

    model.register_forward_pre_hook(note, with_kwargs=True)

def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
    import json

    def held(tensors):
        here = there = 0
        for tensor in tensors:
            here += (tensor.to_local() if hasattr(tensor, "to_local") else tensor).nbytes
            there += tensor.numel() * tensor.element_size()
        return here, there

    moments = [value for one in optimizer.state.values() for value in one.values() if getattr(value, "ndim", 0)]
    of_kinds = {
        "weights": held(model.parameters()),
        "gradients": held(one.grad for one in model.parameters() if one.grad is not None),
        "optimizer": held(moments),
    }
    with open(f"{args.output_dir}/../held-{args.process_index}.json", "w") as file:
        json.dump(of_kinds, file)
"""
"""A callback that notes which blocks each process trains on, and the bytes that it holds, of how many in all."""
SMALL = {"plugin": "gpt2", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "dropout": 0.0}
LLAMA = {"plugin": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
MUON_SUM_ORDER = 1e-4
"""Muon's products are in bfloat16 where the processor has it, and round differently after another order of sums."""
PARTIAL = {"max_samples": 13}
"""Texts of 13 blocks: an epoch of three steps of four blocks, and one of a single block."""


def noting(folder: Path, **sections: Any) -> Path:
    callback(folder, "notes", NOTES)
    return write_recipe(folder, **{"model": SMALL, "callbacks": ["notes"], "plugin_paths": ["plugins"], **sections})


def held(run: Path, rank: int) -> dict[str, float]:
    """The share of the weights, gradients and optimizer state that a process has held."""
    noted = json.loads((run / f"held-{rank}.json").read_text())
    return {kind: here / there for kind, (here, there) in noted.items()}


def blocks(run: Path) -> dict[int, list[list[int]]]:
    """The token ids of the blocks of each step, whichever process has trained on them."""
    of_step: dict[int, list[list[int]]] = {}
    for file in run.glob("blocks-*.jsonl"):
        for step, row in map(json.loads, file.read_text().splitlines()):
            of_step.setdefault(step, []).append(row)
    assert of_step
    return {step: sorted(rows) for step, rows in of_step.items()}


def assert_same_blocks(one: Path, other: Path, *, partial: int = 0) -> None:
    """Every step's blocks; several processes fill the last step of an epoch up with others, which do not count.

    So many steps are not full, because an epoch ends.
    """
    first, second = blocks(one), blocks(other)
    assert first.keys() == second.keys()
    for step, rows in first.items():
        if len(rows) == 4:  # the global batch
            assert second[step] == rows
        else:
            assert all(row in second[step] for row in rows)
    assert sum(len(rows) < 4 for rows in first.values()) == partial


def tokens_seen(run: Path) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["tokens_seen"] for line in lines if line["kind"] == "train"]


def assert_close(one: Path, other: Path, *, rel: float = SUM_ORDER) -> None:
    """Every loss, up to the order of sums, and as many tokens; `pytest -s` shows by how much the losses differ."""
    assert tokens_seen(one) == tokens_seen(other)
    first, second = losses(one), losses(other)
    assert [line[:2] for line in first] == [line[:2] for line in second]
    difference = max(abs(theirs / own - 1) for (_, _, own), (_, _, theirs) in zip(first, second, strict=True))
    print(f"\n{other.name}: losses differ by {difference:.1e} at most; the last is {second[-1][2]:.6f}")
    assert difference < rel


def test_two_processes_hold_half_and_train_what_one_trains(tmp_path: Path) -> None:
    """In shards and in copies (DDP), over the end of an epoch, also of one that is resumed."""
    recipe = noting(tmp_path, dataset=PARTIAL, training={"max_steps": 5, "save_steps": 2})
    one, told = train(recipe, "memory=[shard]", name="one")
    assert any("shard has no effect in one process" in getattr(event, "text", "") for event in told)
    ended = run_together(
        recipe,
        2,
        *(
            {"name": name, "overrides": [f"memory={memory}"], "stop_after": step}
            for memory, whole, parts in (("[shard]", "two", "parts"), ("[]", "copies", "parts-of-copies"))
            for name, step in ((whole, None), (parts, 3), (parts, None))
        ),
    )
    assert ended == ["finished", "stopped", "finished"] * 2
    runs = tmp_path / "runs"
    for name in ("two", "copies"):
        assert_close(one.folder, runs / name)
        assert_same_blocks(one.folder, runs / name, partial=1)
    assert_same_run(runs / "two", runs / "parts")
    assert_same_run(runs / "copies", runs / "parts-of-copies")
    for rank in range(2):
        share = held(runs / "two", rank)
        assert share == {kind: pytest.approx(0.5, abs=0.02) for kind in ("weights", "gradients", "optimizer")}
    assert sorted(file.name for file in (runs / "two" / "checkpoints" / "checkpoint-5" / "optimizer").iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "unsharded.pt",
    ]  # fmt: skip


KINDS: dict[str, tuple[list[str], float]] = {
    "adamw": ([], SUM_ORDER),
    "muon": (["optimizer=muon"], MUON_SUM_ORDER),
    "lora": (["memory=[SHARD, {plugin: lora, r: 4}]", "exporters=[merge-lora]"], SUM_ORDER),
    "lora, muon": (["memory=[SHARD, lora]", "optimizer=muon", "exporters=[merge-lora]"], MUON_SUM_ORDER),
    "less memory": (
        ["memory=[SHARD, gradient-checkpointing, chunked-loss, {plugin: small-batch, micro_batch_size: 1}]"],
        SUM_ORDER,
    ),
    "bf16": (["memory=[SHARD, mixed-precision, chunked-loss]"], 1e-3),
    "average": (["training.ema_width=0.1"], SUM_ORDER),
    "untied": ([f"model={json.dumps(LLAMA)}"], SUM_ORDER),
    "compiled": (["training.torch_compile=true"], SUM_ORDER),
    "gathered once": (["memory=[{plugin: shard, reshard_after_forward: false}]"], SUM_ORDER),
}


def with_memory(overrides: list[str], *, shard: bool) -> list[str]:
    """The overrides with or without the strategy."""
    if not any(one.startswith("memory=") for one in overrides):
        overrides = [*overrides, "memory=[SHARD]"]
    if not shard:
        overrides = ["memory=[]" if "plugin: shard" in one else one for one in overrides]
    return [one.replace("SHARD", "shard") if shard else one.replace("SHARD, ", "").replace("SHARD", "")
            for one in overrides]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [[kind for kind in KINDS if kind != "compiled"], ["compiled"]], ids=["eager", "compiled"]
)
def test_every_kind_of_run_is_that_of_one_process(kinds: list[str], tmp_path: Path) -> None:
    """Full and LoRA, AdamW and Muon, DDP and shards, and what else changes a step: the losses of one process."""
    recipe = noting(tmp_path, dataset=PARTIAL)
    ended = run_together(
        recipe,
        2,
        *(
            {"name": f"{kind} {'shard' if shard else 'ddp'}".replace(", ", "-").replace(" ", "-"),
             "overrides": with_memory(KINDS[kind][0], shard=shard)}
            for kind in kinds
            for shard in (True, False)
        ),
    )  # fmt: skip
    assert ended == ["finished"] * 2 * len(kinds)
    for kind in kinds:
        overrides, tolerance = KINDS[kind]
        name = kind.replace(", ", "-").replace(" ", "-")
        one, _ = train(recipe, *with_memory(overrides, shard=False), name=name)
        for together in ("ddp", "shard"):
            run = tmp_path / "runs" / f"{name}-{together}"
            assert_close(one.folder, run, rel=tolerance)
            assert_same_blocks(one.folder, run, partial=2)
            assert weights(run).keys() == weights(one.folder).keys()
        for rank in range(2):
            share = held(tmp_path / "runs" / f"{name}-shard", rank)
            assert share == {part: pytest.approx(0.5, abs=0.02) for part in share}, kind


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path: Path) -> None:
    """2 -> 1 -> 2 and 4 -> 2, sharded, DDP and single, over ends of epochs: the same blocks in the same order."""
    recipe = noting(tmp_path, dataset=PARTIAL, training={"max_steps": 9, "save_steps": 3})
    whole, _ = train(recipe, name="whole")
    shard, plain = ["memory=[shard]"], ["memory=[]"]
    parts: list[tuple[int, list[tuple[str, list[str], int | None]]]] = [
        (2, [("shards", shard, 3), ("copies", plain, 3), ("to-shards", plain, 3), ("to-copies", shard, 3)]),
        (1, [("shards", shard, 6), ("copies", plain, 6), ("to-shards", shard, 6), ("to-copies", plain, 6)]),
        (4, [("of-four", shard, 5)]),
        (2, [("shards", shard, None), ("copies", plain, None), ("to-shards", shard, None), ("to-copies", plain, None),
             ("of-four", shard, None)]),
    ]  # fmt: skip
    for processes, runs in parts:
        ended = run_together(
            recipe,
            processes,
            *({"name": name, "overrides": overrides, "stop_after": step} for name, overrides, step in runs),
        )
        assert ended == ["finished" if step is None else "stopped" for _, _, step in runs]
    for name in ("shards", "copies", "to-shards", "to-copies", "of-four"):
        run = tmp_path / "runs" / name
        assert_close(whole.folder, run)
        assert_same_blocks(whole.folder, run, partial=2)
        record = json.loads((run / "run.json").read_text())
        assert len(record["attempts"]) == (2 if name == "of-four" else 3)


def test_hosts_of_one_process_are_refused_before_they_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "::1", "MASTER_PORT": 9}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RecipeError, match=r"memory.0.: within_host: a host with one process has nothing to share"):
        train(write_recipe(tmp_path), "memory=[{plugin: shard, within_host: true}]")


@pytest.mark.slow
def test_hosts_hold_copies_of_each_others_shards(tmp_path: Path) -> None:
    """HSDP: two launchers of two processes each, as on two hosts."""
    recipe = noting(tmp_path)
    one, _ = train(recipe, name="one")
    within = ["memory=[{plugin: shard, within_host: true}]"]
    ended = run_together(
        recipe, 4, {"name": "hosts", "overrides": within, "stop_after": 4}, {"name": "hosts", "overrides": within},
        hosts=2,
    )  # fmt: skip
    assert ended == ["stopped", "finished"]
    assert_close(one.folder, tmp_path / "runs" / "hosts")
    assert_same_blocks(one.folder, tmp_path / "runs" / "hosts")
    for rank in range(4):
        share = held(tmp_path / "runs" / "hosts", rank)
        assert share == {part: pytest.approx(0.5, abs=0.02) for part in share}
