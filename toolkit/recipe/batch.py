"""How several processes share a step: its sequences in micro-batches, and the model within hosts."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import RecipeError
from toolkit.recipe.resolve import ResolvedRecipe


@dataclass(frozen=True)
class BatchSplit:
    """How a step is split into micro-batches."""

    micro_batch_size: int
    accumulation: int
    processes: int

    @classmethod
    def of(cls, resolved: ResolvedRecipe, *, processes: int = 1) -> BatchSplit:
        """As the run will split it.

        Raises:
            RecipeError: the processes cannot share the global batch, or a step.
        """
        whole = resolved.training.global_batch_size
        micro = resolved.training.micro_batch_size or max(1, whole // processes)
        if whole % (micro * processes):
            raise resolved.recipe.error(
                f"{processes} processes with micro-batches of {micro} cannot share {whole} sequences per step evenly; "
                f"set global_batch_size to a multiple of {micro * processes}",
                ("training", "global_batch_size"),
            )
        if resolved.training.release_gradients and processes > 1:
            raise resolved.recipe.error(
                f"{processes} processes must all-reduce their gradients before a step, so none can be freed "
                f"earlier; train in one process, or remove release-gradients",
                resolved.set_at("release_gradients"),
            )
        return cls(micro, whole // (micro * processes), processes)


def check_shards(resolved: ResolvedRecipe, *, processes: int, per_host: int) -> None:
    """Check that a model that is to be sharded within hosts is sharded.

    Args:
        resolved: the recipe.
        processes: how many share a step.
        per_host: how many of them are on a host.

    Raises:
        RecipeError: a host has one of several processes.
    """
    if resolved.training.shard_within_host and per_host == 1 < processes:
        raise resolved.recipe.error(
            f"within_host: a host with one process has nothing to share, so the process would hold all of the weights "
            f"and the optimizer state; leave out within_host, to share them among all {processes:,} processes, or run "
            f"several on each host",
            resolved.set_at("shard_within_host"),
        )


def can_share(resolved: ResolvedRecipe, processes: int) -> bool:
    """Whether so many processes can share a step."""
    try:
        BatchSplit.of(resolved, processes=processes)
    except RecipeError:
        return False
    return True
