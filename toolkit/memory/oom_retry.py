"""OOM recovery: a step that runs out of memory is repeated in smaller pieces, and so are all later steps.

The data loader's micro-batches stay as they are. Each goes through the model in pieces, one after the other; the loss
is a mean over the tokens of the whole step, so the pieces are equivalent to a smaller micro-batch size. A step is
repeated from its first micro-batch, with gradients and RNG state restored: an aborted backward pass has accumulated
into some gradients and not into others.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.events import Message
from toolkit.formatting import counted
from toolkit.storage.metrics_log import MetricsLog
from toolkit.system.rng_state import RandomState

OTHER_OOM_MESSAGES = ("CUDA error: out of memory", "'out of memory'", "CUBLAS_STATUS_ALLOC_FAILED")
"""OOM messages of the CUDA runtime, NCCL and cuBLAS that accelerate does not recognize."""
PASSES, OPTIMIZER = "the forward or backward pass", "the optimizer"
"""Where in a step memory may run out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on a GPU, on the CPU, or one of Python's own."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, Exception):
        return False
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in OTHER_OOM_MESSAGES)
    # accelerate looks for words in the first argument, which of some errors of torch is no text.
    return told or (all(isinstance(one, str) for one in error.args[:1]) and bool(should_reduce_batch_size(error)))


class OutOfMemoryCaught:
    """Leaves the `with` block if an allocation fails, like contextlib.suppress.

    Recovery has to come after the block: inside an `except`, the traceback still holds the tensors.
    """

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        """Suppress an out-of-memory error."""
        return error is not None and is_out_of_memory(error)


def free_memory() -> None:
    """Collect garbage and empty the allocator's device cache."""
    gc.collect()
    clear_device_cache()


Compute = Callable[[Mapping[str, Any]], torch.Tensor]
"""Runs sequences forward and backward, and returns their share of the step's loss."""


class OOMRetry:
    """How many sequences of a micro-batch go through the model at a time: fewer, once memory has run out."""

    def __init__(
        self,
        *,
        micro_batch_size: int,
        sequences: int,
        log: MetricsLog,
        indivisible: str | None = None,
        unrepeatable: str | None = None,
        unrepeatable_in_optimizer: str | None = None,
    ) -> None:
        """Start with pieces of `sequences`.

        Args:
            micro_batch_size: sequences in a micro-batch of the data loader.
            sequences: sequences per piece; fewer than in a micro-batch if memory ran out before.
            log: hears of it whenever the pieces get smaller.
            indivisible: why this run's micro-batches cannot be cut, and what to do about it; None if they can.
            unrepeatable: why this attempt cannot repeat a step, so that the next one has to start with smaller pieces.
            unrepeatable_in_optimizer: the same, once the optimizer has begun its step.
        """
        self.micro_batch_size = micro_batch_size
        self.sequences = sequences
        self.log = log
        self.indivisible = indivisible
        self.unrepeatable = unrepeatable
        self.unrepeatable_in_optimizer = unrepeatable_in_optimizer

    def state_dict(self) -> dict[str, Any]:
        """Sequences per piece to resume with; None if memory never ran out, so that a resume may choose anew.

        The next attempt needs them before it makes the data loader, and passes them to the constructor.
        """
        return {"sequences": self.sequences if self.sequences < self.micro_batch_size else None}

    def halve(self, step: int, during: str) -> None:
        """Make the pieces smaller, from this step on.

        Raises:
            OutOfMemoryError: the step cannot be repeated in this attempt.
            TrainingError: not even one sequence at a time fits, or micro-batches cannot be cut.
        """
        why = self.unrepeatable or (self.unrepeatable_in_optimizer if during == OPTIMIZER else None)
        if why or self.indivisible or self.sequences == 1:
            raise self.end(step, during, why or "")
        self.sequences //= 2
        told = (
            f"out of memory in {during} of step {step:,}: the step is repeated, and training "
            f"continues, with micro-batches of {counted(self.sequences, 'sequence')}; the global batch stays the same"
        )
        line = {"step": step, "kind": "memory", "sequences": self.sequences, "during": during}
        self.log.write(line, Message(told))

    def end(self, step: int, during: str, why: str) -> TrainingError:
        """The error that ends an attempt which cannot repeat the step.

        Args:
            step: the number of the step.
            during: where memory ran out.
            why: why this attempt cannot repeat the step, while the next one can go on with smaller pieces.
        """
        if self.indivisible:
            return TrainingError(f"out of memory in {during} of step {step}: {self.indivisible}")
        if self.sequences == 1:
            return TrainingError(
                f"out of memory in {during} of step {step}, with a micro-batch of one sequence; `toolkit recipe plan` "
                f"shows what the memory goes to and which strategies need less: gradient-checkpointing, "
                f"chunked-loss; or take a shorter objective.block_size or a smaller model"
            )
        fewer = self.sequences // 2
        return OutOfMemoryError(
            f"out of memory in {during} of step {step}, and this attempt cannot repeat it: {why}; the same command "
            f"resumes from the last checkpoint, with micro-batches of {counted(fewer, 'sequence')}",
            sequences=fewer,
        )


class RepeatableStep:
    """An optimizer step's forward and backward passes, which are repeated in smaller pieces if memory runs out."""

    def __init__(self, retry: OOMRetry, number: int, *, compute: Compute, undo: Callable[[], None]) -> None:
        """`undo` removes the gradients and losses of the step, before it is repeated."""
        self.retry = retry
        self.number = number
        self.compute = compute
        self.undo = undo
        self._micro_batches: list[Mapping[str, Any]] = []
        self._random_state: RandomState
        """As it was before the first of them."""

    def run(self, micro_batch: Mapping[str, Any]) -> torch.Tensor:
        """Run a micro-batch forward and backward and return its loss; if memory runs out, repeat the step so far.

        Its tensors' first dimension is the sequences. If the step cannot be repeated, `OOMRetry.halve` raises an error.
        """
        if not self._micro_batches:
            self._random_state = RandomState.now()
        self._micro_batches.append(micro_batch)
        with OutOfMemoryCaught():
            return self._in_pieces(micro_batch)
        return self.again(PASSES)

    def again(self, during: str) -> torch.Tensor:
        """Run all micro-batches so far in smaller pieces, and return the sum of their losses."""
        while True:
            self.retry.halve(self.number, during)
            self.undo()
            free_memory()
            self._random_state.restore()
            with OutOfMemoryCaught():
                return torch.stack([self._in_pieces(micro_batch) for micro_batch in self._micro_batches]).sum()

    def _in_pieces(self, micro_batch: Mapping[str, Any]) -> torch.Tensor:
        whole, at_once = len(micro_batch["input_ids"]), self.retry.sequences
        if whole <= at_once:
            return self.compute(micro_batch)
        losses = [
            self.compute({name: tensor[start : start + at_once] for name, tensor in micro_batch.items()})
            for start in range(0, whole, at_once)
        ]
        return torch.stack(losses).sum()


class RetryingOptimizer(AcceleratedOptimizer):  # type: ignore[misc]  # accelerate has no annotations
    """An optimizer as accelerate wraps it, which repeats a step that runs out of memory, after the passes."""

    _is_accelerate_prepared = True  # or accelerate would wrap it once more

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        *,
        passes_again: Callable[[], None],
        half_moved: Callable[[], TrainingError],
    ) -> None:
        """`half_moved` makes the error to raise if some weights were updated and others not."""
        super().__init__(optimizer, device_placement=accelerator.device_placement, scaler=accelerator.scaler)
        self.passes_again = passes_again
        self.half_moved = half_moved

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take the step, however often memory runs out."""
        groups = self.param_groups
        while True:
            before = _marks(self.optimizer)
            had_state = {id(weight) for weight, state in self.state.items() if state}
            counts = [{name: value for name, value in group.items() if name != "params"} for group in groups]
            with OutOfMemoryCaught():
                self._step_once(closure)
                return
            if any(mark != before.get(name, 0) for name, mark in _marks(self.optimizer).items()):
                raise self.half_moved()
            # An optimizer would take a half-initialized state for a complete one.
            for weight in [weight for weight in self.state if id(weight) not in had_state]:
                del self.state[weight]
            for group, count in zip(groups, counts, strict=True):
                group.update(count)
            self.passes_again()

    def _step_once(self, closure: Callable[[], float] | None) -> None:
        if self.scaler is not None:
            super().step(closure)
        elif self.gradient_state.sync_gradients:
            # accelerate's step does the same after it has looked on the disk, twice, for a package that it supports.
            self.optimizer.step(closure)


def _marks(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], float]:
    """Marks of what a step changes in each weight and its state: tensor version counters, and numbers such as `step`.

    A new mark of 0 is state that was created but not used yet. Both kinds are needed: bitsandbytes bypasses the version
    counters but counts steps, and Muon does not count steps.
    """
    marks = {(id(weight), ""): float(weight._version) for group in optimizer.param_groups for weight in group["params"]}
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                marks[id(weight), name] = float(value._version)
            elif isinstance(value, (int, float)):
                marks[id(weight), name] = float(value)
    return marks
