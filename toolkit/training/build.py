"""ResolvedRecipe and Components -> RecipeTrainer: of a run, of its trial save, and of its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.api import RunContext
from toolkit.data.mixture import MixedData
from toolkit.data.streamed_blocks import StreamedData
from toolkit.logs import libraries_quiet
from toolkit.memory.limits import WHY_INDIVISIBLE
from toolkit.memory.oom_retry import OOMRetry
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage.async_saver import AsyncSaver
from toolkit.storage.metrics_log import MetricsLog
from toolkit.system.signals import StopRequest
from toolkit.training.arguments import training_arguments
from toolkit.training.components import Components
from toolkit.training.loss_guard import LossGuard
from toolkit.training.short_blocks import ShortBlocks
from toolkit.training.status import TrainingStatus
from toolkit.training.trainer import RecipeTrainer

if TYPE_CHECKING:
    from transformers import TrainerCallback


def build_trainer(
    resolved: ResolvedRecipe,
    components: Components,
    context: RunContext,
    batch: BatchSplit,
    *,
    saver: AsyncSaver,
    log: MetricsLog,
    status: TrainingStatus,
    stop: StopRequest,
    callbacks: Sequence[TrainerCallback] = (),
    guard: type[LossGuard] = LossGuard,
    sequences: int | None = None,
    evaluation_sequences: int | None = None,
    total_steps: int | None = None,
    with_new_settings: bool = False,
) -> RecipeTrainer:
    """Build the trainer that a recipe asks for.

    `sequences` and `evaluation_sequences` are those of a forward pass, if memory has run out before, and else the
    micro-batch size. `total_steps`: the run's length, where it has been worked out; without it no step has short
    sequences. `with_new_settings`: the optimizer's state comes from another run's checkpoint.
    """
    training = resolved.training
    with libraries_quiet():
        return RecipeTrainer(
            resolved=resolved,
            components=components,
            context=context,
            arguments=training_arguments(
                training,
                output=log.run.checkpoints,
                micro_batch_size=batch.micro_batch_size,
                accumulation=batch.accumulation,
                device_kind=resolved.device.kind,
                evaluates=components.data.validation is not None,
                evaluation_sequences=evaluation_sequences,
                total_steps=total_steps,
                in_order=isinstance(components.data, MixedData | StreamedData),
            ),
            callbacks=list(callbacks),
            guard=guard(
                on_spike=training.on_spike,
                scaled_gradients=training.precision == "fp16",
                blocks=components.data.train,
                tokenizer=components.tokenizer,
                log=log,
            ),
            saver=saver,
            retry=OOMRetry(
                micro_batch_size=batch.micro_batch_size,
                sequences=sequences or batch.micro_batch_size,
                log=log,
                indivisible=WHY_INDIVISIBLE if training.release_gradients else None,
                unrepeatable="the run's other processes wait for it" if batch.processes > 1 else None,
                unrepeatable_in_optimizer="fp16 scaled its gradients" if training.precision == "fp16" else None,
            ),
            status=status,
            stop=stop,
            short=ShortBlocks.of(training, total_steps or 0),
            with_new_settings=with_new_settings,
        )
