"""The laws against values worked out by hand, or printed in the papers."""

from __future__ import annotations

import pytest

from toolkit.planning import scaling_laws as laws


def test_chinchilla_itself_is_near_the_best_size_for_its_compute() -> None:
    """5.76e23 FLOPs, 70B parameters, 1.4T tokens: about 20 a parameter, as the replication has it."""
    best = laws.optimal_parameters(5.76e23)
    assert best == pytest.approx(7.2e10, rel=0.05)
    assert 5.76e23 / 6 / best**2 == pytest.approx(18.4, rel=0.05)


def test_the_best_size_and_the_best_number_of_tokens_belong_to_one_compute() -> None:
    # (0.3478 x 482.01 / (0.3658 x 2085.43))^(1 / 0.7136) = 0.2198^1.4013 = 0.1196
    assert pytest.approx(0.1196, rel=1e-3) == laws.G
    # 0.1196 x (1e18 / 6)^(0.3658 / 0.7136) = 0.1196 x exp(0.51261 x 39.6548) = 0.1196 x 6.727e8
    assert laws.optimal_parameters(1e18) == pytest.approx(8.05e7, rel=5e-3)
    assert laws.flops_for_parameters(laws.optimal_parameters(1e18)) == pytest.approx(1e18)
    assert laws.flops_for_tokens(1e18 / 6 / laws.optimal_parameters(1e18)) == pytest.approx(1e18)


def test_the_step_law_gives_what_its_authors_formula_gives() -> None:
    # 1.79 x 1e9^-0.713 x 1e11^0.307 = 1.79 x 10^(-6.417 + 3.377); 0.58 x 1e11^0.571 = 0.58 x 10^6.281
    assert laws.step_law_learning_rate(1e9, 1e11) == pytest.approx(1.79 * 10**-3.04)
    assert laws.step_law_batch(1e11) == pytest.approx(0.58 * 1.9099e6, rel=1e-4)


def test_below_its_range_the_step_law_is_lowered_to_what_was_measured() -> None:
    """The optima of docs/quickstart-choice.md; and two that others found for a Llama of 46M parameters
    (https://lucaslingle.substack.com/p/scaling-laws-for-optimal-lr-and-batch-1d4), to which it was not fitted.
    """

    def rate(parameters: float, tokens: float) -> float:
        return laws.step_law_learning_rate(parameters, tokens) * laws.small_model_share(parameters)

    assert rate(426e3, 560e3) == pytest.approx(2.4e-3, rel=0.25)
    assert rate(853e3, 400e3) == pytest.approx(2.0e-3, rel=0.25)
    assert rate(46e6, 128e6) == pytest.approx(1.95e-3, rel=0.25)
    assert rate(46e6, 1024e6) == pytest.approx(3.9e-3, rel=0.25)
    assert rate(1e9, 1e11) == laws.step_law_learning_rate(1e9, 1e11)


def test_four_epochs_are_worth_almost_as_many_new_ones_and_forty_are_not() -> None:
    assert laws.worth_in_new_tokens(100, 0.5) == 50
    assert laws.worth_in_new_tokens(100, 1) == 100
    # 1 + 15.387756 x (1 - exp(-3 / 15.387756)) = 1 + 15.387756 x 0.17713
    assert laws.worth_in_new_tokens(100, 4) == pytest.approx(372.6, abs=0.2)
    assert laws.worth_in_new_tokens(100, 40) == pytest.approx(1516.7, abs=1)


def test_the_warm_up_is_a_token_for_each_parameter_but_no_more_than_a_tenth() -> None:
    assert laws.warm_up_tokens(1e6, 2e7) == 1e6
    assert laws.warm_up_tokens(1e6, 5e6) == 5e5
