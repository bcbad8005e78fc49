"""Kubernetes: a TrainJob of Kubeflow with its runtime, or a plain Job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from toolkit.api import Job, Launcher, OptionError
from toolkit_plugins.launcher.pods import RECIPE_KEY, ends, pod_template, resources, shell
from toolkit_plugins.launcher.yaml_text import as_yaml


class Kubeflow(Launcher):
    """Manifests for Kubernetes: a TrainJob of Kubeflow with a runtime of its own, or a plain Job."""

    fans_out: ClassVar[bool] = True

    manifest: Literal["trainjob", "job"] = "trainjob"
    """`trainjob` needs the Kubeflow Trainer in the cluster; `job` needs nothing."""
    namespace: str | None = None
    """Namespace; if not given, the current one."""
    secret: str = "pretrain-toolkit"
    """The Secret that holds the secrets of the run, each under the name of its variable."""
    group: int = 10001
    """Group that owns the volumes; that of the image's user."""

    def files(self, job: Job) -> Mapping[str, str]:
        if job.image is None:
            raise OptionError("name the image: --image REGISTRY/pretrain-toolkit:cuda", option="image")
        if job.sweep and self.manifest == "trainjob":
            raise OptionError(
                "the workers of a sweep are the pods of a plain Job: --option manifest=job", option="manifest"
            )
        recipe = self._object("v1", "ConfigMap", job, data={RECIPE_KEY: job.recipe})
        documents = self._train_job(job) if self.manifest == "trainjob" else self._job(job)
        return {f"{job.label}.k8s.yaml": as_yaml(recipe, *documents)}

    def submission(self, job: Job) -> tuple[str, ...]:
        return "kubectl", "apply", "--filename", f"{job.label}.k8s.yaml"

    def _job(self, job: Job) -> list[dict[str, Any]]:
        """A pod of an indexed Job is found under its own name if a headless service has the pods' subdomain."""
        labels = {"batch.kubernetes.io/job-name": job.label}
        service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels}
        train = job.train(head=f"{job.label}-0.{job.label}", node="$JOB_COMPLETION_INDEX")
        container = {"command": shell(train), "resources": resources(job)}
        pod = pod_template(job, container, secret=self.secret, group=self.group)
        pod["spec"]["subdomain"] = job.label
        pods = job.workers if job.sweep else job.nodes
        spec = {"completions": pods, "parallelism": pods, "completionMode": "Indexed", **ends(job)}
        return [
            self._object("v1", "Service", job, spec=service),
            self._object("batch/v1", "Job", job, spec={**spec, "template": pod}),
        ]

    def _train_job(self, job: Job) -> list[dict[str, Any]]:
        trainer = {
            "image": job.image,
            "numNodes": job.nodes,
            "numProcPerNode": max(1, job.gpus_per_node),
            "command": shell(job.train(head="$PET_MASTER_ADDR", node="$PET_NODE_RANK", port="$PET_MASTER_PORT")),
            "resourcesPerNode": resources(job),
        }
        step = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
        pod = pod_template(job, {}, secret=self.secret, group=self.group)
        node = {"metadata": step, "spec": {**ends(job), "template": pod}}
        jobs = {"spec": {"replicatedJobs": [{"name": "node", "template": node}]}}
        policy = {"numNodes": job.nodes, "torch": {}}
        runtime = {"mlPolicy": policy, "template": jobs}
        api = "trainer.kubeflow.org/v1alpha1"
        reference = {"kind": "TrainingRuntime", "name": job.label}
        return [
            self._object(api, "TrainingRuntime", job, spec=runtime),
            self._object(api, "TrainJob", job, spec={"runtimeRef": reference, "trainer": trainer}),
        ]

    def _object(self, api: str, kind: str, job: Job, **content: Any) -> dict[str, Any]:
        metadata = {"name": job.label, **({"namespace": self.namespace} if self.namespace else {})}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}
