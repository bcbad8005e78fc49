"""The order of a mixture keeps to its shares at every block, and any position of it is found at once."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest

from toolkit.data.interleaving import LONGEST_CYCLE, Interleaving, StageOrder, cycle_of, laid_out, shuffled
from toolkit.data.mixture_plan import planned, stage_orders
from toolkit.recipe.mix import Mix


def mix(weights: dict[str, float], *stages: tuple[str | None, dict[str, float]]) -> Mix:
    return Mix.model_validate(
        {
            "sources": [{"name": name, "weight": weight, "dataset": "python-docs"} for name, weight in weights.items()],
            "stages": [{"until": until, "weights": changed} for until, changed in stages],
        }
    )


FOUR = {"web": 0.6, "code": 0.25, "books": 0.1, "math": 0.05}


def test_four_sources_in_three_stages_are_within_a_block_of_their_weights_at_every_100th_block() -> None:
    """And so at every other block, in each stage and over the run."""
    mixture = mix(FOUR, ("40%", {}), ("80%", {"web": 0.45, "math": 0.2}), (None, {"web": 0, "code": 0.3, "math": 0.6}))
    length = 20_000
    orders = stage_orders(mixture, length)
    order = Interleaving(orders)
    assert len(order) == length
    assert [stage.blocks for stage in orders] == [8000, 8000, 4000]
    weights = [[Fraction(repr(weight)) for weight in of_stage.values()] for of_stage in mixture.weights()]
    taken, wanted, position = [0] * 4, [Fraction()] * 4, 0
    for stage, of_stage in zip(orders, weights, strict=True):
        in_stage = [0] * 4
        for number in range(1, stage.blocks + 1):
            source, before = order.at(position)
            assert before == taken[source]
            position, taken[source], in_stage[source] = position + 1, taken[source] + 1, in_stage[source] + 1
            wanted = [sum(pair) for pair in zip(wanted, (weight / sum(of_stage) for weight in of_stage), strict=True)]
            assert all(abs(had - want) < 1 for had, want in zip(taken, wanted, strict=True))
            assert all(
                abs(had - number * weight / sum(of_stage)) < 1 for had, weight in zip(in_stage, of_stage, strict=True)
            )
            if position % 100 == 0:
                assert order.taken(position) == taken


def test_a_cycle_is_as_even_as_one_can_be() -> None:
    """Tijdeman's bound, for whatever shares."""
    draw = random.Random(1)
    for _ in range(60):
        counts = [draw.randint(1, 40) for _ in range(draw.randint(2, 8))]
        length, bound = sum(counts), 1 - Fraction(1, 2 * len(counts) - 2)
        taken = [0] * len(counts)
        for position, source in enumerate(laid_out(counts).tolist(), start=1):
            taken[source] += 1
            shares = [Fraction(position * count, length) for count in counts]
            assert max(abs(had - share) for had, share in zip(taken, shares, strict=True)) <= bound
        assert taken == counts


def test_shares_are_taken_as_they_are_written() -> None:
    assert cycle_of({"a": 0.7, "b": 0.2, "c": 0.1}) == {"a": 7, "b": 2, "c": 1}
    assert cycle_of({"a": 3, "b": 0, "c": 1}) == {"a": 3, "b": 0, "c": 1}
    rounded = cycle_of({"a": 0.123456789, "b": 0.7654321, "c": 1e-9})
    assert sum(rounded.values()) == LONGEST_CYCLE
    assert rounded["c"] == 1
    assert rounded["a"] / LONGEST_CYCLE == pytest.approx(0.123456789 / 0.888888889, abs=1e-5)


def test_any_position_of_a_run_of_any_length_is_found() -> None:
    order = Interleaving([StageOrder.of(10**12, [7, 2, 1]), StageOrder.of(10, [0, 1, 0])])
    assert order.at(10**12 - 1)[1] + 1 in order.taken(10**12)
    assert order.taken(10**12) == [7 * 10**11, 2 * 10**11, 10**11]
    assert order.at(10**12 + 9) == (1, 2 * 10**11 + 9)
    with pytest.raises(IndexError):
        order.at(10**12 + 10)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 97, 1000])
def test_a_shuffle_is_a_permutation_and_another_one_for_another_key(length: int) -> None:
    first, second = ([shuffled(index, length, key) for index in range(length)] for key in ("42 web 0", "42 web 1"))
    assert sorted(first) == sorted(second) == list(range(length))
    if length > 10:
        assert sum(one == other for one, other in zip(first, second, strict=True)) < 10


def test_a_shuffle_leaves_no_pattern() -> None:
    """Neighbours land as far apart as chance has them: a third of the length, on average."""
    length = 4000
    places = [shuffled(index, length, "42 web 0") for index in range(length)]
    apart = sum(abs(one - other) for one, other in itertools.pairwise(places)) / length
    assert apart / length == pytest.approx(1 / 3, rel=0.05)


def test_the_plan_says_what_each_source_is_asked_for_and_which_is_too_small() -> None:
    mixture = mix({"web": 3, "math": 1}, ("50%", {}), (None, {"math": 9}))
    plan = planned(mixture, blocks=800, block_size=32, available={"web": 200, "math": 80})
    assert plan.blocks == {"web": 400, "math": 400}
    assert plan.passes == {"web": 2.0, "math": 5.0}
    (refused,) = plan.too_small(steps=100).items()
    assert refused == (
        "math",
        "math is too small: its share of the run is 12,800 tokens, 5 passes over the 2,560 that it has, and max_passes "
        "is 4; give it 0.8 times the share or less, more text, or a run of 80 steps, or set max_passes: 5 if it may be "
        "repeated so often",
    )
    assert plan.words() == [
        "web: 75.0%, then 25.0%, in all 50.0%; 9,600 + 3,200 = 12,800 tokens, 2 passes over 6,400",
        "math: 25.0%, then 75.0%, in all 50.0%; 3,200 + 9,600 = 12,800 tokens, 5 passes over 2,560",
    ]
    allowed = planned(
        mixture.model_copy(update={"max_passes": 5}), blocks=800, block_size=32, available={"web": 200, "math": 80}
    )
    assert not allowed.too_small(steps=100)
    assert [caution.partition(";")[0] for caution in allowed.worn()] == ["math is repeated 5 times"]
