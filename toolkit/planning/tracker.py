"""Records when every storage is allocated and freed, and what each operation computes and moves.

A dispatch mode sees everything that autograd, autocast and gradient checkpointing really do, in the backward pass too.
What it cannot see is the inside of a kernel: scratch memory there is a few kilobytes per thread, because composite
operations (attention without a fused kernel, cross entropy) arrive here already decomposed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from toolkit.errors import PlanTooLongError
from toolkit.formatting import duration
from toolkit.planning.trace import Event, Kind, Phase, Trace, Work
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


class StorageTracker(TorchDispatchMode):
    """Keeps the record of a step while it is the active dispatch mode."""

    def __init__(self, *, vocabulary_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        self.phase: Phase = "forward"
        self.repetitions = 1
        """How many times each operation is done that is recorded now; its storages are those of one time."""
        self._vocabulary_size = vocabulary_size
        self._kinds: list[Kind] = []
        self._alive: dict[int, tuple[int, int, weakref.ref[torch.UntypedStorage]]] = {}
        """By address: number, size, and a weak reference whose callback records the release."""
        self._before: dict[int, int] = {}
        self._events: list[Event] = []
        self._work: list[Work] = []
        self._until = time.process_time() + MAX_TRACE_SECONDS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.process_time() > self._until:
            took = duration(MAX_TRACE_SECONDS)
            raise PlanTooLongError(f"no plan after {took} of computing: the model has too many layers to be traced")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        new = [tensor for tensor in outputs if tensor.device.type != OFF_DEVICE and self._entered(tensor)]
        if new or func._schema.is_mutable:  # otherwise it is a view, which costs nothing
            self._count(func, args, kwargs, result, outputs, new)
        return result

    def enter(self, tensors: Iterable[torch.Tensor], kind: Kind) -> None:
        """Record these tensors' storages, or set the kind of those that are already recorded."""
        for tensor in tensors:
            self._entered(tensor)
            self._kinds[self._alive[tensor.untyped_storage()._cdata][0]] = kind

    def new_page(self) -> None:
        """Start recording a new step: what the previous one left behind is live from now on, as optimizer state."""
        for number, _, _ in self._alive.values():
            if self._kinds[number] in ("activations", "logits"):
                self._kinds[number] = "optimizer"
        self._before = {number: size for number, size, _ in self._alive.values()}
        self._events.clear()
        self._work.clear()

    def trace(self, *, micro_batch_size: int, passes: int, model: torch.nn.Module, built_bytes: int) -> Trace:
        """What was recorded since the last `new_page`."""
        parameters = list(model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return Trace(
            micro_batch_size=micro_batch_size,
            passes=passes,
            kinds=tuple(self._kinds),
            before=dict(self._before),
            events=tuple(self._events),
            work=tuple(self._work),
            built_bytes=built_bytes,
            parameters=sum(parameter.numel() for parameter in parameters),
            trained_parameters=sum(parameter.numel() for parameter in trained),
            trained_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trained),
            saved_weights_bytes=checkpoint.weights_bytes(model),
        )

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

    def _over_the_vocabulary(self, tensor: torch.Tensor) -> bool:
        return tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary_size

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


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _size(tensor: torch.Tensor) -> int:
    """Bytes that reading the tensor moves; those of an expanded one are its storage's."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
