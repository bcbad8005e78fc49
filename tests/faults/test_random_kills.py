"""Real signals at moments that nobody chose, over every kind of recipe: the same command, until it is finished.

Two hundred of them in the slow suite, half SIGKILL and half SIGTERM. However often a run is stopped, its weights,
losses and states are those of one that never was.
"""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.command_server import CommandServer, Outcome
from tests.faults.trials import End
from tests.tiny import write_recipe, write_tiny_bert

SMALL = {"plugin": "gpt2", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "dropout": 0.1}
RECIPES: dict[str, dict[str, Any]] = {
    "full": {"model": {**SMALL, "dropout": 0.0}},
    "dropout": {},
    "accumulation": {"memory": [{"plugin": "small-batch", "micro_batch_size": 1}]},
    "lora": {"memory": [{"plugin": "lora", "lora_dropout": 0.1}], "exporters": ["merge-lora"]},
    "masked words": {
        "objective": {"plugin": "masked-lm", "block_size": 32},
        "model": {"plugin": "tiny-bert"},
        "plugin_paths": ["plugins"],
    },
    "bf16": {"training": {"precision": "bf16"}},
    "workers": {"training": {"dataloader_num_workers": 1}},
    "muon, in line": {"optimizer": "muon", "training": {"save_in_background": False}},
}
STEPS = 6
KILLS = 25
"""For each recipe ..."""
MOST_PER_RUN = 5
"""... in runs that are stopped so often, and then left alone."""


class Victim:
    """A recipe, the end of its undisturbed run, and a folder in which it is disturbed."""

    def __init__(self, server: CommandServer, folder: Path, sections: dict[str, Any], *, seed: str) -> None:
        self.server = server
        self.folder = folder
        self.draw = random.Random(seed)
        write_tiny_bert(folder / "plugins")
        training = {"max_steps": STEPS, "save_steps": 2, "eval_steps": 3, **sections.get("training", {})}
        self.recipe = write_recipe(
            folder, **{"model": SMALL, "dataset": {"max_samples": 40}, **sections, "training": training}
        )
        begun = time.monotonic()
        # Every step's checkpoint is kept, because a signal may have any of them saved.
        outcome = self.give("whole", "--set", "training.save_steps=1", "--set", f"training.save_total_limit={STEPS}")
        self.seconds = time.monotonic() - begun
        assert outcome.status == 0, outcome.err
        self.whole = End.of(folder / "whole" / outcome.folder)

    def give(self, place: str, *more: str, stop: signal.Signals | None = None) -> Outcome:
        """Give the command, and send a signal at some moment of the time that it takes."""
        (self.folder / place).mkdir(exist_ok=True)
        words = ("recipe", "run", str(self.recipe), "--json", *more)
        command = self.server.start(words, folder=self.folder / place, output=self.folder / "output")
        if stop:
            time.sleep(self.draw.uniform(0, self.seconds))
            command.kill(stop)
        return command.wait()

    def stopped_and_resumed(self, most: int) -> int:
        """Stop a run up to so many times, let it end, compare; the number of stops."""
        stops = 0
        for number in self.draw.choices((signal.SIGKILL, signal.SIGTERM), k=most):
            outcome = self.give("stopped", stop=number)
            if outcome.status == 0:  # the signal came too late
                break
            # SIGTERM before Python has a handler for it is the system's to answer.
            assert outcome.status in (-number, 128 + number), outcome
            # The orphaned worker of a killed process may complain of the lost connection; that is not the command.
            assert number == signal.SIGKILL or "Traceback" not in outcome.err, outcome.err
            stops += 1
        outcome = self.give("stopped")
        assert outcome.status == 0, outcome.err
        assert self.whole.faults_of(End.of(self.folder / "stopped" / outcome.folder), steps=[STEPS]) == []
        shutil.rmtree(self.folder / "stopped")
        return stops


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_stopped_at_any_moment_it_ends_the_same(server: CommandServer, tmp_path: Path, name: str) -> None:
    victim = Victim(server, tmp_path, RECIPES[name], seed=name)
    stops = 0
    while stops < KILLS:
        stops += victim.stopped_and_resumed(MOST_PER_RUN)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler of C++")
def test_compiled_and_stopped_it_ends_the_same(tmp_path: Path) -> None:
    # A few times only: each start takes seconds although what was compiled is kept, and the first one a minute.
    with CommandServer(TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "compiled")) as server:
        victim = Victim(server, tmp_path, {"training": {"torch_compile": True}}, seed="compiled")
        victim.stopped_and_resumed(3)


def test_stopped_a_few_times_it_ends_the_same(server: CommandServer, tmp_path: Path) -> None:
    Victim(server, tmp_path, RECIPES["dropout"], seed="a few").stopped_and_resumed(2)
