"""A run in a container that is stopped in the middle of a save, and started again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time

from image import TRIALS, Image

GRACE_SECONDS = 180
"""Between SIGTERM and SIGKILL; a disk that many share is slow."""


class StoppedRun:
    """trials/slow-saves.yaml in a container of its own; the command is the same each time that it is started."""

    recipe = "slow-saves"

    def __init__(self, image: Image, name: str, options: tuple[str, ...] = ()) -> None:
        self.image, self.container = image, f"try-image-{os.getpid()}-{name}"
        runs, cache = image.writable(f"runs-{name}"), image.writable(f"cache-{name}")
        self.folder = runs / self.recipe
        volumes = {runs: "/runs", cache: "/cache", TRIALS: "/work:ro"}
        self.options = (*options, *(word for at, to in volumes.items() for word in ("--volume", f"{at}:{to}")))

    def start(self) -> None:
        words = ("run", "--detach", "--name", self.container, "--network", "none", *self.options, self.image.name)
        self.image.call(*words, "recipe", "run", f"./{self.recipe}.yaml")

    def wait_for_save(self, step: int) -> None:
        """Return as soon as the files of this step's checkpoint are being written."""
        staged = self.folder / "checkpoints" / ".staging" / f"checkpoint-{step}"
        while not staged.exists():
            assert self._is_running(), self.log()
            for _ in range(50):
                if staged.exists():
                    break
                time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM; after the grace period, SIGKILL, which would show as exit status 137."""
        self.image.call("stop", "--time", str(GRACE_SECONDS), self.container)

    def ended(self) -> tuple[int, str]:
        """Exit status and log; the container is removed."""
        status, log = int(self.image.call("wait", self.container)), self.log()
        self.image.call("rm", self.container)
        return status, log

    def was_stopped_in_save(self, step: int) -> bool:
        """Whether the save outlasted the step at whose end the run heeded the signal, and so the signal itself."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        saves = {record["step"]: record["seconds"] for record in records if record["kind"] == "save"}
        ends = {record["step"]: record["seconds"] for record in records if record["kind"] == "train"}
        return max(ends) == step + 1 and saves[step] > ends[step + 1] - ends[step]

    def weights(self) -> str:
        """SHA-256 of the exported weights."""
        return hashlib.sha256((self.folder / "model" / "model.safetensors").read_bytes()).hexdigest()

    def log(self) -> str:
        words = [self.image.engine, "logs", self.container]
        return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout

    def _is_running(self) -> bool:
        return self.image.call("inspect", "--format", "{{.State.Running}}", self.container).strip() == "true"
