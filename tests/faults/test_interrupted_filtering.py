"""A pass of filters that is killed at any moment loses the part in work, and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.command_server import Command, CommandServer, wait_for_orphans
from tests.tiny import WORDS, write_recipe
from toolkit.data.filter_parts import CHARACTERS_PER_PART
from toolkit.data.filter_stages import BYTES_WORTH_PROCESSES

KILLS = int(os.environ.get("TOOLKIT_TEST_KILLS", "6"))
FILTERS = [
    {"plugin": "length", "min_words": 20},
    {"plugin": "regex", "pattern": "cat", "replace": "dog"},
    "near-duplicates",
    {"plugin": "regex", "pattern": "dog sat", "replace": "cat sat"},
]


class Cleaning:
    """A recipe with filters in three stages, and what is in the cache once they have passed undisturbed."""

    def __init__(self, server: CommandServer, folder: Path) -> None:
        self.server, self.folder, draw = server, folder, random.Random(0)
        words = [*WORDS, *("".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000))]
        lines = [" ".join(draw.choices(words, k=draw.randint(10, 300))) + "\n" for _ in range(5000)]
        with (folder / "texts.txt").open("w", encoding="utf-8") as out:
            while out.tell() < max(BYTES_WORTH_PROCESSES, 4 * CHARACTERS_PER_PART):  # with several processes
                out.write(f"{out.tell()} {draw.choice(lines)}")
        self.recipe = write_recipe(folder, dataset={"max_samples": 200, "filters": FILTERS})
        begun = time.monotonic()
        outcome = self.start("alone").wait()
        self.seconds = time.monotonic() - begun
        assert outcome.status == 0, outcome.err
        self.made = self.entry("alone")

    def start(self, place: str) -> Command:
        (self.folder / place).mkdir(exist_ok=True)
        return self.server.start(
            ("recipe", "prepare", str(self.recipe), "--json"), folder=self.folder / place, output=self.folder / "output"
        )

    def entry(self, place: str) -> dict[str, bytes]:
        (filtered,) = (self.folder / place).rglob("filtered")
        (made,) = (file for file in filtered.iterdir() if not file.name.startswith(".staging-"))
        return {file.name: file.read_bytes() for file in sorted(made.iterdir())}

    def finished(self, place: str) -> dict[str, int]:
        """What is durable, each with its inode: what is made again has another."""
        files = (self.folder / place).rglob("filtered/.unfinished-*/[0-9]*")
        return {file.name: file.stat().st_ino for file in files}

    def wait_for_a_part(self, place: str, command: Command) -> None:
        """Wait until a part is finished, or the command has ended."""
        while not command.has_ended:
            with contextlib.suppress(FileNotFoundError):  # a file has gone while it was looked at
                if self.finished(place):
                    return
            time.sleep(0.01)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_left_alone(server: CommandServer, tmp_path: Path) -> None:
    cleaning = Cleaning(server, tmp_path)
    assert {name.rpartition(".")[2] for name in cleaning.made} == {"arrow", "npy", "json"}
    draw, kills, most = random.Random(1), 0, 0
    while kills < KILLS:
        done: dict[str, int] = {}
        while True:
            command = cleaning.start("killed")
            if kills and not most:  # on a machine that has become slow, no moment may come after a finished part
                cleaning.wait_for_a_part("killed", command)
            else:
                time.sleep(draw.uniform(0, cleaning.seconds / 2))
            command.kill(signal.SIGKILL)
            outcome = command.wait()
            if outcome.status == 0:
                break
            assert outcome.status == -signal.SIGKILL
            kills += 1
            wait_for_orphans(cleaning.folder / "killed")
            now = cleaning.finished("killed")
            compared = {name.partition("-")[0] for name in now if name.endswith("-earlier.npy")}
            for name, inode in done.items() if now else ():
                assert now.get(name, inode) == inode, "a finished part was made again"
                assert name in now or name.partition("-")[0] in compared, "a finished part is lost"
            done, most = now, max(most, len(now))
            if kills == KILLS:
                assert cleaning.start("killed").wait().status == 0
                break
        assert cleaning.entry("killed") == cleaning.made
        assert not cleaning.finished("killed")
        shutil.rmtree(tmp_path / "killed")
    assert most, "no kill came between two parts"
