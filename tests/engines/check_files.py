"""Compares the files of `toolkit recipe launch --write` with the engines' own schemas and models, where those are.

    python tests/engines/check_files.py FOLDER... docker

The engines' packages exclude the toolkit's, so each gets an environment of its own: one with skypilot; one with
kubernetes, kubernetes-validate, kubeflow-trainer-api and check-jsonschema (which brings compose's schema). What an
environment lacks is named as not checked. Exit status 1 if a file is not what the engine takes.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MODELS = {"TrainingRuntime": "TrainerV1alpha1TrainingRuntime", "TrainJob": "TrainerV1alpha1TrainJob"}


def needs(package: str) -> str:
    return "" if importlib.util.find_spec(package) else f"not checked: {package} is not installed here"


def skypilot(file: Path) -> Iterator[str]:
    """The task as SkyPilot reads it, and as it writes it again."""
    if lacking := needs("sky"):
        yield lacking
        return
    from sky.utils import common_utils, schemas

    task = yaml.safe_load(file.read_text())
    for part, schema in ((task, schemas.get_task_schema()), (task["resources"], schemas.get_resources_schema())):
        common_utils.validate_schema(part, schema, f"{file.name}: ")
    for place in task["file_mounts"].values():
        if isinstance(place, dict):
            common_utils.validate_schema(place, schemas.get_storage_schema(), f"{file.name}: ")
    import jsonschema

    strict = json.loads(json.dumps(schemas.get_resources_schema()["properties"]["job_recovery"]))
    strict["anyOf"][1]["additionalProperties"] = False
    jsonschema.validate(task["resources"]["job_recovery"], strict)
    import sky

    given = {**task, "secrets": dict.fromkeys(task.get("secrets", {}), "given by --secret"), "file_mounts": {}}
    read = sky.Task.from_yaml_config(given)
    assert read.num_nodes == task["num_nodes"]
    yield "SkyPilot's Task reads it"
    yield "SkyPilot's schemas of task, resources, storage and job_recovery"


def kubernetes(file: Path) -> Iterator[str]:
    """Each object as its model reads it: written again, nothing is lost."""
    for document in yaml.safe_load_all(file.read_text()):
        kind = document["kind"]
        if kind in MODELS:
            if lacking := needs("kubeflow_trainer_api"):
                yield f"{kind} {lacking}"
                continue
            from kubeflow_trainer_api import models

            again = getattr(models, MODELS[kind]).from_dict(document).to_dict()
            assert pruned(again) == pruned(document), f"{kind} loses something in kubeflow's model"
            yield f"{kind}: kubeflow-trainer-api's model, nothing lost"
        else:
            if lacking := needs("kubernetes_validate"):
                yield f"{kind} {lacking}"
                continue
            import kubernetes_validate

            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
            yield f"{kind}: Kubernetes {kubernetes_validate.latest_version()}, strict"
            yield from through_the_client(document)


def through_the_client(document: dict[str, Any]) -> Iterator[str]:
    if lacking := needs("kubernetes"):
        yield lacking
        return
    from kubernetes import client

    api = client.ApiClient()
    read = api.deserialize(json.dumps(document), f"V1{document['kind']}", "application/json")
    again = api.sanitize_for_serialization(read)
    assert pruned(again) == pruned(document), f"{document['kind']} loses something in the kubernetes client's model"
    yield f"{document['kind']}: the kubernetes client's model, nothing lost"


def pruned(value: Any) -> Any:
    """Without what is null: models write that out."""
    if isinstance(value, dict):
        return {key: pruned(child) for key, child in value.items() if child is not None}
    return [pruned(child) for child in value] if isinstance(value, list) else value


def compose(file: Path) -> Iterator[str]:
    if lacking := needs("check_jsonschema"):
        yield lacking
        return
    import check_jsonschema
    import jsonschema

    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(yaml.safe_load(file.read_text()), json.loads(schema.read_text()))
    yield "compose-spec's JSON Schema"


def ray(file: Path) -> Iterator[str]:
    ast.parse(file.read_text())
    yield "is Python; two_ray_nodes.sh runs one"


CHECKS = {".sky.yaml": skypilot, ".k8s.yaml": kubernetes, "compose.yaml": compose, ".ray.py": ray}


def main() -> int:
    failed = False
    for file in sorted(file for folder in sys.argv[1:] for file in Path(folder).iterdir()):
        check = next((check for ending, check in CHECKS.items() if file.name.endswith(ending)), None)
        if check is None:
            continue
        try:
            for finding in check(file):
                print(f"{file}: {finding}")
        except Exception as error:  # noqa: BLE001 - each package has errors of its own
            failed = True
            print(f"{file}: WRONG: {type(error).__name__}: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
