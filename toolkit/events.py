"""Events of a run, for whoever shows them, and its result at the end.

`lifecycle.launch.run` passes them to one listener; the command line prints them, a test collects them. Frozen data,
no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.data.mixture_plan import MixturePlan
    from toolkit.data.stats import DataAccount


@dataclass(frozen=True)
class Message:
    """A message for the person who watches."""

    text: str


@dataclass(frozen=True)
class AttemptBegun:
    """The run has a folder, and this process is about to work on it."""

    log: Path
    """The run's log file."""


@dataclass(frozen=True)
class DataPrepared:
    """The data is packed; sent before the first step."""

    account: DataAccount
    tokens_per_step: int
    epochs: float
    """Passes over the training tokens that the run's steps amount to."""
    total_steps: int
    from_cache: bool
    mixture: MixturePlan | None = None
    """What the run takes of each source, if there are several."""


@dataclass(frozen=True)
class Progressed:
    """Progress of a phase that takes more than a few seconds: reading, tokenizing, an evaluation, a plan."""

    phase: str
    """In one or two words: "tokenizing"."""
    done: int
    total: int | None
    unit: str
    """What is counted, in the plural: "documents"; empty if nothing is."""
    seconds: float
    """Since the phase began."""
    detail: str = ""
    """What else is worth knowing, in words."""

    @property
    def per_second(self) -> float:
        """Average rate, in units per second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """Time left at that rate; None if the total is unknown or nothing is done yet."""
        if self.total is None or not self.per_second:
            return None
        return max(0, self.total - self.done) / self.per_second


@dataclass(frozen=True)
class TrainingStarted:
    """The first step is about to be taken."""

    folder: Path
    total_steps: int
    resumed_from: int | None
    """The step of the checkpoint that the run resumes from; None at the beginning."""
    parameters: int
    trainable_parameters: int
    device: str
    precision: str


@dataclass(frozen=True)
class StepDone:
    """An optimizer step was taken."""

    step: int
    total_steps: int
    tokens_seen: int
    tokens_per_second: float
    """Of training alone, excluding evaluations and saves; over the last steps."""
    mfu: float | None
    """Model FLOPs utilization, over the last steps; None if the model's FLOPs are unknown (quantized weights)."""
    remaining_seconds: float | None
    """Of the run, including the evaluations and saves still to come; None while unknown."""
    loss: float | None
    """Mean over the steps since the last logged one; None on steps that are not logged."""
    learning_rate: float | None
    last_save_step: int | None


@dataclass(frozen=True)
class Evaluated:
    """The held-out loss was measured."""

    step: int
    eval_loss: float
    perplexity: float
    by_source: Mapping[str, float] = field(default_factory=dict)
    """The loss on each source of a mixture."""


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is safe on disk."""

    step: int
    folder: Path
    seconds: float
    """From the start of the save until it was safe."""
    stall_seconds: float
    """How long training waited for it."""


@dataclass(frozen=True)
class Exported:
    """An exporter has finished."""

    exporter: str
    folder: Path | None


Event = (
    Message
    | AttemptBegun
    | DataPrepared
    | Progressed
    | TrainingStarted
    | StepDone
    | Evaluated
    | CheckpointSaved
    | Exported
)
Listener = Callable[[Event], None]

MOST_EVENTS_PER_SECOND = 5
"""Limit on how often progress within a phase is passed on; its first and last always are."""


class ProgressReporter:
    """A `toolkit.api.Progress` that passes progress on to a listener, rate-limited."""

    def __init__(self, listener: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener = listener
        self._clock = clock
        self._phase: str | None = None
        self._done = 0
        self._begun = self._told = 0.0

    def __call__(
        self, phase: str, done: int = 0, total: int | None = None, *, unit: str = "", detail: str = ""
    ) -> None:
        """Pass on the progress of the phase; a smaller `done` than before starts another phase of the same name."""
        now = self._clock()
        if begins := phase != self._phase or done < self._done:
            self._phase, self._begun = phase, now
        self._done = done
        if begins or done == total or now - self._told >= 1 / MOST_EVENTS_PER_SECOND:
            self._told = now
            self._listener(Progressed(phase, done, total, unit, now - self._begun, detail))


@dataclass(frozen=True)
class RunResult:
    """The result of a run."""

    folder: Path
    name: str
    already_finished: bool
    """Whether this command found the run finished, and changed nothing."""
    steps: int
    tokens_seen: int
    seconds: float
    """Time trained, over all attempts."""
    eval_loss: float | None
    perplexity: float | None
    sample: str | None
    """A generated text, or a masked model's sentence with its mask filled in."""
    peak_memory_bytes: int
    """Peak memory of the main process in the last attempt, on the device that trains."""
    planned_memory_bytes: int | None
    """The planned peak; None if no plan was made."""
    memory_was_short: bool
    """Whether freed memory was returned at once, as plans assume; where there is room, the C library retains it."""
    model_folder: Path | None
    load_line: str | None
    """The line of Python that loads the model."""
    eval_loss_by_source: Mapping[str, float] = field(default_factory=dict)
    """The held-out loss on each source of a mixture."""
    not_exported: Sequence[str] = ()
    """The recipe's exporters that have not run on a run that was already finished."""
