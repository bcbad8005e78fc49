"""Guards of the weights: non-finite values stop the run, and a loss spike is handled as the recipe says.

A step is judged before the optimizer takes it, so that the last checkpoint is the last good one. To read a loss from a
GPU is to wait for it: so there the device judges where it can tell the optimizer (`device_verdict`), and the host acts
on the verdict one step later. Elsewhere the host judges.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from toolkit.data.mixture import MixedBlocks
from toolkit.data.packed_dataset import PackedBlocks
from toolkit.data.streamed_blocks import StreamedBlocks
from toolkit.errors import TrainingError
from toolkit.events import Message
from toolkit.storage.metrics_log import MetricsLog
from toolkit.system import distributed
from toolkit.training.device_verdict import ASYNCHRONOUS_DEVICES, DeviceVerdict, leaves_steps_out
from toolkit.training.loss_spike import LOSS_HISTORY_STEPS, StepVerdict, verdict
from toolkit.training.sharding import local_part

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

OnSpike = Literal["stop", "skip-batch", "warn"]

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
        blocks: PackedBlocks | MixedBlocks | StreamedBlocks,
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
        self._begin_on_device: Callable[[Iterable[float]], DeviceVerdict] | None = None
        self._on_device: DeviceVerdict | None = None
        self._unread: tuple[int, list[torch.Tensor]] | None = None
        """The step that the device judges, and its blocks."""

    def judge_on_device(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Have the device judge, if the host need not wait for it otherwise, and the optimizer can be told there.

        With fp16 the scaler uses the optimizer's flag, and the host waits for that.
        """
        if device.type in ASYNCHRONOUS_DEVICES and not self.scaled_gradients and leaves_steps_out(optimizer):
            self._begin_on_device = partial(
                DeviceVerdict,
                optimizer,
                device=device,
                skips_spikes=self.on_spike != "warn",
                keeps_spikes=self.on_spike == "warn",
            )

    def step_begins(self, loss_sum: torch.Tensor, block_numbers: list[torch.Tensor]) -> None:
        """Note the running loss sum before the step, and the blocks of its micro-batches."""
        # Cloned, not read: reading would synchronize with the GPU.
        self.loss_before, self._numbers = loss_sum.clone(), block_numbers

    def judge(self, *, step: int, loss_sum: torch.Tensor, norm: torch.Tensor | float | None) -> bool:
        """Say whether the caller must skip the step; one that the device judges, the optimizer skips by itself.

        Raises:
            TrainingError: its loss or gradient is not finite, or it is a spike at which to stop. If the device judges,
                this is raised at the next step, or when that is asked to `settle`.
        """
        difference = loss_sum - self.loss_before
        if self._begin_on_device:
            self.settle()
            if self._on_device is None:
                self._on_device = self._begin_on_device(self._losses)  # as a checkpoint has left them
            self._on_device.judge(difference, norm)
            self._unread = step, self._numbers
            return False
        loss, norm = _read_together(difference, norm)
        self._check_finite(step, loss, norm, self._numbers)
        found = verdict(loss, norm, self._losses)
        (is_spike,) = distributed.any_process(found.is_spike)
        return self._act_on(replace(found, is_spike=is_spike), step, self._numbers)

    def settle(self) -> None:
        """Act on a verdict of the device that is not read yet: before its step is logged, evaluated or saved.

        Raises:
            TrainingError: as `judge`.
        """
        if self._on_device and self._unread:
            (step, batch), self._unread = self._unread, None
            found = self._on_device.read()
            self._check_finite(step, found.loss, found.norm, batch)
            self._act_on(found, step, batch)

    def check_gradient(self, *, step: int, norm: torch.Tensor | float) -> None:
        """Reject a non-finite gradient, by its norm; with fp16 the scaler does that.

        Raises:
            TrainingError: it is not finite.
        """
        self._check_finite(step, 0.0, norm, self._numbers)

    def _check_finite(
        self, step: int, loss: float, norm: torch.Tensor | float | None, batch: list[torch.Tensor]
    ) -> None:
        if not math.isfinite(loss):
            raise self._error(f"the loss of step {step} is not a finite number ({loss})", batch)
        if norm is not None and not self.scaled_gradients and not math.isfinite(norm):
            raise self._error(f"the gradient of step {step} is not a finite number (norm {float(norm)})", batch)

    def _act_on(self, found: StepVerdict, step: int, batch: list[torch.Tensor]) -> bool:
        """Report a spike, and say whether its step is left out."""
        if not found.is_spike:
            self._losses.append(found.loss)
            self._skipped = 0
            return False
        self._report(found, step, batch)
        how = f"the loss of step {step} is {found.loss:.4g}, and that of the steps before it {found.mean:.4g} "
        how += f"(+- {found.deviation:.2g})"
        if self.on_spike == "stop":
            raise self._error(how, batch)
        if self.on_spike == "warn":
            self._losses.append(found.loss)
            return False
        self._skipped += 1
        if self._skipped > MAX_CONSECUTIVE_SKIPS:
            raise self._error(f"{how}; {MAX_CONSECUTIVE_SKIPS} batches in a row were skipped", batch)
        return True

    def _report(self, found: StepVerdict, step: int, batch: list[torch.Tensor]) -> None:
        documents = self._documents(batch)
        line = {"step": step, "kind": "spike", "loss": found.loss, "mean": found.mean, "deviation": found.deviation}
        told = (
            f"step {step:,}: the loss is {found.loss:.4f} after {found.mean:.4f} (+- {found.deviation:.2g}) "
            f"in the steps before; {SPIKE_OUTCOMES[self.on_spike]}; {documents}"
        )
        self.log.write(line | {"action": self.on_spike, "batch": documents}, Message(told))

    def state_check(self, step: int) -> Callable[[Iterable[tuple[str, torch.Tensor]]], None]:
        """The check of what a save of this step writes: weights and optimizer state, by name.

        It may run later and in another thread; it raises a TrainingError that names the first non-finite tensor.
        """
        batch = self._numbers

        def check(named: Iterable[tuple[str, torch.Tensor]]) -> None:
            for name, tensor in named:
                tensor = local_part(tensor)
                # A sum is one pass and finds every NaN and infinity; the second check is for a sum that overflows.
                if tensor.is_floating_point() and not tensor.detach().sum().isfinite() and not tensor.isfinite().all():
                    raise self._error(f"after step {step}, {name} contains non-finite values", batch)

        return check

    def _documents(self, batch: list[torch.Tensor]) -> str:
        """The documents of a batch, in words."""
        numbers = [number for tensor in batch for number in tensor.flatten().tolist()]
        parts = self.blocks.parts(numbers) if numbers else []
        found = [
            f"documents {_ranges(blocks.documents.in_blocks(indices))} of the {where} "
            f"(blocks {_ranges(sorted(indices))})"
            for where, blocks, indices in parts
            if blocks.documents is not None
        ]
        if not found:
            return "unknown"
        excerpt = " ".join(str(self.tokenizer.decode(self.blocks[numbers[0]]["input_ids"][:24].tolist())).split())
        return f"{', '.join(found)}, from: {excerpt!r}"

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
