"""The processes of one run: one, or the N of `torchrun --standalone --nproc-per-node N --no-python toolkit ...`.

The first process alone writes into the run directory and tells what happens; what depends on a clock, a signal or
a file is decided there and handed to the others, because processes that disagree wait for each other forever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from toolkit.errors import ToolkitError

T = TypeVar("T")


def count() -> int:
    """How many processes work on this run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def join(*, on_cpu: bool) -> None:
    """Meet the other processes; the Trainer finds the group made."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=on_cpu, **_own_store())


def _own_store() -> dict[str, Any]:
    """After a restart by torchrun: a part of its store where the addresses of the processes before are not.

    It keeps one store for all its restarts, and they would be taken for the others'
    (https://github.com/pytorch/pytorch/issues/135712).
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0":
        return {}
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, own_rank, world_size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"restart-{restarts}", store), "rank": own_rank, "world_size": world_size}


def by_first(decide: Callable[[], T]) -> T:
    """Let the first process decide, and return its answer in all; its error is raised in all."""
    if count() == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = decide()
        except ToolkitError as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]  # type: ignore[no-any-return]  # what decide() returned, pickled and back


def first_then_others(work: Callable[[], T]) -> T:
    """Do the work in the first process and then in the others, which find what it has left in caches."""
    if count() == 1:
        return work()
    if is_first():
        result = work()
        wait()
        return result
    wait()
    return work()


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def gathered(value: T) -> list[T]:
    """The value of each process, in the order of the processes."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def have_lost_one(error: BaseException) -> bool:
    """Whether this error is the transport's, which says that another process is not there any more."""
    if count() == 1:
        return False
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether any of the processes has raised it."""
    if count() == 1:
        return flags
    import torch
    from accelerate import PartialState

    raised = torch.tensor(flags, dtype=torch.int32, device=PartialState().device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())
