"""Ray: a driver that starts torchrun on each node through Ray Train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from pydantic import Field

from toolkit.api import Job, Launcher, OptionError

DRIVER = Path(__file__).with_name("ray_driver.py.tmpl")


class Ray(Launcher):
    """A driver for Ray Train, which starts a node again when its process is lost."""

    cpus_per_node: int = Field(default=1, ge=1)
    """Processor cores that Ray reserves on each node."""

    def files(self, job: Job) -> Mapping[str, str]:
        for option, at in (("runs", job.runs), ("cache", job.cache)):
            if not at.startswith("/"):
                raise OptionError(
                    f"Ray's processes work in a copy of the folder: name an absolute path that all nodes see, not {at}",
                    option=option,
                )
        if job.image is not None or job.minutes:
            raise OptionError(
                "a Ray cluster has its image and its limits already; leave the image and the time limit out",
                option="image" if job.image is not None else "minutes",
            )
        driver = Template(DRIVER.read_text(encoding="utf-8")).substitute(
            label=job.label,
            nodes=job.nodes,
            resources={"CPU": self.cpus_per_node, **({"GPU": job.gpus_per_node} if job.gpus_per_node else {})},
            environment=job.environment(runs=job.runs, cache=job.cache),
            secrets=list(job.secrets),
            file=repr(job.recipe_file),
            recipe=repr(job.recipe),
            prepare=repr(job.prepare()),
            train=repr(job.train(head="$head", node="$node", port="$port")),
            run=repr(job.label),
            storage=repr(f"{job.cache}/ray"),
            restarts=job.restarts,
        )
        return {f"{job.label}.ray.py": driver}

    def submission(self, job: Job) -> tuple[str, ...]:
        return "ray", "job", "submit", "--working-dir", ".", "--", "python", f"{job.label}.ray.py"
