"""The `training` section of a recipe: the settings of the run that belong to no plugin.

All but the trackers are part of the plugin API (`toolkit.api.Settings`). Of third-party packages, only pydantic is
imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from toolkit.api import Settings
from toolkit.errors import nearest
from toolkit.recipe import trackers

MOVED = {"loss_chunk_size": "chunked-loss", "stochastic_rounding": "weights-in-bf16"}
"""Settings of earlier versions that a memory strategy set, and the strategy that now does the work without them."""


class UnfitSettingError(ValueError):
    """A setting that is incompatible with the others."""

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.setting = setting


def _listed(value: Any) -> Any:
    """A bare name is a list of one; `none` is transformers' name for an empty one."""
    return () if value == "none" else (value,) if isinstance(value, str) else value


def _known(name: str) -> str:
    if name not in trackers.TRACKER_PACKAGES:
        raise ValueError(f"no tracker is named {name!r}; {nearest(name, trackers.TRACKER_PACKAGES)}")
    return name


Trackers = Annotated[
    tuple[Annotated[str, AfterValidator(_known)], ...],
    BeforeValidator(_listed, json_schema_input_type=tuple[str, ...] | str),
]


class Training(Settings):
    """How long, how fast, how often. Memory strategies may set some of these; `recipe show --resolved` says which."""

    report_to: Trackers = ()
    """Experiment trackers that the Trainer supports: tensorboard, wandb, mlflow, ... Their packages must be installed.
    If not given, nothing is reported, even if their environment variables are set."""

    @property
    def optimizer_states(self) -> int:
        """Tensors in a checkpoint per trained weight: two moments, as of Adam; with an EMA, it and that weight, too."""
        return 2 if self.ema_width is None else 4

    @model_validator(mode="after")
    def _released_gradients_are_not_needed_together(self) -> Self:
        cures = {
            "max_grad_norm: 0 (clipping needs the norm of all gradients)": self.max_grad_norm > 0,
            f"micro_batch_size: {self.global_batch_size}, the global batch (accumulation keeps all gradients)": (
                self.micro_batch_size not in (None, self.global_batch_size)
            ),
            "precision: bf16 or fp32 (fp16's loss scaler checks all gradients before a step)": self.precision == "fp16",
        }
        if self.release_gradients and any(cures.values()):
            needed = "; ".join(cure for cure, missing in cures.items() if missing)
            raise UnfitSettingError(
                f"each gradient is freed before the next is computed, so this needs {needed}",
                setting="release_gradients",
            )
        return self

    @model_validator(mode="after")
    def _shards_suit_the_optimizer_and_the_precision(self) -> Self:
        if self.shard and self.precision == "fp16":
            raise UnfitSettingError("fp16's loss scaler knows no shards; use precision: bf16 or fp32", setting="shard")
        if self.shard and self.optim is not None:
            raise UnfitSettingError(
                f"{self.optim} needs whole matrices, and here each process has a part of them; use optimizer: adamw or "
                f"muon, whose state is sharded as well",
                setting="shard",
            )
        return self

    @model_validator(mode="after")
    def _micro_batch_divides_global(self) -> Self:
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            near = [size for size in range(1, self.global_batch_size + 1) if self.global_batch_size % size == 0]
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide global_batch_size "
                f"{self.global_batch_size}; these do: {', '.join(map(str, near))}"
            )
        return self
