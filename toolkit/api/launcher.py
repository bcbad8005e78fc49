"""The contract of launchers: a run on many machines, as files for an engine that starts it there."""

from __future__ import annotations

import re
import shlex
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from toolkit.api.plugins import Plugin

PORT = 29400
"""Where the first node listens for the others, unless an engine shares hosts between jobs; torchrun's own default."""
RENDEZVOUS_SECONDS = 900
"""How long nodes wait for each other: one may still pull an image of some gigabytes."""


@dataclass(frozen=True)
class Job:
    """A run on one or more machines, to be put into the words of an engine."""

    name: str
    """Name of the run, and of its folder. Not every engine takes it as it is: see `label`."""
    recipe: str
    """The resolved recipe, as YAML; written beside the launcher's files as `recipe_file`."""
    nodes: int = 1
    gpus_per_node: int = 0
    """One process for each; 0 is one process per node on its CPU."""
    image: str | None = None
    """The container image; None where the toolkit is installed on the machines."""
    grace_seconds: int = 120
    """What the run needs between SIGTERM and SIGKILL: to end its step and save."""
    minutes: int | None = None
    """Time limit of the job; None is the engine's own."""
    runs: str = "runs"
    """Where all nodes find the folder of runs, in the engine's terms: a folder, a volume, a claim, a bucket."""
    cache: str = "cache"
    """Likewise the cache: prepared data and downloads."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables that hold secrets. The engine supplies their values; no file has them."""
    restarts: int = 3
    """How often a failed run is started again, to resume."""
    elastic: bool = False
    """Whether the run may begin, and go on, with fewer than `nodes`."""
    sweep: tuple[str, ...] = ()
    """For a sweep, the options of `toolkit recipe sweep` that say what it varies; empty for a single run."""
    workers: int = 1
    """Of a sweep: how many take trials at the same time, each on a machine of its own."""

    @property
    def recipe_file(self) -> str:
        """Name of the recipe's file. The run is named after it."""
        return f"{self.name}.yaml"

    @property
    def label(self) -> str:
        """The name as a DNS label of up to 40 characters: lowercase letters, digits and -, a letter first."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return re.sub(r"^(?=[^a-z])", "run-", words)[:40].rstrip("-")

    def environment(self, *, runs: str, cache: str) -> dict[str, str]:
        """The variables of every process, with the folders of runs and cache as a process sees them.

        torchrun kills its processes 30 s after it has passed SIGTERM on, unless told otherwise.
        """
        return {
            "TOOLKIT_RUNS": runs,
            "TOOLKIT_CACHE": f"{cache}/pretrain-toolkit",
            "HF_HOME": f"{cache}/huggingface",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.grace_seconds),
        }

    def prepare(self) -> str:
        """The command that tokenizes the data into the cache, as a line of shell. One node works, others wait."""
        return f"toolkit recipe prepare {shlex.quote(f'./{self.recipe_file}')}"

    def train(self, *, head: str, node: str, port: int | str = PORT) -> str:
        """The command that each node executes, as a line of shell; for a sweep, each worker.

        Args:
            head: address of the first node, as it is written in shell: `$head`.
            node: number of this node from 0, likewise: `$SLURM_NODEID`.
            port: where the first node listens, likewise.
        """
        if self.sweep:
            several = self.gpus_per_node > 1 and not any(word.startswith("--processes") for word in self.sweep)
            together = ["--processes=auto"] if several else []
            words = ["toolkit", "recipe", "sweep", f"./{self.recipe_file}", f"--name={self.name}"]
            return shlex.join([*words, *together, *self.sweep])
        nodes = f"1:{self.nodes}" if self.elastic and self.nodes > 1 else self.nodes
        waits = f"join_timeout={RENDEZVOUS_SECONDS},read_timeout={RENDEZVOUS_SECONDS}"
        return (
            f"python -m toolkit.system.torchrun --nnodes {nodes} --nproc-per-node {max(1, self.gpus_per_node)} "
            f"--max-restarts {self.restarts} --rdzv-backend c10d --rdzv-id {self.label} "
            f'--rdzv-endpoint "{head}:{port}" --rdzv-conf "is_host=$(({node} == 0)),{waits}" '
            f"--no-python toolkit recipe run {shlex.quote(f'./{self.recipe_file}')}"
        )


class Launcher(Plugin):
    """How a run is started on many machines.

    Its options are the engine's own: a partition, a namespace. Both methods are pure: the same job gives the same
    files, whatever the machine, the clock and the environment. What the engine cannot do is refused by `OptionError`.
    """

    kind: ClassVar[str] = "launcher"
    fans_out: ClassVar[bool] = False
    """Whether it starts all `workers` of a sweep; otherwise a job has only one."""

    @abstractmethod
    def files(self, job: Job) -> Mapping[str, str]:
        """Return the engine's files, by name: plain names, other than `job.recipe_file`, which is written beside."""

    @abstractmethod
    def submission(self, job: Job) -> tuple[str, ...]:
        """Return the engine's own command that starts the job, in words, for the folder with the files."""
