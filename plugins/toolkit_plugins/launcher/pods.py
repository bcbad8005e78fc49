"""The pods of a run on Kubernetes, whoever makes them."""

from __future__ import annotations

from typing import Any

from toolkit.api import Job

RECIPE_KEY = "recipe.yaml"
"""Of the ConfigMap, whose keys are letters, digits, - . and _ only."""
FAILURES = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [143]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}},
    ]
}
"""An eviction and SIGTERM do not count, for the run goes on; an invalid recipe is not tried again."""


def pod_template(job: Job, container: dict[str, Any], *, secret: str, group: int) -> dict[str, Any]:
    """A pod that prepares the data and then runs the container, which says the command."""
    environment = [
        *({"name": name, "value": at} for name, at in job.environment(runs="/runs", cache="/cache").items()),
        *({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}} for name in job.secrets),
    ]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("runs", "cache", "work")]
    both = {"image": job.image, "workingDir": "/work", "env": environment, "volumeMounts": mounts}
    memory = {"name": "memory", "mountPath": "/dev/shm"}
    recipe = {"name": job.label, "items": [{"key": RECIPE_KEY, "path": job.recipe_file}]}
    return {
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": job.grace_seconds,
            "securityContext": {"fsGroup": group},
            "initContainers": [{"name": "prepare", "command": shell(job.prepare()), **both}],
            "containers": [{"name": "node", **container, **both, "volumeMounts": [*mounts, memory]}],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": job.runs}},
                {"name": "cache", "persistentVolumeClaim": {"claimName": job.cache}},
                {"name": "work", "configMap": recipe},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ],
        }
    }


def ends(job: Job) -> dict[str, Any]:
    """When a Job of such pods has failed."""
    deadline = {"activeDeadlineSeconds": 60 * job.minutes} if job.minutes else {}
    return {"backoffLimit": job.restarts, "podFailurePolicy": FAILURES, **deadline}


def resources(job: Job) -> dict[str, Any]:
    """The GPUs of a container."""
    return {"limits": {"nvidia.com/gpu": str(job.gpus_per_node)}} if job.gpus_per_node else {}


def shell(line: str) -> list[str]:
    """A line of shell as the command of a container, which gets the signals itself."""
    return ["sh", "-c", f"exec {line}"]
