"""What a plan says of each of several processes, held against torch's own tracker of FSDP2 and against arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.planned import RATES
from tests.tiny import resolved, write_recipe
from toolkit.errors import RecipeError, UsageError
from toolkit.planning import fake_components, fake_group
from toolkit.planning.choose import SPARE_SHARE, resolve_auto
from toolkit.planning.communication import how_reckoned, of_ddp, seconds_of, time_of
from toolkit.planning.devices import GIGA, KNOWN, Links, links_of
from toolkit.planning.plan import Plan, make_plan
from toolkit.planning.trace import Communication
from toolkit.recipe.resolve import ResolvedRecipe

WIDTH, LAYERS, VOCABULARY, BLOCK = 128, 3, 512, 16
LINKS = Links("nvlink", within_host=100 * GIGA, between_hosts=50 * GIGA, per_host=4)
WITH_LINKS = replace(RATES, links=LINKS)


def recipe_for(folder: Path, *memory: Any, sequences: int = 64, **training: Any) -> ResolvedRecipe:
    """A Llama whose weights take more than its activations."""
    sections: dict[str, Any] = {
        "tokenizer": {"vocab_size": VOCABULARY},
        "model": {"plugin": "llama", "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 2},
        "objective": {"block_size": BLOCK},
        "training": {"global_batch_size": sequences, "save_in_background": False, **training},
    }
    return resolved(write_recipe(folder, memory=list(memory), **sections))


def planned(recipe: ResolvedRecipe, *, processes: int, rates: Any = WITH_LINKS, **options: Any) -> Plan:
    return make_plan(recipe, rates=rates, processes=processes, **options)


def of_tensors(made: Plan) -> int:
    """The peak among the phases of a step, without what is no tensor of it."""
    beside = made.parts["framework"] + made.parts.get("whole model", 0)
    return max(made.phases[phase] for phase in ("forward", "loss", "backward", "optimizer step")) - beside


def peak_by_torch(recipe: ResolvedRecipe, processes: int, sequences: int) -> int:
    """What torch's tracker finds of a loop as in FSDP2's tutorial: no trainer, transformers' own loss."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.fsdp import fully_shard
    from transformers import masking_utils

    from toolkit.training.components import context_of

    context = context_of(recipe, Path("none"))
    plugin: Any = recipe.recipe.tokenizer.plugin
    tokenizer = plugin.skeleton(context)
    whole = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None  # it reads values
    try:
        with fake_components.fake_tensors(), fake_group.joined(processes):
            model: Any = recipe.recipe.model.plugin.build(tokenizer, context).train()
            with fake_components.real_tensors():
                mesh = fake_group.mesh(processes, per_host=processes, within_host=False)
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            ids = torch.zeros(sequences, BLOCK, dtype=torch.long)

            def step() -> None:
                model(input_ids=ids, labels=ids).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

            step()
            tracker = FSDPMemTracker(model, optimizer)
            tracker.track_inputs((ids,))
            with tracker:
                step()
            return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    finally:
        masking_utils.find_packed_sequence_indices = whole


@pytest.mark.parametrize("processes", [8, 64])
def test_a_rank_of_a_sharded_run_holds_what_torchs_own_tracker_finds(tmp_path: Path, processes: int) -> None:
    recipe = recipe_for(tmp_path, "shard", sequences=processes)
    ours, theirs = of_tensors(planned(recipe, processes=processes)), peak_by_torch(recipe, processes, 1)
    assert ours == pytest.approx(theirs, rel=0.1)


def test_a_sharded_rank_holds_its_share_and_gathers_a_layer_at_a_time(tmp_path: Path) -> None:
    alone = planned(recipe_for(tmp_path), processes=1)
    made = planned(recipe_for(tmp_path, "shard"), processes=8)
    assert made.shards == 8
    for part in ("weights_bytes", "gradients_bytes", "optimizer_bytes"):
        assert getattr(made, part) == pytest.approx(getattr(alone, part) / 8, rel=0.02)
    assert 0 < made.parts["gathered weights"] < alone.weights_bytes
    assert "gradient buckets" not in made.parts
    assert made.checkpoint_bytes == pytest.approx(alone.checkpoint_bytes, rel=0.01)
    assert made.snapshot_bytes == 0


def test_what_a_sharded_step_sends_is_each_layers_weights_twice_and_all_gradients_once(tmp_path: Path) -> None:
    """For each pass. The rest (embedding, head, norm) stays gathered between the forward and the backward pass."""
    made = planned(recipe_for(tmp_path, "shard", micro_batch_size=2), processes=8)
    assert made.accumulation == 4
    feed_forward = -(-WIDTH * 8 // 3 // 64) * 64
    layers = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * feed_forward + 2 * WIDTH)
    rest = made.parameters - layers
    assert made.communication["all-gather"] == 4 * made.accumulation * (rest + 2 * layers)
    assert made.communication["reduce-scatter"] == 4 * made.accumulation * made.parameters


def test_ddp_reduces_all_gradients_once_in_a_step_and_sends_the_weights_before(tmp_path: Path) -> None:
    made = planned(recipe_for(tmp_path, micro_batch_size=2), processes=8)
    assert (made.shards, made.accumulation, made.hosts) == (1, 4, 2)
    assert made.communication == {"all-reduce": made.gradients_bytes}
    assert made.parts["gradient buckets"] == made.gradients_bytes
    assert made.phases["broadcast"] == made.parts["framework"] + 2 * made.weights_bytes


def test_ddp_buckets_are_torchs() -> None:
    sizes = [one.size for one in of_ddp(60 * 2**20, 2)]
    assert sizes == [2**20, 25 * 2**20, 25 * 2**20, 9 * 2**20]
    assert [one.size for one in of_ddp(1000, 2)] == [1000]


def test_within_hosts_layers_are_gathered_there_and_gradients_cross_the_network(tmp_path: Path) -> None:
    made = planned(recipe_for(tmp_path, {"plugin": "shard", "within_host": True}), processes=16)
    whole = planned(recipe_for(tmp_path, "shard"), processes=16)
    assert (made.shards, made.hosts) == (4, 4)
    assert made.weights_bytes == pytest.approx(4 * whole.weights_bytes, rel=0.02)
    assert made.communication["all-gather"] == whole.communication["all-gather"]
    assert made.communication["all-reduce"] == pytest.approx(4 * made.parameters / 4, rel=0.01)


@pytest.mark.slow
def test_auto_shards_what_each_process_cannot_hold_whole(tmp_path: Path) -> None:
    whole = planned(recipe_for(tmp_path, sequences=4), processes=4)
    sharded = planned(recipe_for(tmp_path, "shard", sequences=4), processes=4)
    state = whole.weights_bytes + whole.gradients_bytes + whole.optimizer_bytes
    assert sharded.peak_bytes < whole.parts["framework"] + state  # which no other exact strategy makes smaller
    budget = round(sharded.peak_bytes / (1 - SPARE_SHARE["cpu"])) + 1
    recipe = recipe_for(tmp_path, {"plugin": "auto", "fidelity": "exact"}, sequences=4)
    concrete, choice = resolve_auto(recipe, budget, rates=WITH_LINKS, processes=4)
    assert concrete.training.shard
    assert choice.plan.shards == 4
    assert choice.plan.fidelity == "exact"
    assert choice.plan.peak_bytes <= budget


def test_auto_shards_nothing_where_everything_fits(tmp_path: Path) -> None:
    concrete, _ = resolve_auto(recipe_for(tmp_path, "auto"), 10**10, rates=RATES, processes=4)
    assert not concrete.training.shard


def test_hosts_of_unequal_size_are_refused_with_the_place(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"plugin": "shard", "within_host": True}, sequences=6)
    with pytest.raises(RecipeError, match=r"memory.*6 are no multiple of the 4 of a host"):
        planned(recipe, processes=6)


@pytest.mark.parametrize(
    ("collective", "processes", "seconds"),
    [
        ("all-gather", 4, 3 / 4 * 1e9 / 80e9 + 8.4e-6 + 3 * 3.4e-6),
        ("all-reduce", 4, 2 * 3 / 4 * 1e9 / 80e9 + 8.4e-6 + 2 * 3 * 3.4e-6),
        ("reduce-scatter", 8, 7 / 8 * 1e9 / 40e9 + 8.4e-6 + 6 * 3.4e-6 + 14e-6),
        ("all-gather", 5, 4 / 5 * 1e9 / 10e9 + 8.4e-6 + 3 * 3.4e-6 + 14e-6),  # the fifth has one port of four
        ("all-reduce", 1, 0.0),
    ],
)
def test_a_collective_takes_the_slowest_link_of_a_ring(collective: Any, processes: int, seconds: float) -> None:
    one = Communication("backward", collective, 10**9, range(processes))
    assert seconds_of(one, LINKS) == pytest.approx(seconds, rel=1e-6)


def test_groups_beside_each_other_share_the_network_of_their_hosts() -> None:
    alone = seconds_of(Communication("backward", "all-reduce", 10**9, range(0, 8, 4)), replace(LINKS, per_host=4))
    assert alone == pytest.approx(2 / 2 * 1e9 / (50e9 / 4 * 0.8), rel=0.01)


def test_communication_is_hidden_but_for_its_edges_or_for_what_is_longer_than_the_computation() -> None:
    one = Communication("backward", "all-reduce", 10**9, range(4))
    each = seconds_of(one, LINKS)
    for beside, exposed in ((1.0, each), (2 * each, 8 * each), (0.0, 10 * each)):
        spent = time_of([(one, 10)], links=LINKS, passes=1, beside={"backward": beside})
        assert spent.total == pytest.approx(10 * each)
        assert spent.exposed == pytest.approx(exposed)


def test_a_slow_network_makes_the_step_longer_by_what_is_not_hidden(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    fast = planned(recipe, processes=8)
    slow = planned(recipe, processes=8, rates=replace(RATES, links=replace(LINKS, between_hosts=1e6)))
    unknown = planned(recipe, processes=8, rates=RATES)
    assert unknown.exposed_seconds is None
    assert unknown.communication_seconds is None
    for made in (fast, slow):
        assert made.exposed_seconds is not None
        assert made.seconds_per_step == pytest.approx(unknown.seconds_per_step + made.exposed_seconds)
    assert (slow.exposed_seconds or 0) > 100 * (fast.exposed_seconds or 1)
    assert slow.peak_bytes == fast.peak_bytes


def test_the_processes_of_a_cpu_share_its_cores(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    alone, pair = planned(recipe, processes=1, rates=RATES), planned(recipe, processes=2, rates=RATES)
    assert pair.seconds_per_step == pytest.approx(alone.seconds_per_step, rel=0.1)


def test_links_are_those_of_the_list_or_unknown() -> None:
    h100 = KNOWN["h100"].device
    usual, slower = links_of(h100, per_host=8), links_of(h100, per_host=2, network=100)
    assert usual
    assert slower
    assert (usual.within_host, usual.between_hosts) == (450 * GIGA, 400 * GIGA)
    assert (slower.per_host, slower.between_hosts) == (2, 12.5 * GIGA)
    assert links_of(replace(h100, name="somebody's"), per_host=8) is None


@pytest.mark.parametrize("network", [0, -1.0, float("nan"), float("inf")])
def test_a_network_without_a_rate_is_refused(network: float) -> None:
    with pytest.raises(UsageError, match="must be a number of Gbit/s above 0"):
        links_of(KNOWN["h100"].device, per_host=8, network=network)


def test_a_network_that_would_change_nothing_is_refused_with_the_cure() -> None:
    with pytest.raises(UsageError, match=r"--network 100: the links of somebody's .* with --device"):
        links_of(replace(KNOWN["h100"].device, name="somebody's"), per_host=8, network=100)
    with pytest.raises(UsageError, match="its processes share one host"):
        links_of(KNOWN["colab-cpu"].device, per_host=8, network=100)


def test_a_rate_without_a_source_is_called_assumed() -> None:
    def told(name: str, hosts: int, network: float | None = None) -> str:
        links = links_of(KNOWN[name].device, per_host=8, network=network)
        assert links
        return how_reckoned(links, hosts)

    assert told("h100", 2) == "a ring, at 80% of 450 GB/s of NVLink, and of 3,200 Gbit/s of each host's network"
    assert told("a100-80g", 1) == "a ring, at 80% of 300 GB/s of NVLink"
    assert told("a100-80g", 2).endswith("1,600 Gbit/s of each host's network (assumed: --network sets it)")
    assert told("a100-80g", 2, network=800).endswith("800 Gbit/s of each host's network")
    assert "(assumed), and" in told("rtx-4090", 2)


def test_sharding_over_thousands_makes_no_tensor_for_each_of_them() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            return func(*args, **(kwargs or {}))

    with fake_components.fake_tensors(), fake_group.joined(4096):
        layer = torch.nn.Linear(8, 5000)
        with fake_components.real_tensors():
            mesh = fake_group.mesh(4096, per_host=8, within_host=False)
        with Counted() as counted:
            fully_shard(layer, mesh=mesh)
        weight: Any = layer.weight
        assert weight.to_local().shape == (2, 8)  # 5,000 rows, rounded up
    assert counted.operations < 100


def test_auto_is_not_expected_to_compile_a_sharded_model(tmp_path: Path) -> None:
    """A run does not try it: lifecycle/compile_choice."""
    training = {"max_steps": 10**6, "torch_compile": "auto"}
    whole, sharded = (planned(recipe_for(tmp_path, *memory, **training), processes=2) for memory in ([], ["shard"]))
    asked = planned(recipe_for(tmp_path, "shard", max_steps=10**6, torch_compile=True), processes=2)
    compiled = [made.how_time.endswith("of compiled steps") for made in (whole, sharded, asked)]
    assert compiled == [True, False, True]


def test_a_group_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=distributed.FileStore(str(tmp_path / "store"), 1)
    )
    try:
        with fake_group.joined(64):
            assert distributed.get_world_size() == 64
        assert distributed.get_world_size() == 1
        total = torch.ones(1)
        distributed.all_reduce(total)
        assert total.item() == 1
    finally:
        distributed.destroy_process_group()
