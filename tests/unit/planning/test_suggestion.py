"""What is suggested for the data and the compute that there are."""

from __future__ import annotations

from typing import Any

import pytest

import toolkit
from toolkit.errors import UsageError
from toolkit.planning.scaling_laws import optimal_parameters
from toolkit.planning.suggestion import Suggestion


def suggest(**given: Any) -> Suggestion:
    return toolkit.suggest(**{"device": "a100-80g", **given})


def told(made: Suggestion) -> str:
    return " ".join(made.cautions)


def test_with_data_to_spare_the_compute_decides() -> None:
    made = suggest(tokens="10B", flops="1e18")
    assert made.parameters == pytest.approx(optimal_parameters(1e18), rel=0.15)
    assert made.flops == pytest.approx(1e18, rel=0.01)
    assert made.tokens == made.steps * made.tokens_per_step
    assert made.tokens_per_step == made.sequences_per_step * made.block_size
    assert (made.unique_tokens, made.cautions) == (10**10, ())
    assert suggest(flops="1e18").parameters == made.parameters


def test_with_little_data_four_epochs_decide_and_the_rest_of_the_compute_is_spoken_of() -> None:
    made = suggest(tokens="100M", flops="1e19")
    assert made.epochs == pytest.approx(4, rel=0.01)
    # Four epochs of 99.5M tokens; N D = (0.1196 x 398M)^(0.7136 / 0.3478) = 5.65e15, so that N is 14.2M.
    assert made.tokens == pytest.approx(4 * 99.5e6, rel=0.01)
    assert made.parameters == pytest.approx(14.2e6, rel=0.15)
    assert "4.0 epochs of 99.5M tokens are worth 371M new ones" in told(made)
    assert "times this run" in told(made)
    assert suggest(tokens="100M").parameters == made.parameters


def test_hours_are_flops_at_the_share_of_the_rate_that_a_run_reaches() -> None:
    made = suggest(hours=2, mfu=0.5)
    assert made.seconds == pytest.approx(7200, rel=0.02)
    assert made.flops == pytest.approx(7200 * 0.5 * 0.8 * 312e12, rel=0.02)
    four = suggest(hours=2, mfu=0.5, processes=4)
    assert four.flops == pytest.approx(4 * made.flops, rel=0.05)
    assert four.sequences_per_step % 4 == 0
    assert suggest(hours=2, device="colab-cpu", processes=2).flops == suggest(hours=2, device="colab-cpu").flops
    assert (
        suggest(hours=2, device="t4")
        .sources["time"]
        .startswith("MFU 20% (assumed, 0.13 to 0.35 in tests/benchmarks/results/h100.txt) of 52 TFLOP/s in fp16")
    )


def test_a_size_that_is_asked_for_gets_its_tokens_or_the_time_that_there_is() -> None:
    made = suggest(model_size="80M")
    assert made.parameters == pytest.approx(8e7, rel=0.1)
    assert made.tokens == pytest.approx(20 * made.parameters, rel=0.25)
    longer = suggest(model_size="80M", flops=20 * made.flops)
    assert longer.tokens == pytest.approx(20 * made.tokens, rel=0.02)
    assert "parameters are best" in told(longer)
    assert suggest(model_size="80M", flops=20 * made.flops, tokens=made.tokens).epochs == pytest.approx(4, rel=0.01)


def test_the_learning_rate_of_a_small_model_is_not_the_step_laws_and_says_so() -> None:
    large, small = suggest(flops="1e19"), suggest(flops="1e14")
    assert "times" not in large.sources["learning rate"]
    assert "as measured for small models" in small.sources["learning rate"]
    assert small.learning_rate < 0.02


def test_where_the_laws_were_not_measured_it_says_so() -> None:
    assert "extrapolated" not in told(suggest(flops="1e19"))
    assert "the laws were fitted on 44M to 16B (size) and 59M to 1.1B" in told(suggest(flops="1e15"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say what there is: --tokens 100M"),
        ({"tokens": "many"}, "--tokens many: not a number of 1 or more; write it like 100M"),
        ({"tokens": "0"}, "--tokens 0: not a number of 1 or more"),
        ({"flops": "1e999"}, "--flops 1e999: not a number"),
        ({"model_size": "-3M"}, "--model-size -3M: not a number"),
        ({"hours": -1.0}, "--hours -1.0: must be more than 0"),
        ({"hours": float("nan")}, "--hours nan: must be more than 0"),
        ({"hours": 1, "flops": "1e18"}, "two names of one budget"),
        ({"flops": "1e18", "mfu": 40}, "--mfu 40: a share"),
        ({"flops": "1e18", "vocab_size": 10}, "--vocab-size 10: must be at least 300"),
        ({"flops": "1e18", "device": "h1000"}, "no such device"),
        ({"flops": "1e18", "architecture": "bert"}, "known are llama, gpt2"),
        ({"model_size": "10K"}, "no model of 10K parameters is suggested; the nearest, a llama with 4,096 tokens"),
        ({"model_size": "900B"}, "no model of 900B parameters"),
        ({"flops": "1e40"}, "parameters is suggested; the nearest"),
        ({"flops": "1"}, "that is enough for 0 steps"),
        ({"hours": 1e-300}, "that is enough for 0 steps"),
        ({"tokens": "5K"}, "which is no run yet; 50 take"),
    ],
)
def test_a_mistake_gets_a_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        suggest(**given)
    assert said in str(refused.value)


def test_a_number_may_be_written_in_many_ways() -> None:
    first = suggest(tokens="1.5B", flops=1e18)
    for tokens in (1.5e9, "1500M", "1.5e9", "1500000000", "1.5b"):
        assert suggest(tokens=tokens, flops="1E18") == first
