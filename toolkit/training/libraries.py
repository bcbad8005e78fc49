"""Imports the libraries that training stands on, from torch to the Trainer, in one go."""

from __future__ import annotations

from toolkit.system.garbage_collection import held_for_imports


def import_libraries() -> None:
    """Import datasets, torch, transformers and the toolkit's trainer, with no garbage collection in between."""
    with held_for_imports("toolkit.training.trainer"):
        import datasets  # noqa: F401 - for what comes after

        import toolkit.training.trainer  # noqa: F401 - with torch, transformers, accelerate and peft
