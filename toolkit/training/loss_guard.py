"""Guards of the weights: non-finite values stop the run, and a loss spike is handled as the recipe says.

A step is judged before the optimizer takes it, so that the last checkpoint is the last good one.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from toolkit.data.packed_dataset import PackedBlocks
from toolkit.errors import TrainingError
from toolkit.events import Message
from toolkit.storage.metrics_log import MetricsLog
from toolkit.system import distributed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

OnSpike = Literal["stop", "skip-batch", "warn"]

LOSS_HISTORY_STEPS = 100
"""Number of recent losses whose mean and standard deviation define a spike ..."""
MIN_HISTORY_STEPS = 20
"""... once there are at least this many."""
SPIKE_DEVIATIONS = 6.0
"""A loss this many standard deviations above their mean is a spike ..."""
MIN_RELATIVE_RISE = 0.1
"""... if it also exceeds the mean by this fraction, because on a plateau the deviation is close to 0."""
MAX_CONSECUTIVE_SKIPS = 10
"""More spikes in a row than this are no spikes, but the level where the loss now is."""
SPIKE_OUTCOMES = {"stop": "the run stops", "skip-batch": "its batch is skipped", "warn": "training continues"}


class LossGuard:
    """Checks each step before the optimizer takes it."""

    def __init__(
        self,
        *,
        on_spike: OnSpike,
        scaled_gradients: bool,
        blocks: PackedBlocks,
        tokenizer: PreTrainedTokenizerBase,
        log: MetricsLog,
    ) -> None:
        self.on_spike = on_spike
        # fp16's GradScaler meets infinite gradients routinely, and skips their step itself.
        self.scaled_gradients = scaled_gradients
        self.blocks = blocks
        self.tokenizer = tokenizer
        self.log = log
        self._losses: deque[float] = deque(maxlen=LOSS_HISTORY_STEPS)
        self._skipped = 0
        self.loss_before: torch.Tensor
        """The Trainer's running loss sum before the step; the step's own loss is what was added since."""
        self._numbers: list[torch.Tensor] = []

    def step_begins(self, loss_sum: torch.Tensor, block_numbers: list[torch.Tensor]) -> None:
        """Note the running loss sum before the step, and the blocks of its micro-batches."""
        # Cloned, not read: reading would synchronize with the GPU.
        self.loss_before, self._numbers = loss_sum.clone(), block_numbers

    def judge(self, *, step: int, loss_sum: torch.Tensor, norm: torch.Tensor | float | None) -> bool:
        """Say whether the step must be skipped.

        Raises:
            TrainingError: its loss or gradient is not finite, or it is a spike at which to stop.
        """
        loss, norm = _read_together(loss_sum - self.loss_before, norm)
        if not math.isfinite(loss):
            raise self._error(f"the loss of step {step} is not a finite number ({loss})", self._numbers)
        if norm is not None:
            self.check_gradient(step=step, norm=norm)
        return self._is_left_out(step, loss)

    def check_gradient(self, *, step: int, norm: torch.Tensor | float) -> None:
        """Reject a non-finite gradient, by its norm; with fp16 the scaler does that.

        Raises:
            TrainingError: it is not finite.
        """
        if not self.scaled_gradients and not math.isfinite(norm):
            raise self._error(f"the gradient of step {step} is not a finite number (norm {float(norm)})", self._numbers)

    def _is_left_out(self, step: int, loss: float) -> bool:
        mean, deviation = self._usual()
        (high,) = distributed.any_process(loss > mean + max(SPIKE_DEVIATIONS * deviation, MIN_RELATIVE_RISE * mean))
        if not high:
            self._losses.append(loss)
            self._skipped = 0
            return False
        self._report(step, loss, mean, deviation)
        how = f"the loss of step {step} is {loss:.4g}, and that of the steps before it {mean:.4g} (+- {deviation:.2g})"
        if self.on_spike == "stop":
            raise self._error(how, self._numbers)
        if self.on_spike == "warn":
            self._losses.append(loss)
            return False
        self._skipped += 1
        if self._skipped > MAX_CONSECUTIVE_SKIPS:
            raise self._error(f"{how}; {MAX_CONSECUTIVE_SKIPS} batches in a row were skipped", self._numbers)
        return True

    def _report(self, step: int, loss: float, mean: float, deviation: float) -> None:
        batch = self._documents(self._numbers)
        line = {"step": step, "kind": "spike", "loss": loss, "mean": mean, "deviation": deviation}
        told = (
            f"step {step:,}: the loss is {loss:.4f} after {mean:.4f} (+- {deviation:.2g}) "
            f"in the steps before; {SPIKE_OUTCOMES[self.on_spike]}; {batch}"
        )
        self.log.write(line | {"action": self.on_spike, "batch": batch}, Message(told))

    def _usual(self) -> tuple[float, float]:
        if len(self._losses) < MIN_HISTORY_STEPS:
            return math.inf, 0.0
        return statistics.fmean(self._losses), statistics.pstdev(self._losses)

    def state_check(self, step: int) -> Callable[[Iterable[tuple[str, torch.Tensor]]], None]:
        """The check of what a save of this step writes: weights and optimizer state, by name.

        It may run later and in another thread; it raises a TrainingError that names the first non-finite tensor.
        """
        batch = self._numbers

        def check(named: Iterable[tuple[str, torch.Tensor]]) -> None:
            for name, tensor in named:
                # A sum is one pass and finds every NaN and infinity; the second check is for a sum that overflows.
                if tensor.is_floating_point() and not tensor.detach().sum().isfinite() and not tensor.isfinite().all():
                    raise self._error(f"after step {step}, {name} contains non-finite values", batch)

        return check

    def _documents(self, batch: list[torch.Tensor]) -> str:
        """The documents of a batch, in words."""
        numbers = [number for tensor in batch for number in tensor.flatten().tolist()]
        if not numbers or self.blocks.documents is None:
            return "unknown"
        rows = self.blocks.documents.in_blocks(numbers)
        excerpt = " ".join(str(self.tokenizer.decode(self.blocks.tokens[numbers[0]][:24].tolist())).split())
        return f"documents {_ranges(rows)} of the training split (blocks {_ranges(sorted(numbers))}), from: {excerpt!r}"

    def _error(self, what: str, batch: list[torch.Tensor]) -> TrainingError:
        return TrainingError(
            f"{what}; the run stops here; earlier checkpoints are unaffected\n"
            f"  batch: {self._documents(batch)}\n"
            f"  try a lower learning_rate, more warmup_steps, max_grad_norm: 1, or precision: fp32; the same settings "
            f"would come here again.\n"
            f"  From an earlier step with other ones: toolkit recipe run NAME --from RUN@STEP --set ..."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to judge as an uninterrupted run would; floats in hexadecimal, exact to the last bit."""
        return {"losses": [loss.hex() for loss in self._losses], "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._losses.extend(float.fromhex(loss) for loss in state["losses"])
        self._skipped = int(state["skipped"])


def _read_together(loss: torch.Tensor, norm: torch.Tensor | float | None) -> tuple[float, float | None]:
    """Both as numbers; one wait for the GPU instead of two."""
    import torch

    if not isinstance(norm, torch.Tensor):
        return float(loss), norm
    both = torch.stack([loss.double(), norm.to(loss.device).double()])
    return tuple(both.tolist())


def named_state(state: Mapping[Any, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in an optimizer's state, with their names."""
    import torch

    for of_parameter in state.values():
        for name, value in of_parameter.items():
            if isinstance(value, torch.Tensor):
                yield f"the optimizer's {name}", value


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as text, consecutive ones as a range: 3-5, 9."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1][1:] = [number]
        else:
            groups.append([number])
    return ", ".join("-".join(f"{number:,}" for number in group) for group in groups)
