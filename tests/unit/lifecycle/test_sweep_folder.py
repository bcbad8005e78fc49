"""Which sweep a folder holds, and what happens to another of the same name. Nothing trains here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import RunMismatchError, UnavailableError
from toolkit.events import Event, Message
from toolkit.lifecycle import sweep_folder
from toolkit.system.file_lock import lock_if_free

RATES = {"varied": ["rate: 0.1, 0.2"], "recipe": {"seed": 1, "width": 8}}
WIDTHS = {"varied": ["width: 8, 16"], "recipe": {"seed": 1, "rate": 0.1, "held_out": 0.05}}


def begin(folder: Path, identity: dict[str, Any]) -> list[str]:
    told: list[Event] = []
    sweep_folder.begin(folder, identity, told.append)
    return [event.text for event in told if isinstance(event, Message)]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A sweep with a trial that has been prepared."""
    folder = tmp_path / "sweep"
    assert begin(folder, RATES) == []
    (folder / "trial-000").mkdir()
    (folder / "trial-000/data.json").write_text('{"validation": {"documents": 1}}')
    (folder / "study.journal").write_text("")
    return folder


def test_the_same_sweep_goes_on(begun: Path) -> None:
    assert begin(begun, RATES) == []
    assert (begun / "study.journal").exists()


def test_a_sweep_that_has_trained_nothing_begins_anew_with_other_settings(begun: Path) -> None:
    (told,) = begin(begun, WIDTHS)
    assert "begun anew" in told
    assert sorted(path.name for path in begun.iterdir()) == ["lock", "sweep.json"]
    sweep_folder.require_same(begun, WIDTHS)


def test_what_has_trained_without_held_out_documents_is_worth_nothing(begun: Path) -> None:
    (begun / "trial-000/metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 2}\n')
    (begun / "trial-000/data.json").write_text('{"validation": null}')
    assert begin(begun, WIDTHS)
    assert not (begun / "trial-000").exists()


def test_a_sweep_that_has_trained_is_not_another(begun: Path) -> None:
    (begun / "trial-000/metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 2}\n')
    with pytest.raises(RunMismatchError) as refused:
        begin(begun, WIDTHS)
    assert refused.value.differences == (
        "varied: rate: 0.1, 0.2; and now width: 8, 16",
        "held_out: not set, and now 0.05",  # and no word of rate and width, which are varied
    )
    assert (begun / "trial-000/data.json").exists()


def test_a_sweep_whose_trial_is_with_a_worker_does_not_begin_anew(begun: Path) -> None:
    lock = lock_if_free(begun / ".locks/trial-000", otherwise="")
    assert lock
    with lock, pytest.raises(RunMismatchError):
        begin(begun, WIDTHS)
    assert begin(begun, WIDTHS)


def test_a_worker_killed_as_it_begins_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".sweep.json.4321").write_text("{")
    (tmp_path / "lock").touch()
    begin(tmp_path, RATES)
    sweep_folder.require_same(tmp_path, RATES)


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "is damaged"), ('{"format": 1}', "is damaged"), (json.dumps({"format": 99}), "later version")],
)
def test_a_record_that_cannot_be_read(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UnavailableError, match=told):
        begin(tmp_path, RATES)
    assert (tmp_path / "sweep.json").read_text() == text
