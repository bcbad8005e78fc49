"""The cache: entries are whole, what killed processes left goes, and what cannot be written is told."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import OptionError, UnavailableError
from toolkit.system.cache import (
    cache_folder,
    entry_made,
    refusals_explained,
    remove_abandoned,
    text_kept,
    unfinished_work,
)

MAKER = """
import sys, pathlib
from toolkit.system.cache import entry_made
with entry_made(pathlib.Path(sys.argv[1])) as staging:
    staging.write_bytes(bytes(1000))
    print("writing", flush=True)
    sys.stdin.read()
"""


def maker(entry: Path) -> subprocess.Popen[str]:
    """A process that is about to make the entry."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, entry], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    return process


def files(folder: Path) -> list[Path]:
    return [place for place in folder.rglob("*") if place.is_file() and place.name != "lock"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with maker(cache / "tokens" / "one") as killed, maker(cache / "tokens" / "other") as living:
        killed.kill()
        killed.wait()
        assert len(files(cache)) == 2
        remove_abandoned(cache)
        assert len(files(cache)) == 1
        living.communicate("")
        assert living.returncode == 0
    assert files(cache) == [cache / "tokens" / "other"]
    assert list(cache.rglob(".staging-*")) == []


def test_a_staging_folder_without_its_lock_is_abandoned(tmp_path: Path) -> None:
    (tmp_path / "tokens" / ".staging-x" / "entry").mkdir(parents=True)
    remove_abandoned(tmp_path)
    assert not (tmp_path / "tokens" / ".staging-x").exists()
    remove_abandoned(tmp_path / "nowhere")


def test_unfinished_work_is_kept_for_who_goes_on_with_it_and_not_forever(tmp_path: Path) -> None:
    entries = [tmp_path / "tokens" / name for name in ("usable", "old", "made")]
    for entry in entries:
        with contextlib.suppress(RuntimeError), unfinished_work(entry) as folder:
            (folder / "part").write_text("done")
            raise RuntimeError
    usable, old, made = (entry.with_name(f".unfinished-{entry.name}") for entry in entries)
    os.utime(old, (0, 0))
    entries[2].mkdir()
    remove_abandoned(tmp_path)
    assert [folder.exists() for folder in (usable, old, made)] == [True, False, False]
    with pytest.raises(UnavailableError, match="no room; 1 finished part of the work"), unfinished_work(entries[0]):
        raise UnavailableError("no room")
    with contextlib.suppress(OptionError), unfinished_work(entries[0]):
        raise OptionError("another block size")
    assert not usable.exists()


def test_an_entry_is_whole_or_not_there(tmp_path: Path) -> None:
    entry = tmp_path / "tokens" / "entry"
    with contextlib.suppress(RuntimeError), entry_made(entry) as staging:
        staging.mkdir()
        raise RuntimeError
    assert not entry.exists()
    with entry_made(entry) as staging, entry_made(entry) as faster:
        for folder, content in ((staging, "slow"), (faster, "fast")):
            folder.mkdir()
            (folder / "content").write_text(content)
    assert (entry / "content").read_text() == "fast"
    assert files(tmp_path) == [entry / "content"]


def test_a_text_is_made_once_and_again_when_its_file_is_damaged(tmp_path: Path) -> None:
    file, made = tmp_path / "tokenizers" / "text", []

    def make() -> str:
        made.append(True)
        return "naïve\r\n text\n"

    assert text_kept(file, make) == text_kept(file, make) == make()
    assert len(made) == 2
    for damage in (file.read_bytes()[:-1], file.read_bytes().replace(b"text", b"test"), b"", b"\xff"):
        file.write_bytes(damage)
        assert text_kept(file, make) == "naïve\r\n text\n"
    assert len(made) == 6


@pytest.mark.parametrize("below", [(), ("deeper", "still")])
def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path, below: tuple[str, ...]) -> None:
    (tmp_path / "cache").write_text("a file")
    with (
        pytest.raises(UnavailableError, match=r"cannot write to the cache .*: .*set TOOLKIT_CACHE"),
        entry_made(tmp_path.joinpath("cache", *below, "tokens", "entry")),
    ):
        pytest.fail("there is nowhere to write")


def test_a_full_disk_names_the_variable_and_what_is_not_the_caches_passes(tmp_path: Path) -> None:
    with (
        pytest.raises(UnavailableError, match="No space left on device; free some space, or set TOOLKIT_CACHE"),
        entry_made(tmp_path / "entry"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (FileNotFoundError(errno.ENOENT, "", "/elsewhere/file"), ConnectionResetError(), OSError("odd")):
        with pytest.raises(type(error)), refusals_explained(tmp_path):
            raise error


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TOOLKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(UnavailableError, match="set TOOLKIT_CACHE"):
        cache_folder()
