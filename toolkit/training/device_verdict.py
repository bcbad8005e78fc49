"""The loss guard's verdict on a step, reached on the GPU: the host does not wait for the step's loss and norm.

The history of losses and the threshold of a spike live on the device, as in OLMo-core's `SkipStepOptimizer`
(https://github.com/allenai/OLMo-core/blob/main/src/olmo_core/optim/skip_step_optimizer.py). A fused Adam leaves a step
out where its `found_inf` is 1, the flag by which a GradScaler has it do the same. The host reads the verdict a step
later.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from toolkit.system import distributed
from toolkit.training.loss_spike import (
    LOSS_HISTORY_STEPS,
    MIN_HISTORY_STEPS,
    MIN_RELATIVE_RISE,
    SPIKE_DEVIATIONS,
    StepVerdict,
)
from toolkit.training.sharding import is_sharded

ASYNCHRONOUS_DEVICES = frozenset({"cuda"})
"""Kinds of device that compute while the host goes on, and have the threshold's float64: MPS has none, and to read from
a CPU costs nothing."""


def leaves_steps_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer leaves a step out at a flag on the device.

    Any other has to be told by the host: Muon, those of other packages, and one inside another, which would average
    weights, or count a step, that was not taken. So has one of sharded weights, where the flag has not been tried.
    """
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and all(
        group["fused"] and not any(map(is_sharded, group["params"])) for group in optimizer.param_groups
    )


class DeviceVerdict:
    """Judges steps on the device, and tells the optimizer there."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        history: Iterable[float],
        *,
        device: torch.device,
        skips_spikes: bool,
        keeps_spikes: bool,
    ) -> None:
        """Take over the judging.

        Args:
            optimizer: one that `leaves_steps_out`.
            history: the losses so far, oldest first, at most `LOSS_HISTORY_STEPS`.
            device: the losses'.
            skips_spikes: whether the optimizer leaves out spikes too, and not only what is not finite.
            keeps_spikes: whether a spike's loss becomes part of the history.
        """
        losses = list(history)
        unknown = [float("nan")] * (LOSS_HISTORY_STEPS - len(losses))
        # Shifted with each step: in a ring the order of the sum, and with it the last bit of the threshold, would
        # depend on where the ring begins, and so on whether the run was resumed.
        self._history = torch.tensor([*unknown, *losses], dtype=torch.float64, device=device)
        self._skips_spikes, self._keeps_spikes = skips_spikes, keeps_spikes
        self._leave_out = torch.zeros((), device=device)
        optimizer.found_inf = self._leave_out  # type: ignore[attr-defined]  # a fused Adam looks for it
        self._has_norm = False
        on_gpu = device.type == "cuda"
        self._host_copy = torch.empty(5, dtype=torch.float64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None

    def judge(self, loss: torch.Tensor, norm: torch.Tensor | float | None) -> None:
        """Begin to judge a step that the optimizer has not taken yet."""
        self._has_norm = norm is not None
        loss = loss.detach().double()
        norm = torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float64, device=loss.device).detach()
        count = self._history.isfinite().sum()
        is_enough = count >= MIN_HISTORY_STEPS
        mean = torch.where(is_enough, self._history.nansum() / count, torch.inf)
        deviation = ((self._history - mean).square().nansum() / count).sqrt().where(is_enough, 0.0)
        rise = torch.maximum(SPIKE_DEVIATIONS * deviation, MIN_RELATIVE_RISE * mean)
        is_spike = distributed.any_process_on_device(loss > mean + rise)
        is_finite = loss.isfinite() & norm.isfinite()
        is_kept = is_finite if self._keeps_spikes else is_finite & ~is_spike
        self._history = torch.where(is_kept, torch.cat([self._history[1:], loss[None]]), self._history)
        self._leave_out.copy_(is_finite.logical_not() | is_spike if self._skips_spikes else is_finite.logical_not())
        self._host_copy.copy_(torch.stack([loss, norm, mean, deviation, is_spike.double()]), non_blocking=True)
        if self._copied:
            self._copied.record()

    def read(self) -> StepVerdict:
        """The verdict on the step judged last; waits for the device where that has not come to it yet."""
        if self._copied:
            self._copied.synchronize()
        loss, norm, mean, deviation, is_spike = self._host_copy.tolist()
        return StepVerdict(loss, norm if self._has_norm else None, mean, deviation, is_spike=bool(is_spike))
