"""OOM recovery: a step that runs out of memory is repeated in smaller pieces, and so are all later steps.

The data loader's micro-batches stay as they are. Each goes through the model in pieces, one after the other; the loss
is a mean over the tokens of the whole step, so the pieces are equivalent to a smaller micro-batch size. A step is
repeated from its first micro-batch, with gradients and RNG state restored: an aborted backward pass has accumulated
into some gradients and not into others.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.formatting import counted
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


@dataclass(frozen=True)
class SmallerBatch:
    """From this step on, micro-batches are run in smaller pieces."""

    step: int
    sequences: int
    """Per piece."""
    during: str


class OOMRetry:
    """Runs the micro-batches of a step, each in as many pieces as memory requires."""

    def __init__(
        self,
        *,
        micro_batch_size: int,
        sequences: int,
        tell: Callable[[SmallerBatch], None],
        indivisible: str | None = None,
        unrepeatable: str | None = None,
        unrepeatable_in_optimizer: str | None = None,
    ) -> None:
        """Start with pieces of `sequences`.

        Args:
            micro_batch_size: sequences in a micro-batch of the data loader.
            sequences: sequences per piece; fewer than in a micro-batch if memory ran out before.
            tell: is called whenever the pieces get smaller.
            indivisible: why this run's micro-batches cannot be cut, and what to do about it; None if they can.
            unrepeatable: why this attempt cannot repeat a step, so that the next one has to start with smaller pieces.
            unrepeatable_in_optimizer: the same, once the optimizer has begun its step.
        """
        self.micro_batch_size = micro_batch_size
        self.sequences = sequences
        self.tell = tell
        self.indivisible = indivisible
        self.unrepeatable = unrepeatable
        self.unrepeatable_in_optimizer = unrepeatable_in_optimizer
        self._micro_batches: list[Mapping[str, Any]] = []
        self._random_state: RandomState | None = None

    @property
    def limit(self) -> int | None:
        """Sequences per piece to resume with; None if memory never ran out, so that a resume may choose anew."""
        return self.sequences if self.sequences < self.micro_batch_size else None

    def step_begins(self) -> None:
        """Forget the micro-batches of the previous step."""
        self._micro_batches = []
        self._random_state = None

    def run(
        self,
        micro_batch: Mapping[str, Any],
        *,
        compute: Callable[[Mapping[str, Any]], torch.Tensor],
        undo: Callable[[], None],
        step: int,
    ) -> torch.Tensor:
        """Run a micro-batch forward and backward and return its loss; if memory runs out, repeat the step so far.

        Args:
            micro_batch: tensors whose first dimension is the sequences.
            compute: runs a piece forward and backward and returns its share of the step's loss.
            undo: removes the gradients and losses of the step, before it is repeated.
            step: the number of the step, for messages.

        Raises:
            OutOfMemoryError: the step cannot be repeated in this attempt.
            TrainingError: not even one sequence at a time fits, or micro-batches cannot be cut.
        """
        if self._random_state is None:
            self._random_state = RandomState.now()
        self._micro_batches.append(micro_batch)
        with OutOfMemoryCaught():
            return self._in_pieces(micro_batch, compute)
        return self.again(compute=compute, undo=undo, step=step, during=PASSES)

    def again(
        self, *, compute: Callable[[Mapping[str, Any]], torch.Tensor], undo: Callable[[], None], step: int, during: str
    ) -> torch.Tensor:
        """Run all micro-batches of the step so far in smaller pieces, and return the sum of their losses."""
        assert self._random_state is not None
        while True:
            self._halve(step, during)
            undo()
            free_memory()
            self._random_state.restore()
            with OutOfMemoryCaught():
                losses = [self._in_pieces(micro_batch, compute) for micro_batch in self._micro_batches]
                return torch.stack(losses).sum()

    def _in_pieces(
        self, micro_batch: Mapping[str, Any], compute: Callable[[Mapping[str, Any]], torch.Tensor]
    ) -> torch.Tensor:
        whole = len(micro_batch["input_ids"])
        if whole <= self.sequences:
            return compute(micro_batch)
        losses = [
            compute({name: tensor[start : start + self.sequences] for name, tensor in micro_batch.items()})
            for start in range(0, whole, self.sequences)
        ]
        return torch.stack(losses).sum()

    def _halve(self, step: int, during: str) -> None:
        why = self.unrepeatable or (self.unrepeatable_in_optimizer if during == OPTIMIZER else None)
        if why or self.indivisible or self.sequences == 1:
            raise self.end(step, during, why or "")
        self.sequences //= 2
        self.tell(SmallerBatch(step, self.sequences, during))

    def end(self, step: int, during: str, why: str) -> TrainingError:
        """The error that ends an attempt which cannot repeat the step.

        Args:
            step: the number of the step.
            during: where memory ran out.
            why: why this attempt cannot repeat the step, while the next one can go on with smaller pieces.
        """
        if self.indivisible:
            return TrainingError(f"memory ran out in {during} of step {step}: {self.indivisible}")
        if self.sequences == 1:
            return TrainingError(
                f"memory ran out in {during} of step {step}, with a single sequence at a time; `toolkit recipe plan` "
                f"shows what the memory goes to and which strategies need less: gradient-checkpointing, "
                f"chunked-loss; or take a shorter objective.block_size or a smaller model"
            )
        fewer = self.sequences // 2
        return OutOfMemoryError(
            f"memory ran out in {during} of step {step}, and this attempt cannot do it again: {why}; the same command "
            f"goes on from the last checkpoint, with {counted(fewer, 'sequence')} at a time",
            sequences=fewer,
        )


def survive_in(
    optimizer: torch.optim.Optimizer, *, passes_again: Callable[[], None], half_moved: Callable[[], TrainingError]
) -> None:
    """Make an optimizer repeat a step that runs out of memory, after recomputing the gradients in smaller pieces.

    Args:
        optimizer: its `step` is replaced.
        passes_again: recomputes the step's gradients in smaller pieces.
        half_moved: the error to raise if some weights were updated and others not.
    """
    plain = optimizer.step

    @functools.wraps(plain)
    def surviving(*args: Any, **kwargs: Any) -> Any:
        while True:
            before, had_state = _marks(optimizer), {id(weight) for weight, state in optimizer.state.items() if state}
            groups = optimizer.param_groups
            counts = [{name: value for name, value in group.items() if name != "params"} for group in groups]
            with OutOfMemoryCaught():
                return plain(*args, **kwargs)
            if any(mark != before.get(name, 0) for name, mark in _marks(optimizer).items()):
                raise half_moved()
            # An optimizer would take a half-initialized state for a complete one.
            for weight in [weight for weight in optimizer.state if id(weight) not in had_state]:
                del optimizer.state[weight]
            for group, count in zip(groups, counts, strict=True):
                group.update(count)
            passes_again()

    cast(Any, optimizer).step = surviving


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
