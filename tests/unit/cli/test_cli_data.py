"""`toolkit data inspect`: what is in the data, and what looks wrong, with the option that mends it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import toolkit
from tests.tiny import WORDS

pytestmark = pytest.mark.usefixtures("here")

INSPECT = ("data", "inspect", "mine.yaml", "--set", "dataset.sample_by=line")
GOOD = [f"{' '.join(WORDS[at:])} {number}." for number in range(40) for at in (0, 3, 9)]


def inspected(lines: list[str], *words: str) -> Any:
    Path("a.txt").write_text("\n".join(lines), encoding="utf-8")
    return toolkit(*INSPECT, *words, "--json").json


def told(lines: list[str], *words: str) -> str:
    """What looks wrong, with its cures, in one line."""
    return " ".join(f"{one['what']}: {one['cure']}" for one in inspected(lines, *words)["suspicions"])


def test_good_text_is_counted_and_nothing_looks_wrong() -> None:
    found = inspected(GOOD)
    assert found["documents"] == {"train": 96, "validation": 24}
    assert (found["looked_at"], found["empty"], found["duplicates"], found["is_everything"]) == (96, 0, 0, True)
    assert found["columns"] == {"text": "large_string"}
    assert sum(found["tokens_by_length"].values()) == 96
    assert all(int(least).bit_count() == 1 for least in found["tokens_by_length"])
    assert found["scripts"] == {"Latin": 1.0}
    assert (found["unknown_share"], found["special_share"], found["special_tokens"]) == (0, 0, {})
    assert 0 < found["tokens_per_byte"] < 1
    assert found["shortest"][0]["tokens"] <= found["median_tokens"] <= found["longest"][0]["tokens"]
    assert [sum(part["tokens"] for part in block) for block in found["blocks"]] == [32, 32]
    assert [one["what"] for one in found["suspicions"] if "tokens per byte" not in one["what"]] == []
    shown = toolkit(*INSPECT).out
    assert "96 train, 24 held out; all looked at; 0 empty" in shown
    assert "Block 1, as the documents are packed" in shown


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([*GOOD, *(["The same line again and again."] * 30)], "filters: [exact-duplicates]"),
        ([*GOOD, *(f"cafÃ© nÂ° {n} and donâ€™t" for n in range(20))], "hold mojibake characters"),
        ([*GOOD, *(f"a \x07 in text {n}" for n in range(20))], "hold control characters"),
        ([*GOOD, *(f"a \ufffd in text {n}" for n in range(20))], "text-files: encoding"),
        ([f"<p>number {n} &amp; more</p>" for n in range(60)], "hold markup characters"),
        ([str(n) for n in range(200)], "sample_by: paragraph or document"),
    ],
)
def test_what_looks_wrong_is_told_with_the_option_that_mends_it(lines: list[str], what: str) -> None:
    assert what in told(lines)


def test_special_tokens_in_the_text_are_found_and_cut() -> None:
    lines = [*GOOD, *(f"one<|endoftext|>two {n}" for n in range(20))]
    assert "special tokens are written" in told(lines, "--set", "dataset.cut_at_end_token=false")
    found = inspected(lines, "--set", "dataset.cut_at_end_token=false")
    assert found["special_share"] == found["special_tokens"]["<|endoftext|>"] / found["tokens"] > 0
    assert "special tokens are written" not in told(lines)


ENGLISH = "The house at the end of the street was sold to a family from the north last year, number {}."
SPANISH = "La casa al final de la calle fue vendida el año pasado a una familia que vino del norte, el número {}."


def test_languages_are_told_and_a_stray_one_with_the_filter_that_drops_it() -> None:
    pytest.importorskip("py3langid")
    lines = [SPANISH.format(n) if n % 10 == 0 else ENGLISH.format(n) for n in range(100)]
    found = inspected(lines)
    assert [*found["languages"]] == ["en", "es"]
    assert sum(found["languages"].values()) == pytest.approx(1)
    assert "of the documents are in other languages than en" in str(found["suspicions"])
    assert "filters: [{plugin: language, languages: [en]}]" in str(found["suspicions"])
    assert "en 8" in toolkit(*INSPECT).out
    both = [line.format(n) for n in range(50) for line in (ENGLISH, SPANISH)]
    assert "languages" not in told(both), "a corpus of two languages is meant to be one"


def test_without_its_package_it_says_how_languages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    assert inspected(GOOD)["languages"] is None
    assert "not told: pip install 'pretrain-toolkit[language]'" in toolkit(*INSPECT).out


def test_a_sample_says_that_it_is_one() -> None:
    found = inspected(GOOD, "--documents", "10")
    assert (found["looked_at"], found["is_everything"]) == (10, False)
    assert found["estimated_tokens"] == round(found["tokens"] * 96 / 10)
    answer = toolkit(*INSPECT, "--documents", "10")
    assert "10 drawn at random and looked at" in answer.out
    assert "the tokenizer has learned from 10 of 96 documents" in answer.err


def test_padding_and_borders_are_shown() -> None:
    lines = [f"{' '.join(WORDS)} {number}." for number in range(40)]
    found = inspected(lines, "--set", "objective.packing=best-fit", "--set", "objective.block_size=150")
    blocks = found["blocks"]
    assert [sum(part["tokens"] for part in block) for block in blocks] == [150, 150]
    assert all(part["begins"] and part["ends"] for block in blocks for part in block if part["row"] is not None)
    assert any(part["row"] is None for block in blocks for part in block)


def test_control_characters_do_not_reach_the_terminal() -> None:
    Path("a.txt").write_text("\n".join([*GOOD, *(f"\x1b[31mred {n}" for n in range(99))]), encoding="utf-8")
    shown = toolkit(*INSPECT).out
    assert "\x1b" not in shown
    assert r"\x1b" in shown


def test_a_mistake_has_its_place_and_no_traceback() -> None:
    assert "mine.yaml:5:31: dataset.files: no file matches" in toolkit("data", "inspect", "mine.yaml", status=2).err
