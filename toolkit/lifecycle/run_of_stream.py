"""What a run over a stream does besides: it waits for its data, and ends when the data will not come."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from toolkit.api import Progress
from toolkit.data.streamed_blocks import StreamedData
from toolkit.events import Listener, Message
from toolkit.system.signals import StopRequest
from toolkit.training.components import Components

if TYPE_CHECKING:
    from transformers import TrainerCallback


def end_preparation_with(stack: ExitStack, components: Components) -> None:
    """Let the process that prepares the rest end with the run."""
    if isinstance(components.data, StreamedData):
        stack.callback(components.data.close)


def await_first_steps(components: Components, step: int, *, batch_size: int, progress: Progress) -> None:
    """Wait for the data of the steps after this one; here, unlike in training, a signal ends the wait."""
    from toolkit.training.data_wait import STEPS_AHEAD

    if isinstance(components.data, StreamedData):
        components.data.train.wait((step + STEPS_AHEAD) * batch_size, progress)


def data_wait(
    components: Components, *, batch_size: int, stop: StopRequest, progress: Progress
) -> list[TrainerCallback]:
    """The callback that waits between the steps."""
    from toolkit.training.data_wait import DataWait

    if not isinstance(components.data, StreamedData):
        return []
    return [DataWait(components.data.train, batch_size=batch_size, stop=stop, progress=progress)]


def raise_failure(components: Components, step: int, listener: Listener) -> None:
    """Raise what has ended the preparation of the data too early, if anything has; this step is saved."""
    if isinstance(components.data, StreamedData) and (failure := components.data.failure()):
        listener(Message(f"step {step} is saved"))
        raise failure
