"""The length of a run, and the account of its data: worked out once the data is there, recorded and told."""

from __future__ import annotations

from toolkit.data.mixture import MixedData
from toolkit.data.packing import PackedData
from toolkit.data.streamed_blocks import StreamedData
from toolkit.events import DataPrepared, Listener, Message
from toolkit.recipe.length import steps_of, steps_per_epoch, total_steps
from toolkit.recipe.resolve import ResolvedRecipe, check_steps
from toolkit.storage.run_directory import DATA_FILE, RunDirectory
from toolkit.system import distributed
from toolkit.system.files import read_json, write_json
from toolkit.training.intervals import Intervals
from toolkit.training.short_blocks import ShortBlocks


def length_told(
    resolved: ResolvedRecipe, data: PackedData | MixedData | StreamedData, directory: RunDirectory, listener: Listener
) -> Intervals:
    """Compute the run's length, record it with the data account in the run's folder, and tell of both.

    Raises:
        RecipeError: the run is too short for its schedules.
    """
    prepared = data_prepared(resolved, data)
    plan, steps = prepared.mixture, prepared.total_steps
    budget = {"tokens_per_step": prepared.tokens_per_step, "epochs": prepared.epochs, "total_steps": steps}
    mixture = {"mixture": plan.as_dict()} if plan else {}
    if distributed.is_main_process():
        write_json(directory.folder / DATA_FILE, data.as_dict() | budget | mixture)
    check_steps(resolved.recipe, resolved.training, steps)
    listener(prepared)
    if (warmup := steps_of(resolved.training.warmup_steps, steps)) >= steps:
        listener(Message(f"the learning rate warms up over {warmup:,} steps, and the run ends at step {steps:,}"))
    if short := ShortBlocks.of(resolved.training, steps):
        listener(Message(f"up to step {short.steps:,}, blocks are cut into sequences of {short.length:,} tokens"))
    for caution in plan.worn() if plan else ():
        listener(Message(caution))
    if data.validation is None:
        where = "eval_fraction: 0.05 on a source's dataset" if plan else "dataset.eval_fraction: 0.05"
        listener(Message(f"nothing is held out, so there is no evaluation; {where} holds out 5%"))
    elif unheld := [name for name, source in data.account.sources.items() if not source["validation"]]:
        listener(Message(f"nothing is held out of {', '.join(unheld)}: no loss is measured there"))
    return Intervals.of(resolved.training, total_steps=steps, validation_blocks=len(data.validation or ()))


def account_refreshed(data: PackedData | MixedData | StreamedData, directory: RunDirectory) -> None:
    """Record the account of a stream at the end of its run, as less of it was known at the beginning."""
    if isinstance(data, StreamedData):
        write_json(directory.folder / DATA_FILE, read_json(directory.folder / DATA_FILE) | data.as_dict())


def data_prepared(resolved: ResolvedRecipe, data: PackedData | MixedData | StreamedData) -> DataPrepared:
    """The data account, and what it means for the steps of a run."""
    training, blocks = resolved.training, data.account.train.blocks
    steps = total_steps(training, block_size=data.account.block_size, blocks=blocks)
    return DataPrepared(
        account=data.account,
        tokens_per_step=training.global_batch_size * data.account.block_size,
        epochs=steps / steps_per_epoch(training, blocks),
        total_steps=steps,
        from_cache=data.from_cache,
        mixture=data.plan if isinstance(data, MixedData) else None,
    )
