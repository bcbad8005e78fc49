"""Where the time of a step goes: a torch profile of a few steps, summed up in ten lines."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import DeviceType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit import formatting
from toolkit.api import Device, Settings

TRACE_FILE = "profile.json.gz"
"""In the run's folder; chrome://tracing and https://ui.perfetto.dev show it."""
WARMUP_STEPS = 5
"""Steps before the profile: they compile, allocate, and read what is read once."""
SHARE_SHOWN, SHARE_WORTH_MENDING = 0.005, 0.05

PRODUCTS, ATTENTION, COMPILED = "matrix products", "attention", "compiled kernels"
LOSS, OPTIMIZER, DATA, COPIES, ELEMENTWISE = "loss", "optimizer", "data", "copies and casts", "other kernels"
WAITING = {"cpu": "Python between kernels", "cuda": "GPU idle", "mps": "GPU idle"}
RANGES = {
    "_InBlocks": ATTENTION,
    "Optimizer.step": OPTIMIZER,
    "Optimizer.zero_grad": OPTIMIZER,
    "enumerate(DataLoader)": DATA,
}
"""Ranges that torch records itself: everything inside counts as that."""
OPERATIONS = {
    LOSS: r"_log_softmax|nll_loss|cross_entropy|logsumexp",
    ATTENTION: r"attention|_flash|_efficient|_softmax",
    COMPILED: r"Torch-Compiled Region|CompiledFxGraph|CompiledFunction|triton_|cpp_fused|graph_",
    COPIES: r"copy_|_to_copy|clone|contiguous|Memcpy",
    PRODUCTS: r"mm$|matmul|linear|convolution",
}
"""Patterns in the names of operations; the first that is found decides."""
SYNCHRONIZATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Summary:
    """Seconds of a step by what they were spent on."""

    steps: int
    step_seconds: float
    seconds: dict[str, float]
    """In each step, the largest first; they add up to `step_seconds`."""
    synchronizations: float
    """Of a step; on a CPU there are none."""

    def lines(self, settings: Settings, device: Device) -> list[str]:
        """The summary for a person, with the option that would help most."""
        head = f"profile of {formatting.counted(self.steps, 'step')}, {_short(self.step_seconds)} each:"
        shown = {kind: s for kind, s in self.seconds.items() if s >= SHARE_SHOWN * self.step_seconds}
        width = max(map(len, shown))
        rows = [f"  {kind:{width}} {s / self.step_seconds:4.0%}  {_short(s)}" for kind, s in shown.items()]
        waits = [f"  {self.synchronizations:.0f} synchronizations a step"] if self.synchronizations >= 1 else []
        return [head, *rows, *waits, *self._cure(settings, device)]

    def _cure(self, settings: Settings, device: Device) -> list[str]:
        """For the largest part that an option can make smaller."""
        cures = _cures(settings, device)
        for kind, seconds in self.seconds.items():
            if kind in cures and seconds >= SHARE_WORTH_MENDING * self.step_seconds:
                return [f"the largest that an option reduces: {kind}; {cures[kind]}"]
        return ["no option would make this much faster: the model's own work is what it takes"]


def _cures(settings: Settings, device: Device) -> dict[str, str]:
    """What would reduce each part, where it is not set already."""
    cures = {
        OPTIMIZER: "a larger training.global_batch_size takes fewer optimizer steps for the same tokens",
        WAITING[device.kind]: "a larger training.micro_batch_size gives each kernel more to do",
    }
    if settings.precision == "fp32" and (device.bf16 or device.kind == "cuda"):
        cures[PRODUCTS] = "memory: [mixed-precision] computes them in 16 bits"
    if settings.torch_compile is not True:
        cures[ELEMENTWISE] = cures[COPIES] = cures[LOSS] = "training.torch_compile: true fuses these kernels"
    if settings.dataloader_num_workers == 0:
        cures[DATA] = "training.dataloader_num_workers: 1 prepares batches in a process of its own"
    return cures


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


class StepProfile(TrainerCallback):
    """Profiles a few steps; to come after the callback that decides what is due at a step's end."""

    def __init__(
        self, steps: int, *, trace: Path, settings: Settings, device: Device, tell: Callable[[str], object]
    ) -> None:
        self.steps = steps
        self.trace = trace
        self.settings = settings
        self.device = device
        self.tell = tell
        self._seen = self._profiled = 0
        self._profile: Any = None
        self._begun = 0.0
        self._is_done = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin after the warm-up, and end after the last step, or before an evaluation or a save."""
        self._seen += 1
        disturbed = control.should_evaluate or control.should_save or control.should_training_stop
        if self._profile is not None:
            self._profiled += 1
            if disturbed or self._profiled == self.steps:
                self._end()
        elif self._seen >= WARMUP_STEPS and not disturbed and not self._is_done:
            self._begin()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so if there was nothing to profile."""
        if not self._is_done:
            self.tell(
                f"no profile: it begins after {WARMUP_STEPS} steps, and needs one that no evaluation or save follows"
            )

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.kind == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities, acc_events=True)
        self._profile.start()
        self._begun = self._synchronized()

    def _end(self) -> None:
        seconds = (self._synchronized() - self._begun) / self._profiled
        self._profile.stop()
        summary = summed_up(
            self._profile.events(), steps=self._profiled, step_seconds=seconds, device_kind=self.device.kind
        )
        self._profile.export_chrome_trace(str(self.trace))
        self._profile, self._is_done = None, True
        self.tell("\n".join([*summary.lines(self.settings, self.device), f"every kernel: {self.trace}"]))

    def _synchronized(self) -> float:
        if self.device.kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def summed_up(events: Iterable[Any], *, steps: int, step_seconds: float, device_kind: str) -> Summary:
    """Sum up the events of a profile; what no event covers is waiting."""
    microseconds, synchronizations = Counter[str](), 0
    for event in events:
        if event.device_type != DeviceType.CPU:  # kernels; their time stands at the operation, too
            continue
        synchronizations += event.name in SYNCHRONIZATIONS
        spent = event.self_cpu_time_total if device_kind == "cpu" else event.self_device_time_total
        if spent:
            microseconds[_kind(event)] += spent
    seconds = {kind: spent / 1e6 / steps for kind, spent in microseconds.items()}
    seconds[WAITING[device_kind]] = max(0.0, step_seconds - sum(seconds.values()))
    largest_first = dict(sorted(seconds.items(), key=lambda entry: -entry[1]))
    return Summary(steps, step_seconds, largest_first, synchronizations / steps)


def _kind(event: Any) -> str:
    ancestor = event
    while ancestor is not None:
        for prefix, kind in RANGES.items():
            if ancestor.name.startswith(prefix):
                return kind
        ancestor = ancestor.cpu_parent
    found = (kind for kind, pattern in OPERATIONS.items() if re.search(pattern, event.name))
    return next(found, ELEMENTWISE)
