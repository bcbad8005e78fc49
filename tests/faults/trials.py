"""A run that is disturbed at a file operation, what it leaves, and the same command given again.

The run: three steps, a save after each, two checkpoints kept, so every kind of operation is met: a cold cache of
tokens, the first save, those in the background, rotation, the last save, the export.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.faults.command_server import CommandServer, Fault, Outcome
from tests.faults.power_cut import Disk, Journal
from tests.tiny import losses, write_recipe
from toolkit.memory import watch
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import TRIAL_FOLDER
from toolkit.storage.runs_folder import all_runs
from toolkit.system.files import read_json

COUNT, KILL, FAIL_ONCE, FAIL_FROM = range(4)
"""Actions of file_operations.c."""
STATE_OF_TRAINING = ("model.safetensors", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
OF_THE_ATTEMPT = ("seconds_trained", "evaluation_left_out")
"""Of toolkit_state.json: how long it took, and whether a signal left the last evaluation to the attempt after it."""
NOT_COMPARED = (watch.READINGS_FILE, "run.log")
HALF_REMOVED = "left over: checkpoints/.removing-"

SECTIONS: dict[str, Any] = {
    "model": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1},
    "training": {"max_steps": 3, "save_steps": 1, "save_total_limit": 2, "eval_steps": 3},
}


@dataclass(frozen=True)
class End:
    """All of a finished run that an interruption could have changed."""

    losses: list[tuple[Any, ...]]
    tokens_seen: int
    sample: str
    sums: dict[str, Any]
    """Of the last checkpoint."""
    files: dict[str, str]
    """Digests of the model and of the state of training in each checkpoint."""
    names: set[str]
    """Of all files and folders, but for what a process that is ended leaves: its readings of memory, its log."""
    steps: list[int]
    """Of the checkpoints."""

    @classmethod
    def of(cls, run: Path) -> End:
        """Read what a finished run has left."""
        results = read_json(run / "run.json")["results"]
        checkpoints = sorted(checkpoint.numbered(run / "checkpoints"))
        sums = read_json(checkpoints[-1][1] / "toolkit_state.json")
        folders = (run / "model", *dict(checkpoints).values())
        states = [folder / name for folder in folders for name in STATE_OF_TRAINING]
        return cls(
            losses=losses(run) if (run / "metrics.jsonl").exists() else [],
            tokens_seen=results["tokens_seen"],
            sample=results["sample"],
            sums={name: value for name, value in sums.items() if name not in OF_THE_ATTEMPT},
            files={
                str(file.relative_to(run)): sha256(file.read_bytes()).hexdigest() for file in states if file.exists()
            },
            names={str(path.relative_to(run)) for path in run.rglob("*") if path.name not in NOT_COMPARED},
            steps=[step for step, _ in checkpoints],
        )

    def faults_of(self, other: End, *, steps: list[int]) -> list[str]:
        """What is wrong with another end, if this is that of a run which was never disturbed and kept every checkpoint.

        Args:
            other: the end of a run that was disturbed.
            steps: of the checkpoints that it must have; an older one may be there too, because a run that is killed
                between its last save and the removal of what is then one too many leaves it.
        """
        found = [name for name in ("tokens_seen", "sample", "sums") if vars(self)[name] != vars(other)[name]]
        if self.losses != other.losses:
            found.append(f"losses: {sorted(set(self.losses) ^ set(other.losses))} (or their order) differ")
        needed = {name for name in self.files if name.startswith(("model/", f"checkpoints/checkpoint-{steps[-1]}/"))}
        found += sorted(f"missing: {name}" for name in needed - other.files.keys())
        found += sorted(name for name, digest in other.files.items() if self.files.get(name) != digest)
        found += sorted(f"left over: {name}" for name in other.names - self.names)
        return found if other.steps[-len(steps) :] == steps else [*found, f"checkpoints of {other.steps}"]


@dataclass(frozen=True)
class State:
    """What a disturbed run, or a power cut, has left."""

    name: str
    folder: Path
    fingerprint: str


@dataclass
class Bench:
    """Where the trials of one process are made; the same folders serve for each of them."""

    server: CommandServer
    watcher: Path
    folder: Path
    proven: set[str] = field(default_factory=set)
    """Fingerprints of states from which a resumed run has ended as it should."""

    def __post_init__(self) -> None:
        inputs = self.folder / "inputs"
        inputs.mkdir()
        self.recipe = write_recipe(inputs, **SECTIONS)
        outcome, journal = self.disturbed(COUNT)
        assert outcome.status == 0, outcome.err
        self.operations = journal.operations[-1].number
        self.last_commit = max(
            one.number for one in journal.operations if one.kind == "rename" and one.name.startswith("checkpoint-")
        )
        tried = [one.number for one in journal.operations if one.name == TRIAL_FOLDER]
        self.trial = range(min(tried) + 1, max(tried))
        whole = self.folder / "whole"
        whole.mkdir()
        outcome = self.command(whole, "--set", "training.save_total_limit=3")
        assert outcome.status == 0, outcome.err
        self.whole = End.of(whole / outcome.folder)

    @property
    def disturbed_folder(self) -> Path:
        """Where the run is that is disturbed."""
        return self.folder / "disturbed"

    def command(self, place: Path, *more: str, fault: Fault | None = None) -> Outcome:
        """Give the command in a folder and wait for its end."""
        words = ("recipe", "run", str(self.recipe), "--json", "--quiet", *more)
        return self.server.start(words, folder=place, output=self.folder / "output", fault=fault).wait()

    def disturbed(self, action: int, at: int = 0, error: int = 0) -> tuple[Outcome, Journal]:
        """Run from the beginning, with a fault."""
        journal, kept = self.folder / "journal", self.folder / "kept"
        for old in (self.disturbed_folder, kept):
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir()
        journal.write_bytes(b"")
        fault = Fault(str(self.watcher), str(journal), str(kept), at=at, action=action, error=error)
        return self.command(self.disturbed_folder, fault=fault), Journal(journal)

    def end_of(self, outcome: Outcome) -> End:
        """The end of a disturbed run that has finished all the same."""
        return End.of(self.disturbed_folder / outcome.folder)

    def states(self, journal: Journal) -> Iterator[State]:
        """What the disturbed run has left, then what power cuts may have. Each takes the place of the one before."""
        data, names = journal.unsynced_data(), journal.unsynced_names()
        renames = [change for change in names if change.kind == "rename"]
        for name, undone, cut in (
            ("as it was", [], {}),
            ("unsynced data cut off", [], data),
            ("unsynced renames undone", renames, {}),
            ("unsynced data cut off and all unsynced names undone", names, data),
        ):
            disk = Disk(self.disturbed_folder, self.folder / "kept", journal)
            disk.undo(undone)
            state = State(name, self.folder / "state", disk.fingerprint(cut=cut))
            shutil.rmtree(state.folder, ignore_errors=True)
            disk.write(state.folder, cut=cut)
            yield state

    def promised(self, journal: Journal) -> set[int]:
        """Steps of checkpoints that a power cut must not take: forced to the disk, or said to be saved."""
        lines = [line for run in all_runs(self.disturbed_folder / "runs") for line in run.metrics()]
        return journal.committed() | {line["step"] for line in lines if line["kind"] == "save"}

    def failures(self, state: State, promised: set[int], *, steps: list[int]) -> list[str]:
        """Give the command again, undisturbed, and say what is not as it should be.

        Args:
            state: what to go on from.
            promised: steps of checkpoints, the newest of which must not be lost.
            steps: of the checkpoints that the finished run must have.
        """
        run = next(iter(all_runs(state.folder / "runs")), None)
        found = checkpoint.newest_intact(run.checkpoints, run_id=run.id)[0] if run else None
        step, finished = found.step if found else 0, run is not None and run.status == "finished"
        if step < max(promised, default=0):
            return [f"checkpoint-{max(promised)} was safe, and the newest intact one is of step {step}"]
        if state.fingerprint in self.proven:
            return []
        outcome = self.command(state.folder)
        if outcome.status != 0:
            return [f"given again, it ends with {outcome.status}: {outcome.err[-2000:]}"]
        folder = state.folder / outcome.folder
        resumed_from = json.loads((folder / "run.json").read_text(encoding="utf-8"))["attempts"][-1]["from_step"]
        failures = self.whole.faults_of(End.of(folder), steps=steps)
        if finished:  # it was not touched again, so what was half removed is still there
            failures = [failure for failure in failures if HALF_REMOVED not in failure]
        elif resumed_from != step:
            failures.append(f"went on from step {resumed_from} instead of {step}")
        if not failures:
            self.proven.add(state.fingerprint)
        return failures


def shown(journal: Journal, last: int = 3) -> str:
    """The last operations that were carried out."""
    names = [(one, re.sub(r"[.][0-9]+$", ".PID", one.name)) for one in journal.operations[-last:]]
    return "; ".join(f"{one.number} {one.kind} {name}" for one, name in names)
