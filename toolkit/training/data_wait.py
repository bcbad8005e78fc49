"""Between steps, waits for the data of the next ones; where it will not come, the run is saved and ends."""

from __future__ import annotations

import signal
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.api import Progress
from toolkit.data.streamed_blocks import SECONDS_BETWEEN_LOOKS, StreamedBlocks
from toolkit.system import distributed
from toolkit.system.signals import StopRequest

STEPS_AHEAD = 2
"""The step to come, and the one after it, of which the data loader already fetches a batch."""


class DataWait(TrainerCallback):
    """Lets no step begin whose blocks are not there, as a step that has begun could not be saved."""

    def __init__(self, blocks: StreamedBlocks, *, batch_size: int, stop: StopRequest, progress: Progress) -> None:
        """`batch_size` is that of a step in all processes; `stop` is requested when the data will not come."""
        self.blocks = blocks
        self.batch_size = batch_size
        self.stop = stop
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait, unless a signal asks to stop."""
        if state.global_step >= state.max_steps:
            return
        needed = self.blocks.needed((state.global_step + STEPS_AHEAD) * self.batch_size)
        arrival, first = self.blocks.arrival, self.blocks.arrival.there
        while True:
            if arrival.failure() and self.stop.signal_number is None:
                self.stop.signal_number = signal.SIGTERM  # saves, and ends the run
            missing, leaves = distributed.any_process(not arrival.has_come(needed), self.stop.signal_number is not None)
            if leaves or not missing:
                return
            self.progress("waiting for data", arrival.there - first, needed - first, unit="blocks")
            time.sleep(SECONDS_BETWEEN_LOOKS)
