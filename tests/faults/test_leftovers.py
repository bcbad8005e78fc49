"""What earlier attempts have left in a run's folder: swept away at the next start, or taken for what it is.

Each case was found by test_every_file_operation.py, which takes minutes; here it stands by itself.
"""

import errno
import json
import os
from pathlib import Path

import pytest

from tests.tiny import train, write_recipe
from toolkit.errors import InterruptedRun, UnavailableError
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.disk import disk_faults_named

pytestmark = pytest.mark.usefixtures("cache")


def staged(folder: Path, content: bytes) -> Path:
    """A staging folder with one file."""
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(content)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_nothing_is_left_of_a_killed_attempt(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"max_steps": 2})
    with pytest.raises(InterruptedRun):
        train(recipe, stop_after=1)
    run = tmp_path / "runs" / "tiny"
    for file in (".run.json.123", ".metrics.jsonl.123", "checkpoints/.probe-abc", ".model.staging/model.safetensors"):
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_bytes(b"half")
    train(recipe)
    assert [name for name in sorted(names(run)) if "/." in f"/{name}"] == []


def test_a_checkpoint_whose_commit_failed_at_its_very_end_is_not_moved_aside(tmp_path: Path) -> None:
    final = tmp_path / "checkpoint-3"
    size = checkpoint.commit(staged(tmp_path / ".staging" / "checkpoint-3", b"state"), final, run_id="a", step=3)
    inode = final.stat().st_ino
    again = checkpoint.commit(staged(tmp_path / ".staging" / "checkpoint-3", b"state"), final, run_id="a", step=3)
    assert (again, final.stat().st_ino) == (size, inode)
    assert names(tmp_path) == {".staging", "checkpoint-3", "checkpoint-3/weights", "checkpoint-3/manifest.json"}


def test_a_damaged_checkpoint_of_the_same_step_makes_way(tmp_path: Path) -> None:
    final = tmp_path / "checkpoint-3"
    checkpoint.commit(staged(tmp_path / ".staging" / "checkpoint-3", b"state"), final, run_id="a", step=3)
    (final / "weights").write_bytes(b"stale")
    checkpoint.commit(staged(tmp_path / ".staging" / "checkpoint-3", b"state"), final, run_id="a", step=3)
    assert checkpoint.fault(final, run_id="a") is None
    assert (tmp_path / ".damaged-checkpoint-3" / "weights").read_bytes() == b"stale"


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(UnavailableError, match="cannot lock"), RunDirectory(tmp_path).locked():
        raise AssertionError("it was locked")


@pytest.mark.parametrize(
    "words",
    [
        "basic_ios::clear: iostream error",
        "[enforce fail at inline_container.cc:747] . open file failed with strerror: Input/output error",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_the_words_of_torch_and_safetensors_for_a_bad_disk_are_known(tmp_path: Path, words: str) -> None:
    with pytest.raises(UnavailableError, match="run the same command again"), disk_faults_named(tmp_path, "it"):
        raise RuntimeError(words)


def test_a_disk_that_refuses_the_record_of_a_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recipe = write_recipe(tmp_path, training={"max_steps": 1})
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "begin_attempt", full)
        with pytest.raises(UnavailableError, match="No space left on device"):
            train(recipe)
    assert json.loads((train(recipe)[0].folder / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
