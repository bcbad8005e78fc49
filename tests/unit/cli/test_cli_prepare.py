"""`toolkit recipe prepare`: the data of a recipe without a run; a run then finds it."""

from __future__ import annotations

from pathlib import Path

from tests.command_line import toolkit
from tests.tiny import texts


def test_it_prepares_what_a_run_finds(here: Path) -> None:
    texts(here)
    words = ("recipe", "prepare", "./mine.yaml", "--set", "dataset.sample_by=line")
    answer = toolkit(*words, "--workers", "2")
    assert "tokens" in answer.out
    assert answer.out.endswith("Prepared: ./mine.yaml. To train on it: toolkit recipe run ./mine.yaml\n")
    assert not (here / "runs").exists()
    again = toolkit(*words, "--json")
    assert "data, from the cache" in again.err
    assert again.json["from_cache"] is True
    assert again.json["total_steps"] == 5
    assert again.json["account"]["train"]["documents"] == 160


def test_what_is_wrong_has_its_place(here: Path) -> None:
    answer = toolkit("recipe", "prepare", "./mine.yaml", status=2)
    assert "mine.yaml:5:" in answer.err
    assert "--workers" in toolkit("recipe", "prepare", "./mine.yaml", "--workers", "0", status=2).err
