"""What a saver does with a checkpoint's content, of whatever that consists."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.tiny import resolved, write_recipe
from toolkit.errors import UnavailableError
from toolkit.events import CheckpointSaved, Event, Message
from toolkit.lifecycle.environment import environment
from toolkit.storage import async_saver, checkpoint, run_directory
from toolkit.storage.async_saver import AsyncSaver, Content
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.run_directory import RunDirectory

STATE = {"seconds_trained": 1.0, "total_loss": "0x0.0p+0", "last_logged_step": 1, "of_processes": []}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    recipe = resolved(write_recipe(tmp_path))
    return run_directory.create(tmp_path / "run", recipe, environment(recipe), series="run")


def saver(run: RunDirectory, events: list[Event], **options: bool | int | None) -> AsyncSaver:
    chosen = {"keep": 2, "keep_every": None, "in_background": True, **options}
    return AsyncSaver(run, log=MetricsLog(run, events.append), **chosen)


def content(copied: bool) -> Content:
    return Content(
        now=[lambda folder: (folder / "small").write_text("small")],
        later=[lambda folder: (folder / "large").write_text(f"{copied}, by {threading.current_thread().name}")],
        state=STATE,
        expected_bytes=10,
    )


def test_a_thread_writes_a_copy_and_the_last_one_is_waited_for(run: RunDirectory) -> None:
    events: list[Event] = []
    made = saver(run, events)
    made.save(1, content, last=False)
    assert made.last_step is None
    made.take_result()
    assert made.last_step == 1
    made.save(2, content, last=True)
    assert [(event.step, event.folder.name) for event in events if isinstance(event, CheckpointSaved)] == [
        (1, "checkpoint-1"),
        (2, "checkpoint-2"),
    ]
    written = [(run.checkpoints / f"checkpoint-{step}" / "large").read_text() for step in (1, 2)]
    assert written == ["True, by checkpoint-writer", "False, by MainThread"]
    assert [checkpoint.fault(run.checkpoints / f"checkpoint-{step}", run_id=run.id) for step in (1, 2)] == [None, None]
    assert [(line["step"], line["kind"]) for line in run.metrics()] == [(1, "save"), (2, "save")]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_told_and_another_save_is_due_in_a_minute(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    events: list[Event] = []
    made = saver(run, events, in_background=in_background, resumed_from=3)
    with monkeypatch.context() as full:
        full.setattr(async_saver, "free_bytes", lambda folder: 0)
        made.save(4, content, last=False)
        (told,) = [event.text for event in events if isinstance(event, Message)]
        assert told.endswith("training continues (step 3 is saved); the next save is tried in a minute")
        assert made.failure is not None
        assert 0 < made.retry_at - time.monotonic() <= async_saver.SAVE_RETRY_SECONDS
        with pytest.raises(UnavailableError, match="a checkpoint needs"):
            made.save(5, content, last=True)
    made.save(5, content, last=True)
    assert (made.failure, made.last_step) == (None, 5)
    assert {path.name for path in run.checkpoints.iterdir()} == {"checkpoint-5"}


@pytest.mark.parametrize("in_background", [False, True])
def test_what_must_not_be_saved_leaves_nothing(run: RunDirectory, in_background: bool) -> None:
    def refuse(folder: Path) -> None:
        raise ValueError("contains non-finite values")

    def spoiled(copied: bool) -> Content:
        return Content(now=[], later=[refuse], state=STATE, expected_bytes=10)

    made = saver(run, [], in_background=in_background)
    with pytest.raises(ValueError, match="non-finite"):  # noqa: PT012 - it comes with the save, or with its result
        made.save(1, spoiled, last=False)
        made.take_result()
    assert not list(run.checkpoints.iterdir())
