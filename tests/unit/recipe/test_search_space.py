"""What `recipe sweep --set` varies."""

from __future__ import annotations

import pytest

from toolkit.errors import UsageError
from toolkit.recipe.search_space import MOST_CHECKED, ListedValues, ValueRange, search_space


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3,2e-3", ("0.001", "0.002")),
        ("linear, cosine", ('"linear"', '"cosine"')),
        ("null,0.1", ("null", "0.1")),
        ("[a, b],[c]", ('["a", "b"]', '["c"]')),
        ("{plugin: lora, r: 4},{plugin: lora, r: 8}", ('{"plugin": "lora", "r": 4}', '{"plugin": "lora", "r": 8}')),
        ("1,1,2", ("1", "2")),
    ],
)
def test_a_comma_separates_values(text: str, values: tuple[str, ...]) -> None:
    assert search_space([f"a.b={text}"]).axes == (ListedValues("a.b", values),)


@pytest.mark.parametrize("text", ["1e-3", "[a, b]", '"once, upon"', "{a: 1, b: 2}", "", "../texts/*.txt", "a: [b"])
def test_anything_else_is_one_value_for_all_trials(text: str) -> None:
    space = search_space(["x.y=1,2", f"a.b={text}"])
    assert space.fixed == (f"a.b={text}",)
    assert space.overrides({"x.y": "2"}) == (f"a.b={text}", "x.y=2")


def test_a_range_of_an_order_of_magnitude_is_searched_by_them() -> None:
    rate, dropout, width = search_space(["rate=1e-4..1e-2", "dropout=0..0.5", "width=64..1024"]).axes
    assert (rate, dropout) == (ValueRange("rate", 1e-4, 1e-2, False), ValueRange("dropout", 0.0, 0.5, False))
    assert [axis.logarithmic for axis in (rate, dropout, width) if isinstance(axis, ValueRange)] == [True, False, True]
    assert isinstance(width, ValueRange)
    assert isinstance(rate, ValueRange)
    assert (width.text(100.4), rate.text(0.00123456)) == ("100", "0.001235")
    assert str(rate) == "rate: 0.0001 to 0.01, by orders of magnitude"


def test_rounding_leads_out_of_no_range() -> None:
    (beta,) = search_space(["beta=0.90001..0.99999"]).axes
    assert isinstance(beta, ValueRange)
    assert beta.tried_first == ("0.90001", "0.99999")
    assert [beta.text(value) for value in (0.900011, 0.95, 0.999989)] == ["0.90001", "0.95", "0.99999"]


def test_a_section_is_set_before_what_it_would_replace() -> None:
    space = search_space(["model.dropout=0,0.1", "model={plugin: gpt2},{plugin: llama}", "model.layers=2", "seed=1"])
    *_, values = space.grid()
    assert space.overrides(values) == (
        "seed=1", 'model={"plugin": "llama"}', "model.layers=2", "model.dropout=0.1",
    )  # fmt: skip


def test_a_grid_is_all_combinations() -> None:
    space = search_space(["a=1,2", "b=x,y"])
    assert space.is_grid
    assert [tuple(values.values()) for values in space.grid()] == [
        ("1", '"x"'), ("1", '"y"'), ("2", '"x"'), ("2", '"y"'),
    ]  # fmt: skip
    assert not search_space(["a=1,2", "b=1..2"]).is_grid


def test_of_a_large_space_each_value_is_checked_once() -> None:
    ten = ",".join(map(str, range(10)))
    space = search_space([f"{key}={ten}" for key in "abcd"])
    checked = list(space.to_check())
    assert len(checked) == 40 < MOST_CHECKED
    assert {(key, value) for values in checked for key, value in values.items()} == {
        (key, str(value)) for key in "abcd" for value in range(10)
    }
    assert len(list(search_space([f"a={ten}", f"b={ten}"]).to_check())) == 100


def test_a_best_value_at_the_end_of_its_list_is_noticed() -> None:
    space = search_space(["rate=1e-3,1e-2,1e-1", "kind=a,b,c", "width=8,16", "drop=0..0.5"])
    values = {"rate": "0.1", "kind": '"a"', "width": "8", "drop": "0.5"}
    assert space.at_the_end(values) == ["rate"]
    assert space.at_the_end({**values, "rate": "0.01"}) == []


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["a=1"], "nothing is varied"),
        (["a=1,2", "a=1..3"], "a is varied twice"),
        (["a=1,2", "a=3"], "a is varied by another --set"),
        (["a=1, 1"], "all values are the same"),
        (["a=2..1"], "from a lower to a higher"),
        (["a=1..1"], "from a lower to a higher"),
    ],
)
def test_what_makes_no_sense_is_refused(assignments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        search_space(assignments)
