"""What a killed process, or a power cut at the same moment, may leave on the disk.

A killed process leaves everything that it has done. A power cut takes what was not yet forced to the disk, and POSIX
promises nothing of it: the content of a file that was not synced, and every name that was made, changed or removed in
a folder that was not synced. Most file systems keep more than that; what survives the worst one survives them all.

`Disk` holds the names and contents that file_operations.c saw come about; `undo` takes names back, `write` puts what
is left into a new folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.storage.run_directory import TRIAL_FOLDER

Identity = tuple[int, int]
"""An inode, and how many files and folders had its number before."""

NAMING = frozenset({"create", "mkdir", "link", "rename", "unlink", "rmdir"})


@dataclass(frozen=True)
class Operation:
    """A line of the journal; see file_operations.c."""

    number: int
    kind: str
    file: Identity
    size: int
    folder: Identity
    name: str
    old_folder: Identity
    old_name: str
    replaced: Identity | None


class Journal:
    """The file operations that were carried out, in their order."""

    def __init__(self, file: Path) -> None:
        self.times_used: dict[int, int] = {}
        self.operations = [self._read(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def _read(self, line: str) -> Operation:
        number, kind, file, size, folder, name, old_folder, old_name, replaced = line.split("\t")
        if kind in ("create", "mkdir"):
            self.times_used[int(file)] = self.times_used.get(int(file), 0) + 1
        return Operation(
            number=int(number),
            kind=kind,
            file=self.identity(int(file)),
            size=int(size),
            folder=self.identity(int(folder)),
            name=name,
            old_folder=self.identity(int(old_folder)),
            old_name=old_name,
            replaced=self.identity(int(replaced)) if int(replaced) else None,
        )

    def identity(self, inode: int) -> Identity:
        """Who has this inode now."""
        return inode, self.times_used.get(inode, 0)

    def unsynced_data(self) -> dict[Identity, int]:
        """Files that were written to after their last fsync, and how many of their bytes were safe then.

        What was synced is safe from what is appended after it, and from nothing else.
        """
        unsynced: dict[Identity, int] = {}
        synced: dict[Identity, int] = {}
        for operation in self.operations:
            match operation.kind:
                case "create" | "empty":
                    unsynced[operation.file] = 0
                case "open":
                    synced.pop(operation.file, None)
                case "write":
                    unsynced.setdefault(operation.file, synced.get(operation.file, 0))
                case "fsync":
                    unsynced.pop(operation.file, None)
                    synced[operation.file] = operation.size
        return unsynced

    def unsynced_names(self) -> list[Operation]:
        """Changes of names after the last fsync of their folder, the newest first.

        A move from one folder to another counts as one change and is safe once its new folder is: file systems
        journal it so.
        """
        unsynced: list[Operation] = []
        for operation in self.operations:
            if operation.kind in NAMING:
                unsynced.append(operation)
            elif operation.kind == "fsync":
                unsynced = [change for change in unsynced if change.folder != operation.file]
        return unsynced[::-1]

    def committed(self) -> set[int]:
        """Steps of the checkpoints whose name was given and forced to the disk, and that were not taken away since."""
        renamed: dict[int, Identity] = {}
        committed = set()
        for operation in self.operations:
            if operation.kind == "rename":
                if match := re.fullmatch(r"checkpoint-(\d+)", operation.old_name):
                    committed.discard(int(match[1]))
                    renamed.pop(int(match[1]), None)
                if match := re.fullmatch(r"checkpoint-(\d+)", operation.name):
                    renamed[int(match[1])] = operation.folder
            elif operation.kind == "fsync":
                committed |= {step for step, folder in renamed.items() if folder == operation.file}
        return committed


class Disk:
    """Names and contents, in memory; the contents are those of the files below `root` and of the kept ones."""

    def __init__(self, root: Path, kept: Path, journal: Journal) -> None:
        self.root = journal.identity(root.stat().st_ino)
        self.names: dict[Identity, dict[str, Identity]] = {self.root: {}}
        self.contents: dict[Identity, Path] = {}
        for operation in journal.operations:
            file = kept / str(operation.number)
            if file.exists():
                self.contents[operation.replaced or operation.file] = file
        for path in sorted(root.rglob("*")):
            identity = journal.identity(path.stat().st_ino)
            self.names[journal.identity(path.parent.stat().st_ino)][path.name] = identity
            if path.is_dir():
                self.names[identity] = {}
            else:
                self.contents[identity] = path

    def undo(self, changes: Iterable[Operation]) -> None:
        """Take changes of names back, in the order given."""
        for change in changes:
            names = self.names.setdefault(change.folder, {})
            if change.kind in ("unlink", "rmdir"):
                names[change.name] = change.file
                if change.kind == "rmdir":
                    self.names.setdefault(change.file, {})
            elif names.get(change.name) == change.file:
                del names[change.name]
                if change.kind == "rename":
                    self.names.setdefault(change.old_folder, {}).setdefault(change.old_name, change.file)
                    if change.replaced:
                        names[change.name] = change.replaced

    def write(self, folder: Path, *, cut: Mapping[Identity, int]) -> None:
        """Make a folder with these names and contents, with no more than so many bytes of those in `cut`."""
        folder.mkdir()
        for relative, identity in self._walk(self.root, Path()):
            place = folder / relative
            if identity in self.names:
                place.mkdir()
            else:
                shutil.copy(self.contents[identity], place)
                if identity in cut:
                    os.truncate(place, min(cut[identity], place.stat().st_size))

    def fingerprint(self, *, cut: Mapping[Identity, int]) -> str:
        """The same for two states of two runs that differ in nothing that a resume could notice."""
        digest = hashlib.sha256()
        entries = []
        for relative, identity in self._walk(self.root, Path()):
            content = b"a folder"
            if relative.name == "run.log":
                content = b"lines that nothing reads"
            elif TRIAL_FOLDER in relative.parts:
                content = b"what the next start removes unread"
            elif identity not in self.names:
                content = self.contents[identity].read_bytes()[: cut.get(identity)]
            name = RANDOM_NAME.sub("*", str(relative))
            entries.append(f"{name} {hashlib.sha256(_without_chance(content)).hexdigest()}")
        digest.update("\n".join(sorted(entries)).encode())
        return digest.hexdigest()

    def _walk(self, folder: Identity, path: Path) -> Iterable[tuple[Path, Identity]]:
        for name, identity in sorted(self.names[folder].items()):
            yield path / name, identity
            if identity in self.names:
                yield from self._walk(identity, path / name)


RANDOM_NAME = re.compile(
    r"(?<=\.)[0-9]+(?=$)"  # a process's number
    r"|(?<=/tmp)\w{8}(?=$)|(?<=\.tmp)\w{6}(?=$)|(?<=/\.model\.)\w{8}|(?<=/\.[0-9a-f]{32}\.)\w{8}|[0-9a-f]{32}(?=\.unf)"
)
CHANCE = re.compile(
    rb"[0-9a-f]{32}(?![0-9a-f])"  # a run's id
    rb"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
    rb'|"(seconds|seconds_trained|tokens_per_second|mfu|process)": [-+.e\d]+'
    rb'|"toolkit_state.json": \{[^}]*\}'  # its size and checksum, since it holds a time
)


def _without_chance(content: bytes) -> bytes:
    """Leave out what differs between any two runs: ids, times, numbers of processes, speeds."""
    return CHANCE.sub(b"*", content)
