"""File systems that cannot do everything: the work goes on without, and what is not guaranteed there is said once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import losses, write_recipe
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import files
from toolkit.system.files import copy_folder, move_folder, read_json, where_supported

SAID = (
    "may be unable to read them",
    "a power cut may lose the newest checkpoint",
    "see to it that no second command works on this run",
)


@pytest.mark.slow
def test_a_run_saves_rotates_and_exports_where_modes_locks_and_renamed_folders_are_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"max_steps": 4, "save_steps": 1, "eval_steps": 4})
    cache = tmp_path.with_name(f"{tmp_path.name}-cache")  # on a disk of this machine, as it is
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.refusing_file_system", "recipe", "run", str(recipe)],
        cwd=tmp_path,
        env={**os.environ, "TOOLKIT_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDirectory(tmp_path / "runs" / "tiny")
    steps = sorted(step for step, _ in checkpoint.numbered(run.checkpoints))
    assert steps == [3, 4]
    assert [checkpoint.fault(run.checkpoints / f"checkpoint-{step}", run_id=run.id) for step in steps] == [None, None]
    assert {path.name for path in run.checkpoints.iterdir()} == {"checkpoint-3", "checkpoint-4"}
    assert checkpoint.difference(run.model, run.record["exports"]["model"]) is None
    assert [step for step, *_ in losses(run.folder)] == [1, 2, 3, 4, 4]
    assert [done.stdout.count(words) for words in SAID] == [1, 1, 1]


def test_a_folder_that_cannot_be_renamed_is_moved_with_the_file_that_makes_it_whole_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    for name in ("manifest.json", "weights", "inner/part"):
        (source / name).write_text(f'{{"name": "{name}"}}')
    copy_folder(source, tmp_path / "copy")
    order, replace = [], Path.replace

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def note(self: Path, target: Path) -> Path:
        order.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "replace", note)
    move_folder(source, target, last="manifest.json")
    assert not source.exists()
    assert order[-1] == "manifest.json"
    for folder in (target, tmp_path / "copy"):
        assert read_json(folder / "inner" / "part") == {"name": "inner/part"}


def test_a_disk_that_is_full_is_no_file_system_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_told", set())
    with pytest.raises(OSError, match="No space left"), where_supported("nothing"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
