"""SkyPilot: one task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.api import Job, Launcher, OptionError
from toolkit_plugins.launcher.yaml_text import as_yaml


class SkyPilot(Launcher):
    """A managed job for SkyPilot, which recovers on other machines when spot instances are taken away."""

    accelerator: str | None = None
    """SkyPilot's name of the GPU: H100, A100-80GB."""
    infra: str | None = None
    """Where to run: aws/us-east-1, k8s; if not given, the cheapest that there is."""
    use_spot: bool = True
    """Use spot instances."""
    setup: str = ""
    """Lines of shell that come first: `pip install pretrain-toolkit`; not needed with an image that has it."""

    def files(self, job: Job) -> Mapping[str, str]:
        if job.gpus_per_node and not self.accelerator:
            raise OptionError("name the GPU: --option accelerator=H100", option="accelerator")
        if job.minutes:
            raise OptionError("skypilot has no time limit for a job; leave it out", option="minutes")
        resources: dict[str, Any] = {
            **({"infra": self.infra} if self.infra else {}),
            **({"accelerators": f"{self.accelerator}:{job.gpus_per_node}"} if job.gpus_per_node else {}),
            **({"image_id": f"docker:{job.image}"} if job.image else {}),
            "use_spot": self.use_spot,
            "job_recovery": {"max_restarts_on_errors": job.restarts, "recover_on_exit_codes": [143]},
        }
        places = {"/runs": job.runs, "/cache": job.cache}
        # MOUNT_CACHED alone can rename, on which a checkpoint relies.
        buckets = {path: {"source": at, "mode": "MOUNT_CACHED"} for path, at in places.items() if "://" in at}
        train = job.train(head="$head", node="$SKYPILOT_NODE_RANK")
        volumes = {path: at for path, at in places.items() if path not in buckets}
        task = {
            "name": job.label,
            "num_nodes": job.nodes,
            "resources": resources,
            "envs": job.environment(runs="/runs", cache="/cache"),
            **({"secrets": dict.fromkeys(job.secrets)} if job.secrets else {}),
            "file_mounts": {f"~/pretrain/{job.recipe_file}": f"./{job.recipe_file}", **buckets},
            **({"volumes": volumes} if volumes else {}),
            "setup": "\n".join([*self.setup.splitlines(), "cd ~/pretrain", job.prepare(), ""]),
            "run": f'cd ~/pretrain\nhead=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\nexec {train}\n',
        }
        return {f"{job.label}.sky.yaml": as_yaml(task)}

    def submission(self, job: Job) -> tuple[str, ...]:
        secrets = [word for name in job.secrets for word in ("--secret", name)]
        return "sky", "jobs", "launch", *secrets, f"{job.label}.sky.yaml"
