"""What a step must not do to the weights: numbers that are none stop the run, and a spike is met as the recipe says.

Everything is judged before the optimizer takes the step, so that the last checkpoint is the last good one.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from toolkit import processes
from toolkit.blocks import PackedBlocks
from toolkit.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

OnSpike = Literal["stop", "skip-batch", "warn"]

HISTORY = 100
"""Steps whose losses say what is usual ..."""
FEWEST = 20
"""... once there are so many of them."""
DEVIATIONS = 6.0
"""A loss so many standard deviations above their mean is a spike ..."""
LEAST_RISE = 0.1
"""... if it is also above it by this share, for a plateau deviates by next to nothing."""
MOST_SKIPPED = 10
"""So many spikes one after the other are no spikes, but where the loss now is."""


@dataclass(frozen=True)
class Spike:
    """A step whose loss is far above those before it."""

    step: int
    loss: float
    mean: float
    """Of the losses before it."""
    deviation: float
    """Their standard deviation."""
    action: OnSpike
    batch: str
    """Which documents were in it."""


class Guard:
    """Looks at each step before it is taken."""

    def __init__(
        self,
        *,
        on_spike: OnSpike,
        scaled_gradients: bool,
        blocks: PackedBlocks,
        tokenizer: PreTrainedTokenizerBase,
        tell: Callable[[Spike], None],
    ) -> None:
        self.on_spike = on_spike
        # fp16's scaler meets infinite gradients in the ordinary course of things, and skips their step itself.
        self.scaled_gradients = scaled_gradients
        self.blocks = blocks
        self.tokenizer = tokenizer
        self.tell = tell
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._skipped = 0
        self.loss_before: torch.Tensor
        """The running sum of losses before the step; the step's own is what was added since."""
        self._numbers: list[torch.Tensor] = []

    def step_begins(self, loss_sum: torch.Tensor, block_numbers: list[torch.Tensor]) -> None:
        """Note the sum of losses before the step, and the blocks of its micro-batches."""
        # Copied, not read: reading would make a GPU wait.
        self.loss_before, self._numbers = loss_sum.clone(), block_numbers

    def judge(self, *, step: int, loss_sum: torch.Tensor, norm: torch.Tensor | float | None) -> bool:
        """Say whether the step must be left out.

        Raises:
            TrainingError: its loss or its gradient is not a finite number, or it is a spike at which to stop.
        """
        loss = float(loss_sum - self.loss_before)
        if not math.isfinite(loss):
            raise self._error(f"the loss of step {step} is not a finite number ({loss})", self._numbers)
        if norm is not None:
            self.check_gradient(step=step, norm=norm)
        return self._is_left_out(step, loss)

    def check_gradient(self, *, step: int, norm: torch.Tensor | float) -> None:
        """Refuse a gradient that is not finite, by its norm.

        Raises:
            TrainingError: it is not.
        """
        if not self.scaled_gradients and not math.isfinite(norm):
            raise self._error(f"the gradient of step {step} is not a finite number (norm {float(norm)})", self._numbers)

    def _is_left_out(self, step: int, loss: float) -> bool:
        mean, deviation = self._usual()
        (high,) = processes.any_of(loss > mean + max(DEVIATIONS * deviation, LEAST_RISE * mean))
        if not high:
            self._losses.append(loss)
            self._skipped = 0
            return False
        self.tell(Spike(step, loss, mean, deviation, self.on_spike, self._documents(self._numbers)))
        how = f"the loss of step {step} is {loss:.4g}, and that of the steps before it {mean:.4g} (+- {deviation:.2g})"
        if self.on_spike == "stop":
            raise self._error(how, self._numbers)
        if self.on_spike == "warn":
            self._losses.append(loss)
            return False
        self._skipped += 1
        if self._skipped > MOST_SKIPPED:
            raise self._error(f"{how}; {MOST_SKIPPED} batches in a row were skipped", self._numbers)
        return True

    def _usual(self) -> tuple[float, float]:
        if len(self._losses) < FEWEST:
            return math.inf, 0.0
        return statistics.fmean(self._losses), statistics.pstdev(self._losses)

    def state_check(self, step: int) -> Callable[[Iterable[tuple[str, torch.Tensor]]], None]:
        """The check of what is to be saved of this step: weights and the optimizer's state, by name.

        It may be made later and in another thread; it raises a TrainingError that names what is no finite number.
        """
        batch = self._numbers

        def check(named: Iterable[tuple[str, torch.Tensor]]) -> None:
            for name, tensor in named:
                # A sum is one pass and finds every NaN and infinity; the second look is for a sum that overflows.
                if tensor.is_floating_point() and not tensor.detach().sum().isfinite() and not tensor.isfinite().all():
                    raise self._error(f"after step {step}, {name} holds numbers that are not finite", batch)

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
            f"{what}; the run stops here, and the checkpoints before it stand as they were\n"
            f"  batch: {self._documents(batch)}\n"
            f"  try a lower learning_rate, more warmup_steps, max_grad_norm: 1, or precision: fp32; the same settings "
            f"would come here again.\n"
            f"  From an earlier step with other ones: toolkit recipe run NAME --from RUN@STEP --set ..."
        )

    def state(self) -> dict[str, Any]:
        """What a resume needs in order to judge as the run that never stopped would; hexadecimal, to the last bit."""
        return {"losses": [loss.hex() for loss in self._losses], "skipped": self._skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self._losses.extend(float.fromhex(loss) for loss in state["losses"])
        self._skipped = int(state["skipped"])


def named_state(state: Mapping[Any, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an optimizer's state."""
    import torch

    for of_parameter in state.values():
        for name, value in of_parameter.items():
            if isinstance(value, torch.Tensor):
                yield f"the optimizer's {name}", value


def _ranges(numbers: list[int]) -> str:
    """Numbers in order, runs of them as first-last: 3-5, 9."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1][1:] = [number]
        else:
            groups.append([number])
    return ", ".join("-".join(f"{number:,}" for number in group) for group in groups)
