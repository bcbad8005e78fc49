"""The record of a traced step: when each byte was allocated and freed, and the work of each operation. No torch.

The bytes that are live at any moment are a linear function of the micro-batch size, a + b x sequences, as long as the
operations are the same. So two traces give every size: `at_micro_batch`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

Phase = Literal["forward", "loss", "backward", "optimizer step", "evaluation"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Kind = Literal[
    "weights", "gathered weights", "gradients", "unsharded gradients", "optimizer", "activations", "logits", "batch"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Collective = Literal["all-reduce", "all-gather", "reduce-scatter"]
COLLECTIVES: tuple[Collective, ...] = get_args(Collective)


@dataclass(frozen=True)
class Work:
    """One operation."""

    phase: Phase
    precision: str
    """Number format of the inputs: float32, bfloat16, ..."""
    flops: int
    """0 for operations that multiply no matrices."""
    moved_bytes: int
    """Bytes read and written."""
    fresh_bytes: int = 0
    """Bytes of the storages that the operation allocated."""
    count: int = 1
    """How many times it is done: more than once in the chunks of a loss, of which one was traced for all."""


@dataclass(frozen=True)
class Communication:
    """One collective of a group of processes."""

    phase: Phase
    collective: Collective
    size: int
    """Bytes of the whole tensor: of what is reduced, or of what all have gathered."""
    ranks: range
    """The processes of the group; a range, so that those of a million take no more room than two."""


@dataclass(frozen=True)
class Event:
    """An allocation, or, with a negative size, its release."""

    storage: int
    """The number of the storage; storages are numbered in the order of allocation."""
    size: int
    phase: Phase


@dataclass(frozen=True)
class Moment:
    """The moment of peak memory, of a phase or of a step."""

    phase: Phase
    held: Mapping[Kind, int]

    @property
    def size(self) -> int:
        """Bytes of all tensors held."""
        return sum(self.held.values())


@dataclass(frozen=True)
class Trace:
    """A step in the middle of a run: the storages that were live when it began, and what happened in it."""

    micro_batch_size: int
    passes: int
    """Forward and backward passes that were traced: 1, or 2 for a step of two or more, whose later ones are alike."""
    kinds: tuple[Kind, ...]
    """What each storage is, by number."""
    before: Mapping[int, int]
    """Sizes of the storages that were live when the step began, by number."""
    events: tuple[Event, ...]
    work: tuple[Work, ...]
    """Every operation, in order, without the collectives."""
    communication: tuple[Communication, ...]
    """Every collective, in order; none where each process has all of the weights, because DDP is not traced."""
    shards: int
    """How many processes share the weights, gradients and optimizer state that one has without sharding."""
    built_bytes: int
    """Bytes of the model as built, before any memory strategy."""
    parameters: int
    trained_parameters: int
    trained_bytes: int
    """Bytes of the trained parameters."""
    saved_weights_bytes: int
    """Bytes of the weights in a checkpoint: only the adapter's, where there is one."""
    compiled: Trace | None = None
    """The same step by torch.compile."""

    @property
    def lies_on_a_line(self) -> bool:
        """Whether other micro-batch sizes may be interpolated from this trace.

        With a single sequence, tensors may be contiguous that otherwise are not; and without gradient accumulation
        there is only one size.
        """
        return self.micro_batch_size > 1 and self.passes > 1

    def totals(self) -> dict[Kind, int]:
        """The total bytes of each kind (weights, gradients, ...), whether or not they are ever live together."""
        sizes = dict(self.before)
        sizes |= {event.storage: event.size for event in self.events if event.size > 0}
        totals = dict.fromkeys(KINDS, 0)
        for storage, size in sizes.items():
            totals[self.kinds[storage]] += size
        return totals

    def fullest(self, *, rounding: int = 1) -> dict[Phase, Moment]:
        """The moment of peak memory of each phase, in the order of the phases.

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
        """The operations of one step without the evaluation; identical ones are grouped, with their count."""
        counts: Counter[Work] = Counter()
        for work in self.work:
            counts[work if work.count == 1 else replace(work, count=1)] += work.count
        for work, count in counts.items():
            if work.phase == "optimizer step":
                yield work, count
            elif work.phase != "evaluation":
                yield work, count * accumulation // self.passes

    def collectives(self, *, accumulation: int) -> Iterator[tuple[Communication, int]]:
        """The collectives of one step without the evaluation; identical ones are grouped, with their count."""
        for one, count in Counter(self.communication).items():
            if one.phase == "optimizer step":
                yield one, count
            elif one.phase != "evaluation":
                yield one, count * accumulation // self.passes

    def at_micro_batch(self, size: int, *, other: Trace) -> Trace | None:
        """The same step with another micro-batch size, on the line through two traces.

        None where the two did not run the same operations in the same order: then there is no such line.
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
        compiled = None
        if (
            self.compiled
            and other.compiled
            and not (compiled := self.compiled.at_micro_batch(size, other=other.compiled))
        ):
            return None
        return replace(self, micro_batch_size=size, before=before, events=events, work=work, compiled=compiled)

    def _same_course(self, other: Trace) -> bool:
        return (
            self.passes == other.passes
            and self.kinds == other.kinds
            and self.communication == other.communication
            and self.before.keys() == other.before.keys()
            and len(self.events) == len(other.events)
            and all(
                (mine.storage, mine.phase, mine.size > 0) == (theirs.storage, theirs.phase, theirs.size > 0)
                for mine, theirs in zip(self.events, other.events, strict=True)
            )
            and [(work.phase, work.precision, work.count) for work in self.work]
            == [(work.phase, work.precision, work.count) for work in other.work]
        )


def _rounded(size: int, rounding: int) -> int:
    return size if rounding == 1 else (1 if size > 0 else -1) * -(-abs(size) // rounding) * rounding
