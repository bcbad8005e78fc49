"""The weights in a checkpoint: written under the names that the model has for them, and loaded completely or refused.

transformers writes a model as its published checkpoint names it (a mixture of experts with a tensor for each expert,
`save_original_format`). Its Trainer loads a checkpoint by the names in the model, and only logs the ones that it does
not find, so that a resumed run would go on with the weights that it began with (transformers 5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from toolkit.errors import TrainingError
from toolkit.training.step_counts import CountingTrainer


def save_weights(model: torch.nn.Module, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write weights and config.

    Args:
        model: whose names the files have; an adapter's are those of peft.
        folder: where they go.
        weights: a copy of the model's state, in place of the state that it has now.
    """
    options: dict[str, Any] = {"save_original_format": False} if isinstance(model, PreTrainedModel) else {}
    save: Any = model.save_pretrained  # which has no annotations
    save(folder, state_dict=weights, **options)


class CompleteTrainer(CountingTrainer):
    """A Trainer that refuses a checkpoint which does not hold all of the model."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise what the Trainer would log.

        Raises:
            TrainingError: weights of the model are missing.
        """
        model: Any = self.model
        tied = {*(getattr(model, "all_tied_weights_keys", None) or ()), *(model._keys_to_ignore_on_save or ())}
        if missing := sorted(set(load_result.missing_keys) - tied):
            raise TrainingError(
                f"the checkpoint does not hold {missing[0]} and {len(missing) - 1:,} more weights of this "
                f"{type(model).__name__}, which would stay as they were when the run began; an earlier version wrote "
                f"it, and a run of this model has to start over: --fresh"
            )
        if load_result.missing_keys:
            model.tie_weights()
