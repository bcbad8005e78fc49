"""The trace of a compiled step, from that of an eager one: what torch.compile fuses crosses memory once.

Between two matrix products or attentions, all operations become one kernel: it reads what was there before, writes what
is needed after, and keeps the rest in registers. What backward would read of that rest, it computes again from what the
kernel has read, where that is smaller, as AOTAutograd's partitioner does
(https://dev-discuss.pytorch.org/t/min-cut-optimal-recomputation-i-e-activation-checkpointing-with-aotautograd/467).
Embedding, final norm and the sums of gradients are taken to be compiled too; the optimizer and the evaluation are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.planning.trace import Event, Trace, Work


@dataclass(frozen=True)
class Access:
    """Which storages an operation reads and writes, by number, and how many bytes of each."""

    reads: Mapping[int, int]
    writes: Mapping[int, int]
    computes_forward: bool
    """In a forward pass, or where gradient checkpointing repeats one."""


def fused(trace: Trace, accesses: Sequence[Access]) -> Trace:
    """The trace of the same step compiled; `accesses` are those of `trace.work`."""
    return _Fusion(trace, accesses).trace()


class _Fusion:
    """The kernels of a compiled step, and the storages that it does without."""

    def __init__(self, eager: Trace, accesses: Sequence[Access]) -> None:
        self.eager = eager
        self.accesses = accesses
        self.kernels: list[list[int]] = []
        """The operations of each fused kernel, in order."""
        self.kernel_of: dict[int, int] = {}
        self.made_by: dict[int, int] = {}
        self.read_by: dict[int, list[int]] = defaultdict(list)
        """The operation that makes each storage, and those that read it."""
        self.size = {event.storage: event.size for event in eager.events if event.size > 0} | dict(eager.before)
        self.released = {event.storage: at for at, event in enumerate(eager.events) if event.size < 0}
        """At which event."""
        self.inside: dict[int, Mapping[int, int]] = {}
        """Storages that a compiled step does without, and what backward reads in place of each."""
        self.kept_until: dict[int, int] = {}
        """At which event the storages are released that backward reads in place of others."""
        for operation, access in enumerate(accesses):
            for storage in access.reads:
                self.read_by[storage].append(operation)
            for storage in access.writes.keys() - eager.before.keys():
                self.made_by.setdefault(storage, operation)
        self._divide()
        self._postpone()
        for number in range(len(self.kernels)):
            self._look_inside(number)

    def _divide(self) -> None:
        last: tuple[object, ...] | None = None
        for operation in range(len(self.accesses)):
            kind = self._kind(operation)
            if kind is not None:
                if kind != last:
                    self.kernels.append([])
                self.kernels[-1].append(operation)
                self.kernel_of[operation] = len(self.kernels) - 1
            last = kind

    def _postpone(self) -> None:
        """Move operations past products into the only kernel that waits for them: SiLU past the product beside it."""
        for operation in sorted(self.kernel_of, reverse=True):
            access, number = self.accesses[operation], self.kernel_of[operation]
            readers = {
                reader
                for storage in access.writes
                for reader in self.read_by[storage]
                if reader > operation and self.accesses[reader].computes_forward == access.computes_forward
            }
            kernels = {self.kernel_of.get(reader) for reader in readers}
            only = kernels.pop() if len(kernels) == 1 else None
            is_own = all(self.made_by.get(storage) == operation for storage in access.writes)
            if only is not None and only != number and is_own and self._kind(operation) == self._kind(min(readers)):
                self.kernels[number].remove(operation)
                self.kernels[only] = sorted([operation, *self.kernels[only]])
                self.kernel_of[operation] = only
        self.kernels = [kernel for kernel in self.kernels if kernel]
        self.kernel_of = {operation: number for number, kernel in enumerate(self.kernels) for operation in kernel}

    def _kind(self, operation: int) -> tuple[object, ...] | None:
        """What operations of one kernel have in common; None for one that is a kernel alone."""
        work = self.eager.work[operation]
        if work.flops or work.phase in ("optimizer step", "evaluation"):
            return None
        return work.phase, self.accesses[operation].computes_forward, work.count

    def _look_inside(self, number: int) -> None:
        """Find out what one kernel needs no memory for."""
        for_backward: list[int] = []
        for storage in self._made_in(number):
            if not self._is_passing(storage):
                continue
            readers = [operation for operation in self.read_by[storage] if self.kernel_of.get(operation) != number]
            if not readers:
                self.inside[storage] = {}
            elif self.accesses[self.kernels[number][0]].computes_forward and all(map(self._is_fused_backward, readers)):
                for_backward.append(storage)
        if not for_backward:
            return
        inputs, needed = self._reads(number), max(map(self._last_read, for_backward))
        # Gathered weights are released too, and come back by themselves.
        to_keep = [storage for storage in inputs if self._is_passing(storage) and self._last_read(storage) < needed]
        if sum(self.size[storage] for storage in to_keep) < sum(self.size[storage] for storage in for_backward):
            self.inside |= dict.fromkeys(for_backward, inputs)
            until = max(self.released[storage] for storage in for_backward)
            self.kept_until |= {storage: max(until, self.kept_until.get(storage, 0)) for storage in to_keep}

    def _is_passing(self, storage: int) -> bool:
        """Whether it is made and released between one step's beginning and its end."""
        return self.eager.kinds[storage] in ("activations", "logits") and storage in self.released

    def _last_read(self, storage: int) -> int:
        """The end of the kernel that reads it last."""
        last = max(self.read_by[storage])
        return self.kernels[self.kernel_of[last]][-1] if last in self.kernel_of else last

    def _is_fused_backward(self, operation: int) -> bool:
        return operation in self.kernel_of and not self.accesses[operation].computes_forward

    def _made_in(self, number: int) -> list[int]:
        kernel = self.kernels[number]
        return [s for operation in kernel for s in self.accesses[operation].writes if self.made_by.get(s) == operation]

    def _reads(self, number: int) -> dict[int, int]:
        """What a kernel reads that it has not made, with the bytes."""
        made = set(self._made_in(number))
        read: dict[int, int] = {}
        for operation in self.kernels[number]:
            for storage, size in self.accesses[operation].reads.items():
                for source, bytes_read in (self.inside.get(storage) or {storage: size}).items():
                    if source not in made:
                        read[source] = max(bytes_read, read.get(source, 0))
        return read

    def _work(self, number: int) -> Work:
        kernel = self.kernels[number]
        written: dict[int, int] = {}
        for operation in kernel:
            for storage, size in self.accesses[operation].writes.items():
                if storage not in self.inside:
                    written[storage] = max(size, written.get(storage, 0))
        fresh = sum(self.size[storage] for storage in self._made_in(number) if storage not in self.inside)
        moved = sum(self._reads(number).values()) + sum(written.values())
        return replace(self.eager.work[kernel[0]], moved_bytes=moved, fresh_bytes=fresh)

    def trace(self) -> Trace:
        firsts = {kernel[0]: number for number, kernel in enumerate(self.kernels)}
        work = (
            self._work(firsts[operation]) if operation in firsts else alone
            for operation, alone in enumerate(self.eager.work)
            if operation in firsts or operation not in self.kernel_of
        )
        later: dict[int, list[Event]] = defaultdict(list)
        events: list[Event] = []
        for at, event in enumerate(self.eager.events):
            if event.storage not in self.inside:
                if event.size < 0 and event.storage in self.kept_until:
                    kept = self.eager.events[self.kept_until[event.storage]]
                    later[self.kept_until[event.storage]].append(replace(event, phase=kept.phase))
                else:
                    events.append(event)
            events += later.pop(at, [])
        return replace(self.eager, events=tuple(events), work=tuple(work))
