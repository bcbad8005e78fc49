"""Folders on file systems that lack something, with real ones where this machine lets a test have them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from toolkit.doctor import folders
from toolkit.doctor.examination import Finding


def look(path: Path, *, lasting: bool = True, mounts: Path = Path("/proc/self/mountinfo")) -> list[Finding]:
    return list(folders.folder(path, variable="--runs", holds="runs", lasting=lasting, mounts=mounts))


def mounted(folder: Path, kind: str) -> Path:
    """A list of mounts that says that this folder is on a file system of this kind."""
    file = folder / "mountinfo"
    file.write_text(f"22 1 8:1 / / rw - ext4 /dev/a rw\n36 35 98:0 / {folder} rw,noatime - {kind} server:/export rw\n")
    return file


def test_a_good_folder_is_left_as_it_was(tmp_path: Path) -> None:
    runs = tmp_path / "a" / "runs"  # which the first run would make
    (found,) = look(runs, mounts=mounted(tmp_path, "ext4"))
    assert found.level == "ok"
    assert f"{tmp_path} (ext4) has" in found.found
    assert [path.name for path in tmp_path.iterdir()] == ["mountinfo"]


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    for place in (tmp_path / "runs", Path("/proc/self/runs")):
        (found,) = look(place)
        assert found.level == "problem"
        assert "nothing can be written to" in found.found
        assert "set --runs to another folder" in found.cure


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    assert [(finding.level, finding.found) for finding in look(tmp_path, lasting=False)][-1] == (
        "problem",
        f"{tmp_path} does not take a file: No space left on device",
    )
    monkeypatch.setattr("toolkit.doctor.folders.free_bytes", lambda folder: 10**8)
    assert look(tmp_path, lasting=False)[0].level == "note"


@pytest.mark.parametrize(("function", "lost"), [("os.fsync", "a power cut"), ("fcntl.flock", "two commands")])
def test_a_file_system_without_fsync_or_locks(
    function: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(function, refused)
    notes = [finding for finding in look(tmp_path, lasting=False) if finding.level == "note"]
    assert notes
    assert all(lost in finding.found and finding.cure for finding in notes)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nfs4", "nfs4 is a network"),
        ("fuse.gcsfuse", "fuse.gcsfuse is a network"),
        ("tmpfs", "is in memory: runs are lost at the next start"),
        ("overlay", "is in the container itself"),
    ],
)
def test_the_kind_of_a_file_system_is_told(kind: str, words: str, tmp_path: Path) -> None:
    mounts = mounted(tmp_path, kind)
    (note,) = (finding for finding in look(tmp_path, mounts=mounts) if finding.level == "note")
    assert words in note.found
    assert note.cure
    if kind in ("tmpfs", "overlay"):  # a cache may be lost
        assert [finding.level for finding in look(tmp_path, lasting=False, mounts=mounts)] == ["ok"]
