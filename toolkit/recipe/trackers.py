"""Experiment trackers that the Trainer reports to: their names, and whether their packages are installed.

None of them is imported for this: some take seconds, and some open a connection.
"""

from __future__ import annotations

import importlib.util

TRACKER_PACKAGES: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Each name of transformers' `INTEGRATION_TO_CALLBACK`, and the modules that it imports."""
SUBSTITUTES = {"tensorboard": "tensorboardX"}
INSTALLED_AS = {"azureml": "azureml-core azureml-mlflow", "comet_ml": "comet-ml"}
"""What `pip install` takes, where it differs from the module's name."""


def missing(tracker: str) -> tuple[str, ...]:
    """The packages that are missing for this tracker, under the names that pip takes."""
    return tuple(
        INSTALLED_AS.get(module, module)
        for module in TRACKER_PACKAGES[tracker]
        if not any(importlib.util.find_spec(name) for name in (module, SUBSTITUTES.get(module)) if name)
    )
