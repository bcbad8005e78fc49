"""How many sequences at a time an attempt takes, after earlier ones ran out of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import resolved, write_recipe
from toolkit.errors import OutOfMemoryError
from toolkit.events import Event, Message
from toolkit.memory.limits import (
    OUT_OF_MEMORY,
    BatchLimits,
    after_a_kill,
    has_run_out_of_memory,
    killed_for_want_of_memory,
    noted_sizes,
    remember_out_of_memory,
)
from toolkit.memory.watch import READING_LAYOUT, READINGS_FILE
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage.run_directory import RunDirectory, create

GIB = 2**30


@pytest.fixture
def recipe(tmp_path: Path) -> ResolvedRecipe:
    return resolved(write_recipe(tmp_path))


@pytest.fixture
def run(recipe: ResolvedRecipe, tmp_path: Path) -> RunDirectory:
    """A run that nobody has worked on."""
    return create(tmp_path / "runs" / "tiny", recipe, {}, series="tiny")


def held(run: RunDirectory, resident: int, limit: int, *, rank: int = 0) -> None:
    """Leave the reading of a process that was killed."""
    name = f"{READINGS_FILE}.{rank}" if rank else READINGS_FILE
    (run.folder / name).write_bytes(READING_LAYOUT.pack(resident, limit))


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Message)]


@pytest.mark.parametrize(
    ("noted", "left"),
    [
        ({}, (8, 4)),
        ({"sequences": 2}, (2, 4)),
        ({"evaluation_sequences": 1}, (8, 1)),
        ({"sequences": None, "evaluation_sequences": None}, (8, 4)),
        ({"sequences": 16, "evaluation_sequences": 4}, (8, 4)),
        ({"sequences": 1, "evaluation_sequences": 2, "step": 3}, (1, 2)),
    ],
)
def test_a_note_makes_batches_smaller_and_never_larger(noted: dict[str, Any], left: tuple[int, int]) -> None:
    assert BatchLimits(8, 4).at_most(noted) == BatchLimits(*left)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"sequences": 2}, "so this one trains with micro-batches of 2 sequences; the global batch stays the same"),
        ({"sequences": 1}, "so this one trains with micro-batches of 1 sequence"),
        ({"evaluation_sequences": 3}, "so this one evaluates with micro-batches of 3 sequences"),
    ],
)
def test_what_is_remembered_is_told_in_the_next_attempt(run: RunDirectory, sizes: dict[str, int], told: str) -> None:
    remember_out_of_memory(run, OutOfMemoryError("out of memory", **sizes))
    events: list[Event] = []
    noted = noted_sizes(run, events.append)
    assert {name: size for name, size in noted.items() if size is not None} == sizes
    (text,) = texts(events)
    assert told in text


def test_a_full_disk_does_not_hide_that_memory_ran_out(run: RunDirectory) -> None:
    (run.folder / OUT_OF_MEMORY).mkdir()  # which no file can replace
    remember_out_of_memory(run, OutOfMemoryError("out of memory", sequences=2))
    assert list((run.folder / OUT_OF_MEMORY).iterdir()) == []


def test_whether_a_run_has_something_to_keep_though_it_saved_nothing(run: RunDirectory) -> None:
    assert not has_run_out_of_memory(run)
    remember_out_of_memory(run, OutOfMemoryError("out of memory", sequences=2))
    assert has_run_out_of_memory(run)
    (run.folder / OUT_OF_MEMORY).unlink()
    assert not has_run_out_of_memory(run)
    run.update(evaluation_sequences=2)
    assert has_run_out_of_memory(run)


@pytest.mark.parametrize(
    ("readings", "ended", "said"),
    [
        ([(95, 100)], None, "95.00 of 100.00 GiB"),
        ([(90, 100)], None, "90.00 of 100.00 GiB"),
        ([(89, 100)], None, None),  # somebody else's kill
        ([], None, None),
        ([(0, 0)], None, None),  # killed before its first reading
        ([(10, 100), (97, 100), (20, 100)], None, "97.00 of 100.00 GiB"),  # of several processes, the fullest
        ([(95, 100)], {"how": "finished"}, None),
        ([(95, 100)], {"how": "failed"}, None),
        ([(95, 100)], {"how": "failed", "lost_a_process": True}, "95.00 of 100.00 GiB"),
    ],
)
def test_a_kill_is_for_want_of_memory_if_a_process_held_nearly_all(
    run: RunDirectory, readings: list[tuple[int, int]], ended: dict[str, Any] | None, said: str | None
) -> None:
    assert killed_for_want_of_memory(run) is None  # nobody has worked on it
    run.begin_attempt(from_step=0)
    for rank, (resident, limit) in enumerate(readings):
        held(run, resident * GIB, limit * GIB, rank=rank)
    if ended:
        run.end_attempt(step=2, **ended)
    assert killed_for_want_of_memory(run) == said
    assert has_run_out_of_memory(run) == (said is not None)


@pytest.mark.parametrize(
    ("device", "overrides", "now", "left", "told"),
    [
        ("cpu", (), (8, 4), (4, 2), "resumes with micro-batches of 4 sequences; the global batch stays the same"),
        ("cpu", (), (3, 1), (1, 1), "resumes with micro-batches of 1 sequence"),
        ("cpu", (), (1, 4), (1, 2), "resumes with micro-batches of 1 sequence"),  # perhaps the evaluation
        ("cpu", (), (1, 1), (1, 1), "its micro-batch was one sequence already; toolkit recipe plan shows"),
        ("cuda", (), (8, 4), (8, 4), "of host memory, where a run on a GPU keeps"),
        (
            "cpu",
            ("training.release_gradients=true", "training.max_grad_norm=0"),
            (4, 4),
            (4, 4),
            "so it cannot use smaller micro-batches",
        ),
    ],
)
def test_after_a_kill_it_goes_on_with_half_where_that_helps(
    tmp_path: Path,
    device: str,
    overrides: tuple[str, ...],
    now: tuple[int, int],
    left: tuple[int, int],
    told: str,
) -> None:
    asked = resolved(write_recipe(tmp_path), *overrides)
    asked = replace(asked, device=replace(asked.device, kind=device))
    events: list[Event] = []
    assert after_a_kill("9.00 of 10.00 GiB", BatchLimits(*now), asked, events.append) == BatchLimits(*left)
    (text,) = texts(events)
    assert "it held 9.00 of 10.00 GiB" in text
    assert told in text
