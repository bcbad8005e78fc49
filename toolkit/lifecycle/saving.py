"""How an attempt saves: in the background, or while training waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.events import Message
from toolkit.lifecycle.start import Start
from toolkit.recipe.settings import Training
from toolkit.storage.async_saver import AsyncSaver
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed

if TYPE_CHECKING:
    import torch


def saver_of(
    run: RunDirectory, training: Training, model: torch.nn.Module, start: Start, log: MetricsLog
) -> AsyncSaver:
    """The saver of an attempt, in the background if the recipe says so, or if it does not say and a copy fits.

    Shards are never saved in the background: the processes talk to each other while they write them, and a second
    conversation at the same time would mix with that of the training step.
    """
    from toolkit.storage.host_copy import fits_in_memory

    in_background, why = training.save_in_background, "background saves need memory for a copy of the state"
    if training.shard and distributed.world_size() > 1:
        in_background, why = False, "the processes write their shards together"
    if in_background is None:
        in_background = distributed.by_main_process(
            lambda: fits_in_memory(model, optimizer_states=training.optimizer_states)
        )
    if not in_background:
        log.listener(Message(f"training waits for each save: {why}"))
    return AsyncSaver(
        run,
        keep=training.save_total_limit,
        keep_every=training.keep_every,
        in_background=in_background,
        log=log,
        resumed_from=start.step if start.folder else None,
    )
