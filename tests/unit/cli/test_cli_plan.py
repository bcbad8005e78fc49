"""`toolkit recipe plan`, and devices that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.command_line import RECIPE, toolkit
from toolkit.commands import plan
from toolkit.errors import UsageError
from toolkit.planning.devices import KNOWN

pytestmark = pytest.mark.usefixtures("here")


def test_a_plan_is_a_table_for_people(here: Path) -> None:
    out = toolkit("recipe", "plan", "mine.yaml").out
    for word in (
        "framework",
        "weights",
        "peak",
        "fits",
        "yes",
        "checkpoint",
        "per step",
        "5 steps",
        "(2 x 2)",
    ):
        assert word in out, word
    assert [file.name for file in here.iterdir()] == ["mine.yaml"]


def test_and_json_for_scripts() -> None:
    made = toolkit("recipe", "plan", "mine.yaml", "--device", "t4", "--json").json
    assert made["device"]["name"] == "Tesla T4"
    assert sum(made["parts"].values()) == made["peak_bytes"]
    assert made["fits"] is True
    assert (made["steps"], made["tokens"]) == (5, 5 * 4 * 32)
    assert made["weights_bytes"] == 4 * made["parameters"]


def test_what_does_not_fit_is_told_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.report.lines.FIRST_PHASE_SECONDS", 0.0)  # a fast machine ends the search before
    words = ("recipe", "plan", "mine.yaml", "--device", "t4", "--memory", "650MB")
    told = toolkit(*words, "--set", "model.hidden_size=1024")
    assert "no: " in told.out.partition("would fit")[0]
    assert "looking for strategies that fit, for 1 min at most" in told.err
    hurried = toolkit(*words, "--set", "model.hidden_size=1024", "--search-seconds", "0").out
    assert "the search ended after 0 s, with 1 set of strategies tried: --search-seconds gives it longer" in hurried


def test_a_model_that_would_be_planned_for_hours_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.planning.tracker.MAX_TRACE_SECONDS", -1.0)
    assert "too many layers to be traced" in toolkit("recipe", "plan", "mine.yaml", "--device", "t4", status=3).err


@pytest.mark.slow
def test_where_only_the_copy_for_saves_does_not_fit_that_is_the_cure() -> None:
    settings = ("model.hidden_size=512", "training.global_batch_size=192", "memory=[]")
    words = ("recipe", "plan", "mine.yaml", *(word for setting in settings for word in ("--set", setting)))
    made = toolkit(*words, "--json").json
    without = made["peak_bytes"] - made["snapshot_bytes"]
    enough = round(without / 0.97) + 1_000_000  # with what a choice leaves free
    assert without < enough < made["peak_bytes"]
    small = (*words, "--memory", f"{enough}B")
    assert "memory: [], and training.save_in_background: false" in toolkit(*small).out
    would = toolkit(*small, "--json").json["would_fit"]
    assert (would["strategies"], would["save_in_background"]) == ([], False)


@pytest.mark.slow
def test_a_comparison_has_a_row_for_each_set_of_strategies() -> None:
    out = toolkit("recipe", "plan", "mine.yaml", "--device", "a100-80g", "--compare").out
    for words in ("STRATEGIES", "1.00x", "exact", "approximate", "gradient-checkpointing", "mixed-precision"):
        assert words in out
    assert "lora" not in out  # the run would refuse it: the exporter would write factors without what they belong to


def test_auto_is_planned_as_what_it_chooses() -> None:
    out = toolkit("recipe", "plan", "mine.yaml", "--set", "memory=[auto]", "--device", "l4").out
    assert "chosen" in out
    assert "planned peak" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--device", "t5"], "--device t5: no such device; known are h200, h100"),
        (["--device", "t5"], "--memory 24GiB"),
        (["--memory", "much"], "--memory much: not a size; write it like 12GiB"),
        (["--memory", "0"], "--memory 0: must be more than 0"),
        (["--price", "nan"], "'--price': nan is not a finite number"),
        (["--price", "inf"], "'--price': inf is not a finite number"),
        (["--network", "nan"], "'--network': nan is not a finite number"),
        (["--device", "colab-cpu", "--network", "100"], "--network 100: the links of Colab's processor are not"),
        (["--device", "h100", "--processes", "10000000000000"], "a plan is for 1,000,000 at most"),
        (["--processes", "3"], "3 processes with micro-batches of 2 cannot share 4 sequences"),
        (["--processes", "3", "--set", "memory=[auto]"], "3 processes with micro-batches of 1 cannot share 4"),
        (
            ["--processes", "2", "--set", "memory=[release-gradients]", "--set", "training.max_grad_norm=0"],
            "2 processes must all-reduce their gradients before a step",
        ),
    ],
)
def test_what_cannot_be_planned(words: list[str], text: str) -> None:
    assert text in toolkit("recipe", "plan", "mine.yaml", *words, status=2).err


def test_a_recipe_is_validated_for_another_device() -> None:
    Path("half.yaml").write_text(RECIPE.replace("frequent-saves", "mixed-precision"))
    made = toolkit("recipe", "plan", "half.yaml", "--device", "t4", "--json").json
    assert made["fidelity"] == "approximate"
    assert toolkit("recipe", "validate", "half.yaml", "--device", "v100").out == "half.yaml is valid\n"
    assert "no such device" in toolkit("recipe", "validate", "half.yaml", "--device", "abacus", status=2).err


@pytest.mark.parametrize("name", KNOWN)
def test_devices_are_what_their_names_say(name: str) -> None:
    entry = KNOWN[name]
    assert entry.device.memory_bytes > 8e9
    assert entry.flops["fp32"] > 0
    assert entry.bandwidth > 1e9
    assert entry.device.kind == "cpu" or entry.device.bf16 == ("bf16" in entry.flops)  # a processor imitates it
    assert (entry.device.kind == "cuda") == (entry.device.compute_capability is not None)


@pytest.mark.slow
def test_many_devices_are_planned_without_one_and_priced() -> None:
    words = ("recipe", "plan", "mine.yaml", "--device", "h100", "--processes", "16", "--price", "2.5")
    more = ("--set", "training.global_batch_size=32", "--set", "training.micro_batch_size=2")
    told = toolkit(*words, *more, "--strategy", "shard").out
    for word in (
        "on 16 x NVIDIA H100",
        "AT THE PEAK, IN EACH PROCESS",
        "all-gathered",
        "reduce-scattered per step and process, on 2 hosts, state sharded over 16; ",
        "(1 x 2 on 16)",
        "device-hours at 2.50",
        "shard",
    ):
        assert word in told, word
    made = toolkit(*words, *more, "--gpus-per-node", "4", "--network", "10", "--json").json
    assert (made["hosts"], made["shards"], made["communication"].keys()) == (4, 1, {"all-reduce"})
    assert made["cost"] == pytest.approx(made["device_hours"] * 2.5) == pytest.approx(made["seconds"] / 3600 * 16 * 2.5)
    assert 0 < made["exposed_seconds"] <= made["communication_seconds"]


def test_processes_of_a_cpu_are_one_device_to_pay_for() -> None:
    words = ("recipe", "plan", "mine.yaml", "--device", "colab-cpu", "--processes", "2", "--price", "3600")
    assert "on Colab's processor, 6.80 GB for each of 2 processes" in toolkit(*words).out
    made = toolkit(*words, "--json").json
    assert made["cost"] == pytest.approx(made["seconds"])


def test_shard_with_nobody_to_share_with_is_told_to_change_nothing() -> None:
    told = toolkit("recipe", "plan", "mine.yaml", "--device", "h100", "--strategy", "shard")
    assert "shard has no effect in one process" in told.err


def test_hosts_of_one_device_shard_nothing_inside_and_are_refused_with_the_place() -> None:
    words = ("mine.yaml", "--set", "memory=[{plugin: shard, within_host: true}]", "--gpus-per-node", "1")
    for command in (("plan", "--processes", "2"), ("launch", "--on", "slurm", "--nodes", "2")):
        told = toolkit("recipe", *command, *words, "--device", "h100", status=2).err
        assert "memory[0]: within_host: a host with one process has nothing to share" in told
        assert "leave out within_host, to share them among all 2 processes" in told


def test_gpus_per_node_counts_where_the_links_of_a_gpu_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "h100", replace(KNOWN["h100"], links=None))
    words = ("--processes", "4", "--gpus-per-node", "2", "--strategy", "{plugin: shard, within_host: true}", "--json")
    settings = ("--set", "training.global_batch_size=8")
    made = toolkit("recipe", "plan", "mine.yaml", "--device", "h100", *settings, *words).json
    assert (made["shards"], made["hosts"], made["communication_seconds"]) == (2, 2, None)


def test_gpus_per_node_that_would_change_nothing_is_refused_only_where_it_was_given() -> None:
    words = ("mine.yaml", "--device", "colab-cpu")
    told = toolkit("recipe", "plan", *words, "--processes", "2", "--gpus-per-node", "4", status=2).err
    assert "--gpus-per-node 4 has no effect: the processes of Colab's processor share one host; leave it out" in told
    assert "gpus-per-node" not in toolkit("recipe", "launch", *words, "--on", "slurm", "--nodes", "2").err


def test_a_plan_from_python_refuses_what_is_no_number_of_processes() -> None:
    for words in ({"processes": 0}, {"gpus_per_node": -1}):
        with pytest.raises(UsageError, match="must be at least 1"):
            plan("mine.yaml", device="h100", **words)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("shards", "did you mean 'shard'?"),
        ("{plugin: shard, within: true}", "within: "),
        ("[shard]", "write it as --strategy NAME"),
        ("{plugin: shard", "--strategy {plugin: shard:"),
    ],
)
def test_a_strategy_that_is_none_is_refused_in_a_sentence(strategy: str, words: str) -> None:
    told = toolkit("recipe", "plan", "mine.yaml", "--device", "t4", "--strategy", strategy, status=2).err
    assert words in told
    assert "Traceback" not in told
