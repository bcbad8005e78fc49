"""Records when every storage is allocated and freed, and what each operation computes and moves.

A dispatch mode sees everything that autograd, autocast and gradient checkpointing really do, in the backward pass too.
What it cannot see is the inside of a kernel: scratch memory there is a few kilobytes per thread, because composite
operations (attention without a fused kernel, cross entropy) arrive here already decomposed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from toolkit.api import VOCABULARY_MULTIPLE
from toolkit.errors import PlanTooLongError
from toolkit.formatting import duration
from toolkit.planning.fusion import Access, fused
from toolkit.planning.trace import Collective, Communication, Event, Kind, Phase, Trace, Work
from toolkit.storage import checkpoint

OFF_DEVICE = "meta"
"""Where a strategy puts fake tensors that would leave the device: copies on the host, say."""
MAX_TRACE_SECONDS = 300.0
"""Limit on CPU time: a model of 32 layers takes about ten seconds, and one of thousands would take hours."""
SAME_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Operations for which torch has no FLOP formula, mapped to ones with a formula and the same leading arguments."""
COLLECTIVE_NAMES: tuple[tuple[str, Collective], ...] = (
    ("allreduce", "all-reduce"), ("allgather", "all-gather"), ("reducescatter", "reduce-scatter"),
)  # fmt: skip
"""What an operation's name has in it, without underscores; broadcasts and barriers are not part of a step."""


class StorageTracker(TorchDispatchMode):
    """Keeps the record of a step while it is the active dispatch mode."""

    def __init__(self, *, vocabulary_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        self.phase: Phase = "forward"
        self.repetitions = 1
        """How many times each operation is done that is recorded now; its storages are those of one time."""
        self._vocabulary_sizes = {vocabulary_size, vocabulary_size + -vocabulary_size % VOCABULARY_MULTIPLE}
        self._kinds: list[Kind] = []
        self._alive: dict[int, tuple[int, int, weakref.ref[torch.UntypedStorage]]] = {}
        """By address: number, size, and a weak reference whose callback records the release."""
        self._before: dict[int, int] = {}
        self._events: list[Event] = []
        self._work: list[Work] = []
        self._communication: list[Communication] = []
        self._accesses: list[Access] = []
        self._until = time.process_time() + MAX_TRACE_SECONDS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.process_time() > self._until:
            took = duration(MAX_TRACE_SECONDS)
            raise PlanTooLongError(f"no plan after {took} of computing: the model has too many layers to be traced")
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again, with the tensors of this process
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in collective_ops:
            self._communicated(func, args, kwargs, result)
            return result
        if func is torch.ops.fsdp.chunk_cat.default:  # into the buffer that is reduced and scattered
            self.enter(args[0], "unsharded gradients")
        outputs = list(_tensors(result))
        new = [tensor for tensor in outputs if tensor.device.type != OFF_DEVICE and self._entered(tensor)]
        if new or func._schema.is_mutable:  # otherwise it is a view, which costs nothing
            self._count(func, args, kwargs, result, outputs, new)
        return result

    def __enter__(self) -> StorageTracker:
        """Follow storages that are resized in place, too: FSDP2 empties and fills those of gathered weights."""
        self._resize = resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            resize(storage, size)
            self._resized(storage)
            return storage

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]  # no operation is dispatched for it
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's, without types
        return self

    def __exit__(self, *raised: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]  # torch's own again
        super().__exit__(*raised)  # type: ignore[no-untyped-call]  # torch's, without types

    def enter(self, tensors: Iterable[torch.Tensor], kind: Kind) -> None:
        """Record these tensors' storages, or set the kind of those that are already recorded.

        Of a sharded tensor, it is this process's shard.
        """
        for whole in tensors:
            tensor = whole.to_local() if isinstance(whole, DTensor) else whole
            self._entered(tensor)
            self._kinds[self._alive[tensor.untyped_storage()._cdata][0]] = kind

    def new_page(self) -> None:
        """Start recording a new step: what the previous one left behind is live from now on, as optimizer state."""
        for number, size, _ in self._alive.values():
            if size and self._kinds[number] in ("activations", "logits"):
                self._kinds[number] = "optimizer"
        self._before = {number: size for number, size, _ in self._alive.values()}
        self._events.clear()
        self._work.clear()
        self._communication.clear()
        self._accesses.clear()

    def trace(
        self, *, micro_batch_size: int, passes: int, model: torch.nn.Module, built_bytes: int, shards: int = 1
    ) -> Trace:
        """What was recorded since the last `new_page`."""
        parameters = list(model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        eager = Trace(
            micro_batch_size=micro_batch_size,
            passes=passes,
            kinds=tuple(self._kinds),
            before=dict(self._before),
            events=tuple(self._events),
            work=tuple(self._work),
            communication=tuple(self._communication),
            shards=shards,
            built_bytes=built_bytes,
            parameters=sum(parameter.numel() for parameter in parameters),
            trained_parameters=sum(parameter.numel() for parameter in trained),
            trained_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trained),
            saved_weights_bytes=checkpoint.weights_bytes(model),
        )
        return replace(eager, compiled=fused(eager, self._accesses))

    @property
    def _phase_now(self) -> Phase:
        in_backward = self.phase in ("forward", "loss") and torch._C._current_graph_task_id() != -1
        return "backward" if in_backward else self.phase

    def _entered(self, tensor: torch.Tensor) -> bool:
        """Record the tensor's storage; False if it is recorded already."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return False
        number, size = len(self._kinds), storage.nbytes()
        self._kinds.append("logits" if self._over_the_vocabulary(tensor) else "activations")
        self._alive[address] = number, size, weakref.ref(storage, lambda _: self._left(address))
        self._events.append(Event(number, size, self._phase_now))
        return True

    def _left(self, address: int) -> None:
        number, size, _ = self._alive.pop(address)
        self._events.append(Event(number, -size, self._phase_now))

    def _resized(self, storage: torch.UntypedStorage) -> None:
        """Record that a storage has another size: that of gathered weights."""
        number, before, reference = self._alive.get(storage._cdata, (-1, 0, None))
        if reference is None:
            return  # made outside of the record
        size = storage.nbytes()
        self._kinds[number] = "gathered weights"
        self._alive[storage._cdata] = number, size, reference
        if size != before:
            self._events.append(Event(number, size - before, self._phase_now))

    def _communicated(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func._schema.name.partition("::")[2].replace("_", "")
        collective = next((known for part, known in COLLECTIVE_NAMES if part in name), None)
        if collective is None:
            return
        size = CollectiveOp.get_comm_tensor_size(func, result, args, kwargs)
        ranks = torch.distributed.get_process_group_ranks(CollectiveOp.get_process_group(func, args))
        self._communication.append(Communication(self._phase_now, collective, size, _range_of(ranks)))
        if func is torch.ops.c10d._allgather_base_.default:
            self.enter([args[0]], "gathered weights")
        elif func is torch.ops.c10d._reduce_scatter_base_.default:
            self.enter([args[1]], "unsharded gradients")

    def _over_the_vocabulary(self, tensor: torch.Tensor) -> bool:
        return tensor.ndim > 1 and tensor.shape[-1] in self._vocabulary_sizes

    def _count(
        self, func: Any, args: Any, kwargs: Any, result: Any, outputs: list[torch.Tensor], new: list[torch.Tensor]
    ) -> None:
        inputs = [*_tensors(args), *_tensors(list(kwargs.values()))]
        packet = func._overloadpacket
        formula = flop_registry.get(SAME_FLOPS.get(packet, packet))
        work = Work(
            phase=self._phase_now,
            precision=str((inputs or outputs)[0].dtype).removeprefix("torch.") if inputs or outputs else "",
            flops=formula(*args, **kwargs, out_val=result) if formula else 0,
            moved_bytes=sum(map(_size, inputs)) + sum(map(_size, outputs)),
            fresh_bytes=sum(tensor.untyped_storage().nbytes() for tensor in new),
            count=self.repetitions,
        )
        self._work.append(work)
        in_backward = self._phase_now == "backward"
        self._accesses.append(
            Access(self._bytes_of(inputs), self._bytes_of(outputs), not in_backward or torch.is_grad_enabled())
        )

    def _bytes_of(self, tensors: Iterable[torch.Tensor]) -> dict[int, int]:
        """The bytes of each storage that these tensors are of, by its number."""
        found: dict[int, int] = {}
        for tensor in tensors:
            if known := self._alive.get(tensor.untyped_storage()._cdata):
                found[known[0]] = max(_size(tensor), found.get(known[0], 0))
        return found


def _range_of(ranks: Sequence[int]) -> range:
    """The ranks of a group, which are equally far from each other, as those of all meshes are."""
    return range(ranks[0], ranks[-1] + 1, ranks[1] - ranks[0] if len(ranks) > 1 else 1)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _size(tensor: torch.Tensor) -> int:
    """Bytes that reading the tensor moves; those of an expanded one are its storage's."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
