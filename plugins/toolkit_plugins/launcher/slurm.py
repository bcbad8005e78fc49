"""Slurm: one batch script."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from toolkit.api import Job, Launcher, OptionError

SCRIPT = r"""
# Slurm sends USR1 to this script before the time limit. The run then ends its step and saves; the job goes back to the
# queue, and when it starts again the same command resumes. TERM is a scancel, or comes before Slurm's own requeue.
# Both are passed on by scancel and not by srun, which would kill its tasks.
again=
stop() { scancel --signal=TERM "$job"; }
trap 'again=yes; stop' USR1
trap stop TERM

attempt() {
  "$@" & step=$!
  wait "$step"; status=$?
  while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done  # a trap ends a wait
  if [ "$status" -ne 0 ]; then
    [ -z "$again" ] || scontrol requeue "$job"
    exit "$status"
  fi
}
"""


class Slurm(Launcher):
    """A batch script for Slurm, which requeues itself before the time limit and resumes."""

    fans_out: ClassVar[bool] = True

    partition: str | None = None
    """Partition to submit to."""
    account: str | None = None
    """Account to charge."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """Processor cores on each node; if not given, whole nodes."""
    directives: tuple[str, ...] = ()
    """Further options of sbatch: ["--qos=long", "--constraint=a100"]."""
    setup: str = ""
    """Lines of shell that come first: `module load cuda; source /shared/toolkit/bin/activate`."""

    def files(self, job: Job) -> Mapping[str, str]:
        if job.image is not None:
            raise OptionError(
                "slurm runs the toolkit that is installed on the nodes: remove the image, and name its environment: "
                "--option setup='source /shared/toolkit/bin/activate'",
                option="image",
            )
        directives = [
            f"--job-name={job.label}",
            f"--nodes={job.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={self.cpus_per_node}" if self.cpus_per_node else "--exclusive",
            *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
            *([f"--time={job.minutes}"] if job.minutes else []),
            *([f"--partition={self.partition}"] if self.partition else []),
            *([f"--account={self.account}"] if self.account else []),
            f"--signal=B:USR1@{job.grace_seconds}",
            "--requeue",
            "--open-mode=append",
            *([f"--array=0-{job.workers - 1}"] if job.sweep else []),
            f"--output={job.label}-{'%A_%a' if job.sweep else '%j'}.log",
            *self.directives,
        ]
        environment = job.environment(runs=job.runs, cache=job.cache)
        here = "cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}"
        train = job.train(head="$head", node="$SLURM_NODEID", port="$port")
        # One task of an array has the array's own number as SLURM_JOB_ID, by which scancel and scontrol mean all tasks.
        own = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.sweep else "$SLURM_JOB_ID"
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {directive}" for directive in directives),
            *self.setup.splitlines(),
            *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
            *(f': "${{{name}:?is a secret of the run: set it where you call sbatch}}"' for name in job.secrets),
            f"job={own}",
            SCRIPT.rstrip(),
            "",
            here,
            "export head port=$((20000 + SLURM_JOB_ID % 10000))",
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f'attempt srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" bash -c {shlex.quote(job.prepare())}',
            f'attempt srun --kill-on-bad-exit=1 --cpus-per-task="$cpus" bash -c {shlex.quote(f"exec {train}")}',
        ]
        return {f"{job.label}.sbatch": "\n".join(lines) + "\n"}

    def submission(self, job: Job) -> tuple[str, ...]:
        return "sbatch", f"{job.label}.sbatch"
