"""Docker Compose: the services of one host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from toolkit.api import Job, Launcher, OptionError
from toolkit_plugins.launcher.yaml_text import as_yaml


class Compose(Launcher):
    """Services for Docker Compose, on one host."""

    fans_out: ClassVar[bool] = True

    shm_size: str = "8g"
    """Shared memory, through which processes pass batches."""

    def files(self, job: Job) -> Mapping[str, str]:
        if job.nodes > 1:
            raise OptionError("compose starts one host; for more, launch on another engine", option="nodes")
        if job.minutes:
            raise OptionError("compose has no time limit; leave it out", option="minutes")
        volumes = {"/runs": job.runs, "/cache": job.cache}
        service: dict[str, Any] = {
            "image": job.image or f"pretrain-toolkit:{'cuda' if job.gpus_per_node else 'cpu'}",
            "working_dir": "/work",
            "environment": [
                *(f"{name}={value}" for name, value in job.environment(runs="/runs", cache="/cache").items()),
                *job.secrets,  # a bare name takes the value from the environment of `docker compose`
            ],
            "volumes": [
                *({"type": _kind(at), "source": at, "target": mount} for mount, at in volumes.items()),
                {
                    "type": "bind",
                    "source": f"./{job.recipe_file}".replace("$", "$$"),
                    "target": f"/work/{job.recipe_file}".replace("$", "$$"),
                    "read_only": True,
                },
            ],
            "init": True,
            "stop_grace_period": f"{job.grace_seconds}s",
        }
        train: dict[str, Any] = {
            **service,
            "entrypoint": _shell(job.train(head="localhost", node="0")),
            "depends_on": {"prepare": {"condition": "service_completed_successfully"}},
            "restart": f"on-failure:{job.restarts}",
            "shm_size": self.shm_size,
        }
        trained = {
            (f"worker-{number}" if job.sweep else "train"): train | _gpus(job, number) for number in range(job.workers)
        }
        named: dict[str, Any] = {at: {} for at in volumes.values() if _kind(at) == "volume"}
        document = {
            "name": job.label,
            "services": {"prepare": {**service, "entrypoint": _shell(job.prepare())}, **trained},
            **({"volumes": named} if named else {}),
        }
        return {f"{job.label}.compose.yaml": as_yaml(document)}

    def submission(self, job: Job) -> tuple[str, ...]:
        return "docker", "compose", "--file", f"{job.label}.compose.yaml", "up", "--detach"


def _gpus(job: Job, worker: int) -> dict[str, Any]:
    """The GPUs of a service; those of a sweep's worker are its own, by number."""
    if not (count := job.gpus_per_node):
        return {}
    which: dict[str, Any] = {"count": count}
    if job.sweep:
        which = {"device_ids": [str(number) for number in range(worker * count, (worker + 1) * count)]}
    gpus = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [gpus]}}}}


def _kind(at: str) -> str:
    return "bind" if at.startswith((".", "/", "~")) else "volume"


def _shell(line: str) -> list[str]:
    return ["sh", "-c", f"exec {line}".replace("$", "$$")]
