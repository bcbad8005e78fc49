"""What a traced step leaves behind: when each byte came and went, and the work of each operation. No torch.

The bytes that are alive at any moment are a plain function of the size of the micro-batch, a + b x sequences, as
long as the operations are the same. So two traces give all sizes: `at_micro_batch`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

Phase = Literal["forward", "loss", "backward", "optimizer step", "evaluation"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Kind = Literal["weights", "gradients", "optimizer", "activations", "logits", "batch"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Work:
    """One operation."""

    phase: Phase
    precision: str
    """Number format of the inputs: float32, bfloat16, ..."""
    flops: int
    """0 for those that are no products of matrices."""
    moved_bytes: int
    """Read and written."""
    fresh_bytes: int = 0
    """Of the storages that the operation has made."""


@dataclass(frozen=True)
class Event:
    """An allocation, or with a negative size the end of one."""

    storage: int
    """The number of the storage, in the order of their allocation."""
    size: int
    phase: Phase


@dataclass(frozen=True)
class Moment:
    """The fullest moment of something."""

    phase: Phase
    held: Mapping[Kind, int]

    @property
    def size(self) -> int:
        """All bytes of tensors."""
        return sum(self.held.values())


@dataclass(frozen=True)
class Trace:
    """A step in the middle of a run: all that was alive when it began, and what happened in it."""

    micro_batch_size: int
    passes: int
    """Forward and backward passes that were traced: 1, or 2 for a step of any more, whose later ones are alike."""
    kinds: tuple[Kind, ...]
    """What each storage is, by number."""
    before: Mapping[int, int]
    """Sizes of the storages that the step finds, by number."""
    events: tuple[Event, ...]
    work: tuple[Work, ...]
    """Every operation, in order."""
    built_bytes: int
    """Of the model before any strategy has made it smaller."""
    parameters: int
    trained_parameters: int
    trained_bytes: int
    """Of the trained parameters."""
    saved_weights_bytes: int
    """Of the weights that a checkpoint holds: an adapter's alone, where there is one."""

    @property
    def lies_on_a_line(self) -> bool:
        """Whether traces of other sizes may be told from this one.

        Of one sequence alone a tensor may be contiguous that is not of two; and a step of one pass has one size.
        """
        return self.micro_batch_size > 1 and self.passes > 1

    def totals(self) -> dict[Kind, int]:
        """The whole size of weights, gradients and optimizer state, whether or not they are there at one moment."""
        sizes = dict(self.before)
        sizes |= {event.storage: event.size for event in self.events if event.size > 0}
        totals = dict.fromkeys(KINDS, 0)
        for storage, size in sizes.items():
            totals[self.kinds[storage]] += size
        return totals

    def fullest(self, *, rounding: int = 1) -> dict[Phase, Moment]:
        """The fullest moment of each phase, in the order of the phases.

        Args:
            rounding: what the allocator rounds each allocation up to.
        """
        held = dict.fromkeys(KINDS, 0)
        for storage, size in self.before.items():
            held[self.kinds[storage]] += _rounded(size, rounding)
        total = sum(held.values())
        peaks: dict[Phase, int] = {}
        moments: dict[Phase, Moment] = {}
        for event in self.events:
            size = _rounded(event.size, rounding)
            held[self.kinds[event.storage]] += size
            total += size
            if total > peaks.get(event.phase, -1):
                peaks[event.phase], moments[event.phase] = total, Moment(event.phase, dict(held))
        return {phase: moments[phase] for phase in PHASES if phase in moments}

    def operations(self, *, accumulation: int) -> Iterator[tuple[Work, int]]:
        """The operations of one step, alike ones together with how many they are; without the evaluation."""
        for work, count in Counter(self.work).items():
            if work.phase == "optimizer step":
                yield work, count
            elif work.phase != "evaluation":
                yield work, count * accumulation // self.passes

    def at_micro_batch(self, size: int, *, other: Trace) -> Trace | None:
        """The same step with micro-batches of another size, by the line through two traces.

        None where the two did not do the same operations in the same order: then there is no such line.
        """
        if not self._same_course(other):
            return None
        share = (size - self.micro_batch_size) / (other.micro_batch_size - self.micro_batch_size)

        def between(one: int, two: int) -> int:
            return round(one + (two - one) * share)

        events = tuple(
            replace(mine, size=between(mine.size, theirs.size))
            for mine, theirs in zip(self.events, other.events, strict=True)
        )
        work = tuple(
            replace(
                mine,
                flops=between(mine.flops, theirs.flops),
                moved_bytes=between(mine.moved_bytes, theirs.moved_bytes),
                fresh_bytes=between(mine.fresh_bytes, theirs.fresh_bytes),
            )
            for mine, theirs in zip(self.work, other.work, strict=True)
        )
        before = {storage: between(mine, other.before[storage]) for storage, mine in self.before.items()}
        return replace(self, micro_batch_size=size, before=before, events=events, work=work)

    def _same_course(self, other: Trace) -> bool:
        return (
            self.passes == other.passes
            and self.kinds == other.kinds
            and self.before.keys() == other.before.keys()
            and len(self.events) == len(other.events)
            and all(
                (mine.storage, mine.phase, mine.size > 0) == (theirs.storage, theirs.phase, theirs.size > 0)
                for mine, theirs in zip(self.events, other.events, strict=True)
            )
            and [(work.phase, work.precision) for work in self.work]
            == [(work.phase, work.precision) for work in other.work]
        )


def _rounded(size: int, rounding: int) -> int:
    return size if rounding == 1 else (1 if size > 0 else -1) * -(-abs(size) // rounding) * rounding
