"""The folder of one run: what lies in it, written so that a crash leaves the old or the new and nothing between.

    RUNS/NAME/
      recipe.yaml        as the person wrote it
      resolved.yaml      complete, a recipe again, each value with who set it
      environment.json   versions and device; no secrets
      run.json           id, identity of the settings, which of them nobody set, attempts and how each ended, results
      data.json          the account of the data
      metrics.jsonl      one line for each logged step, evaluation and save
      samples.jsonl      generated texts, by the `samples` callback
      run.log            what was told and the steps, as lines with their time, over all attempts
      checkpoints/       checkpoint-STEP/, each with a manifest
      model/             what from_pretrained loads

This module knows files; it does not know torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toolkit.errors import UnavailableError, UsageError
from toolkit.recipe.document import read
from toolkit.recipe.identity import settings
from toolkit.recipe.resolve import ResolvedRecipe, registry_for
from toolkit.recipe.schema import Recipe, validate
from toolkit.storage.records import RunRecord, read_record, write_record
from toolkit.system.files import make_folder, read_json_lines, where_supported, write_json, write_text

DATA_FILE = "data.json"
"""The account of the run's data."""
MODEL_FOLDER = "model"
"""The folder of the exported model in a run directory."""
RUN_FILE = "run.json"
"""The record of a run."""
TRIAL_FOLDER = ".trial"
"""The folder in which saving is tried before the first step."""


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The run's name is its folder's."""
        return self.folder.name

    @property
    def id(self) -> str:
        """Tells this run from every other, wherever it is moved."""
        return str(self.record["id"])

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The folder that `from_pretrained` loads, once the run has finished."""
        return self.folder / MODEL_FOLDER

    @property
    def log(self) -> Path:
        """What was told of the run, by whoever shows it."""
        return self.folder / "run.log"

    @property
    def record(self) -> RunRecord:
        """run.json: id, recipe, identity, status, attempts, results.

        Raises:
            UnavailableError: it is damaged, or of a later version.
        """
        file = self.folder / RUN_FILE
        try:
            return read_record(file, RunRecord)
        except ValueError as error:
            raise UnavailableError(
                f"{file} is damaged: {error}. Put back a copy of it, or start the run over with --fresh: "
                f"its checkpoints stay where they are"
            ) from None

    @property
    def status(self) -> str:
        """`running`, `finished`, `failed` or `interrupted`; a run that was killed still says `running`."""
        return str(self.record["status"])

    def is_blank(self, *, except_step: int | None = None) -> bool:
        """Whether the run has nothing to lose: no logged step, and no checkpoint but the parent's of `except_step`."""
        found = {folder.name for folder in self.checkpoints.glob("*checkpoint-*")}
        return not self.metrics() and found <= {f"checkpoint-{except_step}"}

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_record(self.folder / RUN_FILE, RunRecord, {**self.record, **fields})

    def note_loss(self, *, from_step: int, seconds: float) -> None:
        """Note with the last attempt what of it is lost, now that the run goes on from `from_step`.

        Args:
            from_step: the step of the checkpoint to go on from.
            seconds: time trained at that step, over all attempts.
        """
        if not (attempts := self.record["attempts"]):
            return
        *earlier, last = attempts
        trained = [line for line in self.metrics() if line["kind"] in ("train", "eval")]
        steps = max((line["step"] - from_step for line in trained), default=0)
        lost = max((line["seconds"] - seconds for line in trained), default=0.0) if steps > 0 else 0.0
        steps, lost = max(0, steps), max(0.0, lost)
        self.update(attempts=[*earlier, last | {"lost_steps": steps, "lost_seconds": lost}])

    def begin_attempt(self, *, from_step: int, plugin_folders: Sequence[Path] = ()) -> None:
        """Note that a process starts to work on the run, and remove what a killed one was about to write.

        It looks for plugins in these folders too, besides the recipe's own.
        """
        shutil.rmtree(self.folder / TRIAL_FOLDER, ignore_errors=True)
        for unfinished in self.folder.glob(".*.*"):
            if unfinished.is_file():
                unfinished.unlink()
        attempt = {
            "started": now(),
            "from_step": from_step,
            "process": os.getpid(),
            "ended": None,
            "how": None,
        }
        self.update(
            status="running",
            plugin_folders=[str(folder.absolute()) for folder in plugin_folders],
            attempts=[*self.record["attempts"], attempt],
        )

    def end_attempt(self, *, how: str, step: int, error: str | None = None, lost_a_process: bool = False) -> None:
        """Note how the attempt of this process ended: `finished`, `interrupted` or `failed`, and why.

        And whether it was because another process of the run ended.
        """
        shutil.rmtree(
            self.folder / TRIAL_FOLDER, ignore_errors=True
        )  # which the disk may have refused to remove before
        *earlier, last = self.record["attempts"]
        attempt = last | {"ended": now(), "how": how, "step": step, "error": error}
        if lost_a_process:
            attempt["lost_a_process"] = True
        self.update(status=how, attempts=[*earlier, attempt])

    @property
    def metrics_file(self) -> Path:
        """One line for each logged step, evaluation and save."""
        return self.folder / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a crash cut off is not one."""
        return list(read_json_lines(self.metrics_file))

    def cut_metrics(self, step: int) -> None:
        """Remove the lines after this step, which a resumed run will write again."""
        for file in self.line_files():
            kept = [line for line in read_json_lines(file) if line["step"] <= step]
            write_text(file, "".join(json.dumps(line) + "\n" for line in kept))

    def line_files(self) -> list[Path]:
        """The files that grow by a line for each thing that happens in a run, so far as they exist."""
        return [file for name in ("metrics.jsonl", "samples.jsonl") if (file := self.folder / name).exists()]

    def recipe(self) -> Recipe:
        """The complete recipe that the run was started with.

        Raises:
            RecipeError, PluginError: the plugins that are installed now do not take it any more.
        """
        # The recipe's folder is where its plugin folders lie, wherever the run is.
        document = read(self.folder / "resolved.yaml")
        return validate(document, registry_for(document, Path(self.record["source"]), self.plugin_folders))

    @property
    def plugin_folders(self) -> tuple[Path, ...]:
        """Where the last attempt looked for plugins beside the recipe's own folders: `--plugins`."""
        return tuple(map(Path, self.record.get("plugin_folders", ())))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on the run.

        Raises:
            UnavailableError: another process is working on it, or the disk refuses.
        """
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context((self.folder / "lock").open("a"))
                # A data loader's worker that outlives a killed run for some seconds must not hold its lock.
                os.register_at_fork(after_in_child=lock.close)
                with where_supported("see to it that no second command works on this run; nothing else keeps it off"):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnavailableError(
                    f"another process is working on {self.folder}; wait for it, or give this run another --name"
                ) from None
            except OSError as error:
                raise UnavailableError(f"cannot lock {self.folder}: {error.strerror}") from error
            yield


def create(folder: Path, resolved: ResolvedRecipe, environment: Mapping[str, Any], *, series: str) -> RunDirectory:
    """Make the folder of a new run; `series` is the name that it shares with its `--fresh` successors.

    Raises:
        UnavailableError: it cannot be written.
        UsageError: something else is in its place.
    """
    run = RunDirectory(folder)
    try:
        make_folder(folder)
        if any(path.name != "lock" for path in folder.iterdir()):
            raise UsageError(f"{folder} is not empty and is not a run; give this run another --name")
        run.checkpoints.mkdir()
        write_text(folder / "recipe.yaml", resolved.recipe.document.text)
        write_text(folder / "resolved.yaml", resolved.to_yaml())
        write_json(folder / "environment.json", environment)
        settled = settings(resolved)
        write_record(
            folder / RUN_FILE,
            RunRecord,
            {
                "id": uuid.uuid4().hex,
                "recipe": resolved.name,
                "series": series,
                "source": str(Path(resolved.recipe.document.source).resolve()),
                "task": resolved.recipe.objective.plugin.task,
                "created": now(),
                "status": "running",
                "identity": {key: setting.value for key, setting in settled.items()},
                "defaults": [key for key, setting in settled.items() if not setting.is_set],
                "attempts": [],
                "results": None,
            },
        )
    except OSError as error:
        raise UnavailableError(
            f"cannot write the run directory {folder}: {error.strerror}; choose another folder with --runs"
        ) from None
    return run


def now() -> str:
    """The time, as run.json has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
