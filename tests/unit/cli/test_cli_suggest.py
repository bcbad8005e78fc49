"""`toolkit recipe suggest`: what it prints, and that the recipe that it writes is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import process, toolkit

pytestmark = pytest.mark.usefixtures("here")
WORDS = ("recipe", "suggest", "--tokens", "100M", "--hours", "2", "--device", "colab-cpu")


def test_each_number_is_printed_with_its_source(here: Path) -> None:
    out = toolkit(*WORDS).out
    table = {line.split("  ")[0]: line for line in out.split("\n\n")[0].splitlines()}
    assert set(table) == {"", "size", "tokens", "batch", "learning rate", "warm-up", "time"}
    assert "arXiv:2404.10102" in table["size"]
    assert "arXiv:2503.04715" in table["batch"]
    assert "throughput.txt" in table["time"]
    assert "extrapolated" in out
    assert "# Written by: toolkit recipe suggest --tokens 100M --hours 2 --device colab-cpu\n" in out
    assert [file.name for file in here.iterdir()] == ["mine.yaml"]


def test_json_has_the_numbers_and_the_recipe() -> None:
    made = toolkit(*WORDS, "--json").json
    assert made["unique_tokens"] == 100_000_000
    assert f"learning_rate: {made['learning_rate']:.1e}" in made["recipe"]
    assert toolkit(*WORDS, "-o", "-").out == made["recipe"]


@pytest.mark.parametrize("words", [(), ("--model", "gpt2"), ("--files", "*.txt", "--vocab-size", "512")])
def test_the_recipe_is_valid_with_the_numbers_that_were_shown(words: tuple[str, ...], here: Path) -> None:
    (here / "some.txt").write_text("Once upon a time.", encoding="utf-8")
    made = toolkit(*WORDS, *words, "-o", "new.yaml", "--json").json
    assert toolkit("recipe", "validate", "./new.yaml", "--data").out.startswith("./new.yaml is valid")
    resolved = toolkit("recipe", "show", "./new.yaml", "--resolved", "--json").json["recipe"]
    assert resolved["training"]["max_steps"] == made["steps"]
    assert resolved["training"]["learning_rate"] == made["learning_rate"]
    assert resolved["training"]["global_batch_size"] == made["sequences_per_step"]
    assert resolved["training"]["warmup_steps"] == made["warmup_steps"]
    assert resolved["model"]["plugin"] == made["architecture"]
    assert resolved["model"]["num_hidden_layers"] == made["layers"]
    assert resolved["tokenizer"]["vocab_size"] == made["vocabulary"]


def test_a_file_is_not_overwritten() -> None:
    toolkit(*WORDS, "-o", "new.yaml")
    again = toolkit(*WORDS, "-o", "new.yaml", status=2)
    assert again.err == "error: ./new.yaml already exists and was not changed; choose another name\n"
    assert "No such file" in toolkit(*WORDS, "-o", "nowhere/new.yaml", status=3).err


def test_a_mistake_is_one_line_and_status_2() -> None:
    wrong = toolkit("recipe", "suggest", "--tokens", "100X", status=2)
    assert wrong.err == "error: --tokens 100X: not a number of 1 or more; write it like 100M\n"
    assert wrong.out == ""


@pytest.mark.slow
def test_what_is_written_for_this_machine_rehearses(here: Path) -> None:
    """The machine's speed is measured."""
    written = process("recipe", "suggest", "--tokens", "660K", "--hours", "0.05", "-o", "new.yaml", cwd=here)
    assert written.status == 0, written.err
    assert "measured here" in written.out
    rehearsed = process("recipe", "run", "./new.yaml", "--rehearse", cwd=here, TOOLKIT_CACHE=str(here / "cache"))
    assert rehearsed.status == 0, rehearsed.err
    assert "Rehearsal passed" in rehearsed.out
