"""A preparation that is killed at any moment loses the shards in work, and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.command_server import Command, CommandServer, wait_for_orphans
from tests.tiny import WORDS, write_recipe

KILLS = int(os.environ.get("TOOLKIT_TEST_KILLS", "10"))
WORKERS = 4
MEGABYTES = 36


class Preparation:
    """A recipe with enough text for nine shards, and what is in the cache once it was prepared undisturbed."""

    def __init__(self, server: CommandServer, folder: Path) -> None:
        self.server, self.folder, draw = server, folder, random.Random(0)
        words = [*WORDS, *("".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000))]
        with (folder / "texts.txt").open("w", encoding="utf-8") as out:
            while out.tell() < MEGABYTES * 10**6:
                out.write(" ".join(draw.choices(words, k=150)) + "\n")
        self.recipe = write_recipe(folder, dataset={"eval_fraction": None})
        (folder / "alone").mkdir()
        begun = time.monotonic()
        outcome = self.start("alone").wait()
        self.seconds = time.monotonic() - begun
        assert outcome.status == 0, outcome.err
        self.made = self.entry("alone")

    def start(self, place: str, number: int = 0) -> Command:
        words = ("recipe", "prepare", str(self.recipe), "--workers", str(WORKERS), "--json")
        return self.server.start(words, folder=self.folder / place, output=self.folder / f"output-{number}")

    def tokens(self, place: str) -> Path:
        (found,) = (self.folder / place).rglob("tokens")
        return found

    def has_entry(self, place: str) -> bool:
        return any(not file.name.startswith(".") for file in (self.folder / place).rglob("tokens/*"))

    def entry(self, place: str) -> dict[str, bytes]:
        # Nothing unfinished is beside it; what a killed process was joining is removed by the next start.
        (made,) = (file for file in self.tokens(place).iterdir() if not file.name.startswith(".staging-"))
        return {file.name: file.read_bytes() for file in sorted(made.iterdir())}

    def shards(self, place: str) -> dict[str, int]:
        """The shards that are durable, each with its inode: one that is made again has another."""
        return {file.name: file.stat().st_ino for file in (self.folder / place).rglob("*.npz")}

    def at_work(self, place: str, commands: list[Command]) -> Command:
        """The command that prepares, once it has finished a shard."""
        while not any(command.has_ended for command in commands):
            with contextlib.suppress(FileNotFoundError, ValueError):  # what is looked at is being written
                (lock,) = (self.folder / place).rglob("tokens-*")
                holder = json.loads(lock.read_text())["process"]
                if self.shards(place):
                    return next(command for command in commands if command.process == holder)
            time.sleep(0.02)
        raise AssertionError([command.wait() for command in commands])


@pytest.fixture(scope="module")
def preparation(server: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    return Preparation(server, tmp_path_factory.mktemp("prepared"))


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_left_alone(preparation: Preparation) -> None:
    shutil.copytree(preparation.folder / "alone", preparation.folder / "killed")
    shutil.rmtree(preparation.tokens("killed"))  # what was learned and read stays
    draw, kills = random.Random(1), 0
    while kills < KILLS:
        done: dict[str, int] = {}
        while True:
            command = preparation.start("killed")
            time.sleep(draw.uniform(0, preparation.seconds / 3))
            command.kill(signal.SIGKILL)
            outcome = command.wait()
            if outcome.status == 0:
                break
            assert outcome.status == -signal.SIGKILL
            kills += 1
            wait_for_orphans(preparation.folder / "killed")
            now = preparation.shards("killed")
            finished = preparation.has_entry("killed")  # killed as it removed the shards, of which the entry is made
            assert finished or done.items() <= now.items(), "a finished shard is lost, or was made again"
            done = now
            if kills == KILLS:
                assert preparation.start("killed").wait().status == 0
                break
        assert preparation.entry("killed") == preparation.made
        shutil.rmtree(preparation.tokens("killed"))


@pytest.mark.slow
def test_several_commands_share_one_preparation(preparation: Preparation) -> None:
    """One works, and the others say that they wait for it; when it is killed, the next goes on at once."""
    (preparation.folder / "shared").mkdir()
    commands = [preparation.start("shared", number) for number in range(3)]
    working = preparation.at_work("shared", commands)
    working.kill(signal.SIGKILL)
    outcomes = [command.wait() for command in commands if command is not working]
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert all("which is preparing the same data." in outcome.err for outcome in outcomes)
    assert preparation.entry("shared") == preparation.made
