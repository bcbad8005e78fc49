"""Each file of the newest checkpoint, damaged in each way: found, told with a reason, and the older one taken."""

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import toolkit
from tests.faults.command_server import CommandServer
from tests.faults.trials import SECTIONS, End
from tests.tiny import train, write_recipe
from toolkit.errors import InterruptedRun
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import RunDirectory

BLOCK = 4096


def flip(file: Path, at: int) -> None:
    """Turn one bit over."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def blank(file: Path) -> None:
    """Let a block be zeros, as a disk gives back what it has lost; the first that is not so already."""
    content = file.read_bytes()
    start = next(at for at in range(0, len(content), BLOCK) if any(content[at : at + BLOCK]))
    length = len(content[start : start + BLOCK])
    file.write_bytes(content[:start] + bytes(length) + content[start + length :])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "halved": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "removed": lambda file: file.unlink(),
    "first bit": lambda file: flip(file, 0),
    "a bit in the middle": lambda file: flip(file, file.stat().st_size // 2),
    "a block of zeros": blank,
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of three steps that was stopped after two, and its cache."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        with pytest.raises(InterruptedRun):
            train(write_recipe(folder, **SECTIONS), stop_after=2)
    return folder


@pytest.fixture
def checkpoints(stopped: Path, tmp_path: Path) -> Path:
    """The run's checkpoints, to be damaged."""
    return Path(shutil.copytree(stopped / "runs", tmp_path / "runs")) / "tiny" / "checkpoints"


def each_damage(checkpoints: Path) -> Iterator[tuple[str, str]]:
    """Damage each file of the newest checkpoint in each way, one after the other."""
    newest = checkpoints / "checkpoint-2"
    files = sorted(str(file.relative_to(newest)) for file in newest.rglob("*") if file.is_file())
    assert {
        "manifest.json",
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "toolkit_state.json",
    } <= set(files)
    for name, (damage, do) in itertools.product(files, DAMAGES.items()):
        whole = (newest / name).read_bytes()
        do(newest / name)
        yield name, damage
        (newest / name).write_bytes(whole)


def test_every_damage_is_found_and_told(checkpoints: Path) -> None:
    run_id = RunDirectory(checkpoints.parent).id
    for name, damage in each_damage(checkpoints):
        found, skipped = checkpoint.newest_intact(checkpoints, run_id=run_id)
        assert found == checkpoint.Checkpoint(checkpoints / "checkpoint-1", 1), (name, damage)
        assert [bad.folder.name for bad in skipped] == ["checkpoint-2"]
        # A manifest whose bit has turned may accuse any file, or another run.
        assert name in skipped[0].reason or name == "manifest.json", damage
        assert skipped[0].reason
    assert checkpoint.newest_intact(checkpoints, run_id=run_id)[0] == checkpoint.Checkpoint(
        checkpoints / "checkpoint-2", 2
    )


@pytest.mark.slow
def test_from_every_damage_the_end_is_the_same(
    server: CommandServer, stopped: Path, checkpoints: Path, tmp_path: Path
) -> None:
    def finished(folder: Path, *more: str) -> tuple[End, str]:
        words = ("recipe", "run", str(stopped / "tiny.yaml"), "--json", *more)
        outcome = server.start(words, folder=folder, output=tmp_path / "output").wait()
        assert outcome.status == 0, outcome.err
        return End.of(folder / outcome.folder), outcome.err

    whole_folder = tmp_path / "whole"
    whole_folder.mkdir()
    whole, _ = finished(whole_folder, "--set", "training.save_total_limit=3")
    for name, damage in each_damage(checkpoints):
        resumed = tmp_path / "resumed"
        shutil.copytree(checkpoints.parents[2] / "runs", resumed / "runs")
        shutil.copytree(stopped / "cache", resumed / "cache")
        end, told = finished(resumed)
        assert "skipped checkpoint-2: " in told, (name, damage)
        faults = whole.faults_of(end, steps=[2, 3])
        # The damaged one stays to be seen until it is older than all that are kept.
        assert [fault for fault in faults if "left over: checkpoints/.damaged-checkpoint-2" not in fault] == []
        shutil.rmtree(resumed)


@pytest.mark.slow
def test_one_that_cannot_be_read_is_passed_over(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector: root may read what it likes, so the reading is made to fail."""
    steps = sorted(step for step, _ in checkpoint.numbered(checkpoints))
    digest = checkpoint._sha256

    def bad_sector(file: Path) -> str:
        if file.parent.name == f"checkpoint-{steps[-1]}" and file.name == "optimizer.pt":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file)

    monkeypatch.setattr(checkpoint, "_sha256", bad_sector)
    run = RunDirectory(checkpoints.parent)
    found, skipped = checkpoint.newest_intact(checkpoints, run_id=run.id)
    assert found is not None
    assert found.step == steps[-2]
    assert [one.reason for one in skipped] == ["optimizer.pt cannot be read: Input/output error"]


@pytest.mark.slow
def test_with_every_checkpoint_damaged_it_begins_again_and_says_so(
    server: CommandServer, stopped: Path, checkpoints: Path, tmp_path: Path
) -> None:
    for folder in checkpoints.iterdir():
        flip(folder / "optimizer.pt", 100)
    words = ("recipe", "run", str(stopped / "tiny.yaml"), "--json")
    outcome = server.start(words, folder=checkpoints.parents[2], output=tmp_path / "output").wait()
    assert outcome.status == 0, outcome.err
    assert "no checkpoint is intact, so the run starts again at step 0" in outcome.err
    assert End.of(checkpoints.parent).steps == [2, 3]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": None}, "format: Input should be a valid integer"),
        ({"format": 99}, "reads formats up to"),
        ({"identity": [1]}, "identity: Input should be a valid dictionary"),
        ({"status": "done"}, "status: Input should be"),
        ({"attempts": [{"started": 5}]}, "attempts[0].started: Input should be a valid string"),
        ({"id": ...}, "id: Field required"),
    ],
)
def test_a_damaged_run_json_is_named_and_nothing_is_overwritten(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], says: str
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "runs" / "tiny" / "run.json"
    record = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}
    for command in (["recipe", "run", "tiny.yaml"], ["run", "show", "tiny"], ["run", "verify", "tiny"]):
        answer = toolkit(*command, status=3)
        assert str(Path("runs", "tiny", "run.json")) in answer.err
        assert says in answer.err
    assert {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()} == before
    toolkit("recipe", "run", "tiny.yaml", "--fresh")


def test_a_damaged_environment_json_costs_only_the_comparison(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    Path("runs", "tiny", "environment.json").write_text('{"packages": 5}')
    assert "environment.json cannot be read" in toolkit("recipe", "run", "tiny.yaml").out
