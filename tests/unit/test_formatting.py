"""Numbers as people read them: one form for each quantity."""

from __future__ import annotations

import math

import pytest

from toolkit import formatting


@pytest.mark.parametrize(
    ("of_bytes", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (9_620, "9.62 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (727_052_288, "727 MB"),
        (999_600_000, "1.00 GB"),
        (9_996_000_000, "10.0 GB"),
        (85_520_000_000, "85.5 GB"),
        (1.437e11, "144 GB"),
        (5e12, "5.00 TB"),
    ],
)
def test_sizes_have_three_digits(of_bytes: float, words: str) -> None:
    assert formatting.size(of_bytes) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (950, "950"),
        (999.7, "1,000"),
        (9_500, "9,500"),
        (12_345, "12.3K"),
        (24_000, "24K"),
        (99_960, "100K"),
        (999_700, "1M"),
        (124_439_808, "124M"),
        (1.3e9, "1.3B"),
    ],
)
def test_large_counts_are_short(number: float, words: str) -> None:
    assert formatting.compact(number) == words


def test_one_is_no_plural() -> None:
    assert [formatting.counted(number, "step") for number in (0, 1, 2, 1000)] == [
        "0 steps",
        "1 step",
        "2 steps",
        "1,000 steps",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.26, "260 ms"),
        (0.9996, "1 s"),
        (5.24, "5.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (193, "3 min 13 s"),
        (3599.7, "1 h"),
        (9000, "2 h 30 min"),
        (86_399.8, "1 d"),
        (273_600, "3 d 4 h"),
    ],
)
def test_lengths_of_time_have_two_units_at_most(seconds: float, words: str) -> None:
    assert formatting.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (22.718, "22.72"),
        (99.996, "100.0"),
        (412.34, "412.3"),
        (999.96, "1,000"),
        (60_312.4, "60,300"),
        (163_123_456.7, "above a million"),
        (math.inf, "above a million"),
    ],
)
def test_a_perplexity_has_only_digits_that_mean_something(value: float, words: str) -> None:
    assert formatting.perplexity(value) == words


def test_a_moment_names_its_time_zone() -> None:
    assert formatting.moment("2026-01-31T08:02:08+00:00") == "2026-01-31 08:02 UTC"
