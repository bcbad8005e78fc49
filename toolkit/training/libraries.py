"""Imports the libraries that training stands on, from torch to the Trainer, in one go."""

from __future__ import annotations

from importlib import import_module

from toolkit.system.garbage_collection import held_for_imports

TRAINER = "toolkit.training.trainer"
"""With torch, transformers, accelerate and peft."""


def import_libraries() -> None:
    """Import datasets, torch, transformers and the toolkit's trainer, with no garbage collection in between."""
    with held_for_imports(TRAINER):
        import_module("datasets")
        import_module(TRAINER)
