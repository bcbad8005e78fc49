"""What `auto` chooses: within the budget, exact before approximate before different, the fastest first."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.planned import RATES, SMALL
from tests.tiny import resolved, write_recipe
from toolkit.api import Fidelity
from toolkit.errors import RecipeError
from toolkit.planning import fake_step
from toolkit.planning.choose import SPARE_SHARE, Choice, not_all_was_tried, resolve_auto, usable_bytes, with_choice
from toolkit.planning.compare import rows
from toolkit.planning.fake_step import trace
from toolkit.planning.plan import Plan, make_plan
from toolkit.planning.search import Search, choose
from toolkit.planning.trace import Trace
from toolkit.planning.variants import Option, candidates, without_choosers
from toolkit.planning.words import named
from toolkit.recipe.identity import identity
from toolkit.recipe.resolve import ResolvedRecipe, resolve

MODEL = {"plugin": "llama", **SMALL}
TRACES: dict[str, Trace] = {}
SETTINGS = {"global_batch_size": 8, "save_in_background": None}

REFUSING = '''
"""Made for a test."""

from toolkit.api import OptionError, Strategy


class Refusing(Strategy):
    """Exact, and for no model."""

    claims = frozenset({"gradients"})
    fidelity = "exact"

    @classmethod
    def candidates(cls, settings, device):
        return [cls()]

    def apply(self, model, run):
        raise OptionError("not for this model")
'''


CAPPING = '''
"""Made for a test."""

from toolkit.api import Model


class Capping(Model):
    """Gemma 2, which caps its logits after its head."""

    def build(self, tokenizer, run):
        from transformers import Gemma2Config, Gemma2ForCausalLM

        return Gemma2ForCausalLM(Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
            num_key_value_heads=1, intermediate_size=64, final_logit_softcapping=30.0))
'''


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most recipes here have one model, so that a set of strategies needs to be traced once."""

    def remembered(recipe: ResolvedRecipe, *, micro_batch_size: int, accumulation: int, **several: int) -> Trace:
        training = recipe.training.model_dump(exclude={"save_in_background", "micro_batch_size"})
        key = repr(
            (
                *(recipe.data()[key] for key in ("model", "memory", "exporters")),
                training,
                micro_batch_size,
                accumulation,
                several,
            )
        )
        if key not in TRACES:
            TRACES[key] = trace(recipe, micro_batch_size=micro_batch_size, accumulation=accumulation, **several)
        return TRACES[key]

    monkeypatch.setattr(fake_step, "trace", remembered)


def auto(folder: Path, *others: Any, training: dict[str, Any] | None = None, **options: Any) -> ResolvedRecipe:
    memory = [{"plugin": "auto", **options}, *others]
    data = {"model": MODEL, "memory": memory, "training": SETTINGS | (training or {})}
    return resolved(write_recipe(folder, **data))


def chosen(recipe: ResolvedRecipe, budget: int) -> tuple[ResolvedRecipe, Choice]:
    return resolve_auto(recipe, budget, rates=RATES)


def plain(recipe: ResolvedRecipe) -> Plan:
    """The plan without any strategy."""
    alone = resolve(without_choosers(recipe.recipe), recipe.device)
    return make_plan(alone.with_training(save_in_background=False), rates=RATES)


def budget_for(made: Plan, share: float) -> int:
    """A budget that leaves this share of what the plain run's tensors take."""
    framework = made.parts["framework"]
    return round((framework + share * (made.peak_bytes - framework)) / (1 - SPARE_SHARE["cpu"]))


def option(fidelity: Fidelity, seconds: float, peak: int, made: Plan, *, strategies: int = 1) -> Option:
    reckoned = replace(made, fidelity=fidelity, seconds_per_step=seconds, peak_bytes=peak)
    return Option((None,) * strategies, None, reckoned)  # type: ignore[arg-type]  # the choice looks at the plan


def test_the_order_of_the_choice(tmp_path: Path) -> None:
    made = plain(auto(tmp_path))
    slow, fast = option("exact", 3.0, 50, made), option("exact", 2.0, 90, made)
    simple = option("exact", 2.01, 95, made, strategies=0)
    half, other = option("approximate", 1.0, 40, made), option("different", 0.5, 10, made)
    every = [other, half, slow, fast, simple]
    assert choose(every, limit_bytes=100) is simple
    assert choose(every, limit_bytes=90) is fast
    assert choose(every, limit_bytes=60) is slow
    assert choose(every, limit_bytes=45) is half
    assert choose(every, limit_bytes=45, fidelity="exact") is None
    assert choose(every, limit_bytes=20) is other
    assert choose(every, limit_bytes=20, fidelity="approximate") is None


@pytest.mark.parametrize("share", [1.2, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.8, 0.5)), 0.35])
def test_it_is_never_over_the_budget_and_keeps_the_global_batch(share: float, tmp_path: Path) -> None:
    recipe = auto(tmp_path)
    budget = budget_for(plain(recipe), share)
    concrete, choice = chosen(recipe, budget)
    made = make_plan(concrete, rates=RATES, limit_bytes=budget)
    assert made.peak_bytes <= usable_bytes(budget, recipe.device) < budget
    assert made == choice.plan
    assert concrete.training.global_batch_size == 8
    assert concrete.fidelity == "exact"
    assert not any(part.name == "auto" for part in concrete.recipe.memory)
    assert (choice.record["strategies"] == []) == (share > 1)


def test_where_none_is_needed_one_is_taken_for_its_speed_alone(tmp_path: Path) -> None:
    """A processor clears each page that it hands out, and a loss in chunks takes its memory once."""
    recipe = auto(tmp_path)
    ample = 10**12
    _, choice = chosen(recipe, ample)
    assert choice.record["strategies"] == []
    _, choice = resolve_auto(recipe, ample, rates=replace(RATES, seconds_per_fresh_byte=1e-8))
    assert [entry["plugin"] for entry in choice.record["strategies"]] == ["chunked-loss"]


def test_where_none_is_needed_no_step_is_traced_twice_and_none_that_only_recomputes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run waits for each of them, a second or more."""
    asked: list[tuple[str, ...]] = []

    def noted(recipe: ResolvedRecipe, **sizes: int) -> Trace:
        asked.append(named(recipe.recipe.memory))
        return trace(recipe, **sizes)

    monkeypatch.setattr(fake_step, "trace", noted)
    concrete, choice = chosen(auto(tmp_path), 10**12)
    assert asked == [(), ("chunked-loss",)]
    assert choice.plan == make_plan(concrete, rates=RATES, limit_bytes=10**12)


@pytest.mark.slow
def test_no_choice_of_ones_own_that_fits_is_faster(tmp_path: Path) -> None:
    recipe = auto(tmp_path)
    budget = budget_for(plain(recipe), 0.5)
    _, choice = chosen(recipe, budget)
    fitting = []
    for size in (None, 1, 2, 4):
        for checkpointed in (False, True):
            by_hand: list[Any] = ["gradient-checkpointing"] * checkpointed
            by_hand += [{"plugin": "small-batch", "micro_batch_size": size}] if size else []
            settings = SETTINGS | {"save_in_background": False}
            made = make_plan(
                resolved(write_recipe(tmp_path, model=MODEL, memory=by_hand, training=settings)), rates=RATES
            )
            if made.peak_bytes <= usable_bytes(budget, recipe.device):
                fitting.append(made.seconds_per_step)
    assert 0 < len(fitting) < 8
    assert choice.plan.seconds_per_step <= min(fitting) * 1.1


@pytest.mark.slow
def test_a_strategy_that_goes_with_no_cut_of_the_batch_is_in_nobodys_way(tmp_path: Path) -> None:
    """release-gradients is offered where nothing is clipped, and refuses accumulation."""
    recipe = auto(tmp_path, training={"max_grad_norm": 0})
    budget = budget_for(plain(recipe), 0.35)
    concrete, _ = chosen(recipe, budget)
    assert make_plan(concrete, rates=RATES).peak_bytes <= usable_bytes(budget, recipe.device)
    assert concrete.fidelity == "exact"


def test_a_strategy_that_refuses_the_model_is_not_chosen(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins/memory"
    plugins.mkdir(parents=True)
    (plugins / "refusing.py").write_text(REFUSING, encoding="utf-8")
    file = write_recipe(tmp_path, model=MODEL, memory=["auto"], training=SETTINGS, plugin_paths=["plugins"])
    recipe = resolved(file)
    assert "refusing" in [part.name for part in candidates(recipe)]
    concrete, _ = chosen(recipe, budget_for(plain(recipe), 0.35))
    assert "refusing" not in [part.name for part in concrete.recipe.memory]


@pytest.mark.slow
def test_strategies_that_the_run_would_refuse_are_no_choice(tmp_path: Path) -> None:
    """A loss in chunks for capped logits, and an adapter whose base is saved nowhere."""
    plugins = tmp_path / "plugins/model"
    plugins.mkdir(parents=True)
    (plugins / "capping.py").write_text(CAPPING, encoding="utf-8")
    model = {"plugin": "capping"}
    memory = [{"plugin": "auto", "fidelity": "different"}]
    file = write_recipe(tmp_path, model=model, memory=memory, training=SETTINGS, plugin_paths=["plugins"])
    recipe = resolved(file)
    offered = {part.name for part in candidates(recipe)}
    assert offered >= {"chunked-loss", "lora"}
    made = plain(recipe)
    for share in (4.0, 0.5, 0.3):
        rates = replace(RATES, seconds_per_fresh_byte=1e-8)
        concrete, _ = resolve_auto(recipe, budget_for(made, share), rates=rates)
        assert not {part.name for part in concrete.recipe.memory} & {"chunked-loss", "lora"}
    by_hand = resolved(write_recipe(tmp_path, model=model, memory=["chunked-loss"], plugin_paths=["plugins"]))
    with pytest.raises(RecipeError, match=r"memory\[0\]: the logits of Gemma2ForCausalLM are not those that its head"):
        make_plan(by_hand, rates=RATES)


@pytest.mark.slow
def test_a_lower_fidelity_only_where_nothing_else_fits(tmp_path: Path) -> None:
    made = plain(auto(tmp_path))
    state = made.weights_bytes + made.gradients_bytes + made.optimizer_bytes  # which no exact strategy makes less
    budget = round((made.parts["framework"] + 0.9 * state) / (1 - SPARE_SHARE["cpu"]))
    with pytest.raises(RecipeError, match=r"the smallest peak is .* of about .* parameters would fit .* approximate"):
        chosen(auto(tmp_path, fidelity="exact"), budget)
    concrete, choice = chosen(auto(tmp_path, fidelity="different"), budget)
    assert concrete.fidelity == choice.plan.fidelity != "exact"


@pytest.mark.slow
def test_it_leaves_alone_what_somebody_manages(tmp_path: Path) -> None:
    recipe = auto(tmp_path, {"plugin": "small-batch", "micro_batch_size": 4}, "frequent-saves")
    concrete, choice = chosen(recipe, budget_for(plain(recipe), 0.8))
    assert concrete.training.micro_batch_size == 4
    names = {entry["plugin"] for entry in choice.record["strategies"]}
    assert names
    assert not names & {"small-batch", "frequent-saves"}
    assert {part.name for part in concrete.recipe.memory} == {"small-batch", "frequent-saves"} | names


@pytest.mark.slow
def test_what_was_chosen_can_be_chosen_again_and_is_a_recipe(tmp_path: Path) -> None:
    recipe = auto(tmp_path)
    concrete, choice = chosen(recipe, budget_for(plain(recipe), 0.5))
    again = with_choice(recipe, choice.record)
    assert identity(again) == identity(concrete)
    assert again.training == concrete.training
    written = tmp_path / "again.yaml"
    written.write_text(concrete.to_yaml(), encoding="utf-8")
    assert identity(resolved(written)) == identity(concrete)


def test_a_copy_of_the_state_must_have_room(tmp_path: Path) -> None:
    recipe = auto(tmp_path)
    made = plain(recipe)
    tight, _ = chosen(recipe, round((made.peak_bytes + made.state_bytes / 2) / (1 - SPARE_SHARE["cpu"])))
    ample, _ = chosen(recipe, round((made.peak_bytes + made.state_bytes * 2) / (1 - SPARE_SHARE["cpu"])))
    assert (tight.training.save_in_background, ample.training.save_in_background) == (False, True)
    assert "no room" in tight.origin(("training", "save_in_background"))


@pytest.mark.parametrize(
    ("share", "told"),
    [(1.2, "more memory would make it no faster"), (0.35, r"a machine with \S+ .B would be \d+% faster, with .+")],
)
def test_it_says_what_and_why_and_what_more_memory_would_give(tmp_path: Path, share: float, told: str) -> None:
    recipe = auto(tmp_path)
    _, choice = chosen(recipe, budget_for(plain(recipe), share))
    first, second = choice.why
    assert "planned peak" in first
    assert re.fullmatch(told, second), second


@pytest.mark.slow
def test_a_comparison_shows_each_strategy_and_sets_of_them(tmp_path: Path) -> None:
    recipe = resolved(write_recipe(tmp_path, model=MODEL, memory=["auto"], training=SETTINGS, exporters=[]))
    shown = list(rows(Search(recipe, rates=RATES, limit_bytes=10**12)))
    sets = [row.plan.strategies for row in shown]
    assert sets[0] == ()
    assert ("gradient-checkpointing",) in sets
    assert ("lora",) in sets
    assert any(len(words) > 1 for words in sets)
    assert len(set(sets)) == len(sets)


def test_a_search_tells_how_it_goes_and_ends_with_its_time(tmp_path: Path) -> None:
    recipe = auto(tmp_path)
    made, told = plain(recipe), list[str]()

    def search(seconds: float) -> Search:
        ticks = itertools.count()
        return Search(
            recipe,
            rates=RATES,
            limit_bytes=made.peak_bytes - 1,
            progress=lambda phase, done=0, total=None, *, unit="": told.append(f"{phase}: {done} {unit}"),
            seconds=seconds,
            clock=lambda: float(next(ticks)),
        )

    whole = search(1000)
    best = whole.best(fidelity="different")
    assert best is not None
    assert (best.plan.fits, whole.cut_short) == (True, False)
    assert told[0] == "planning memory: 0 tried"
    assert re.fullmatch(r".* needed, .* usable: looking for strategies that fit, for .* at most: 1 tried", told[1])
    hurried = search(3)
    hurried.best(fidelity="different")
    assert hurried.cut_short
    assert hurried.tried < whole.tried
    assert "--search-seconds" in not_all_was_tried(hurried)
