"""The processes of one run: one, or the N of `torchrun --standalone --nproc-per-node N --no-python toolkit ...`.

World size and rank come from environment variables, which may be left over from another job: `check` looks at them
before anything waits for processes that nobody has started.

Only the main process (rank 0) writes the run's records and reports what happens; what depends on a clock, a signal or
a file is decided there and broadcast, because processes that disagree deadlock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from toolkit.errors import ToolkitError, UnavailableError

T = TypeVar("T")

RANK_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
RENDEZVOUS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
"""Together with the numbers, what torchrun sets for each process that it starts."""
OTHER_LAUNCHERS = {
    **dict.fromkeys(("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"), "1"),
    **dict.fromkeys(("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"), "0"),
}
"""What mpirun and srun set in their tasks, with the values of a single task. (A Slurm batch script has SLURM_NTASKS
and SLURM_PROCID=0, and is one process.)"""
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Rendezvous timeout: torchrun starts all processes within seconds."""


def world_size() -> int:
    """World size: the number of processes that work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Rank of this process on this host, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the main process, the one that writes."""
    return rank() == 0


def check() -> None:
    """Check that the environment describes a single process, or one of several that can rendezvous.

    Raises:
        UnavailableError: it is left over, empty, incomplete, or another launcher's.
    """
    if not any(name in os.environ for name in RANK_VARIABLES):
        _check_other_launchers()
        return
    cure = (
        f"a single-process run needs none of {', '.join((*RANK_VARIABLES, *RENDEZVOUS_VARIABLES))}: unset them. "
        f"To start several: torchrun --standalone --nproc-per-node N --no-python toolkit ..."
    )
    for name in (*RANK_VARIABLES, "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise UnavailableError(f"{name} is set to {os.environ[name]!r}, which is not a number; {cure}")
    alone = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    if "WORLD_SIZE" in os.environ and all(os.environ.get(name, value) == value for name, value in alone.items()):
        for name in (
            *RANK_VARIABLES,
            "LOCAL_WORLD_SIZE",
        ):  # or accelerate would open a port for a rendezvous with nobody
            os.environ.pop(name, None)
        return
    present = [f"{name} is set to {os.environ[name]}" for name in RANK_VARIABLES if name in os.environ]
    if missing := [name for name in (*RANK_VARIABLES, *RENDEZVOUS_VARIABLES) if not os.environ.get(name)]:
        are = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
        raise UnavailableError(f"{' and '.join(present)}, but {are} not set; {cure}")
    if rank() >= world_size():
        raise UnavailableError(
            f"RANK is set to {rank()}, but the ranks of {world_size()} processes end at {world_size() - 1}; {cure}"
        )
    port = os.environ["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UnavailableError(f"MASTER_PORT is set to {port!r}, which is not a port; {cure}")


def _check_other_launchers() -> None:
    set_here = [name for name in OTHER_LAUNCHERS if name in os.environ]
    for name in set_here:
        if os.environ[name] != OTHER_LAUNCHERS[name]:
            raise UnavailableError(
                f"{name} is set to {os.environ[name]}: mpirun or srun has started several tasks, and each would do the "
                f"whole run. Start one task that calls torchrun, which starts the processes; or, to run this "
                f"task alone: env {' '.join(f'-u {name}' for name in set_here)} toolkit ..."
            )


def meeting_point() -> str:
    """Address of the rendezvous: host:port."""
    return ":".join(os.environ[name] for name in RENDEZVOUS_VARIABLES)


def join(*, on_cpu: bool) -> None:
    """Rendezvous with the other processes and create the process group, which the Trainer then finds.

    Raises:
        UnavailableError: they do not come.
    """
    if world_size() == 1:
        return
    from accelerate import PartialState
    from torch.distributed import DistError
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, own_rank, processes = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    except DistError as error:
        raise UnavailableError(
            f"the rendezvous of the {world_size()} processes at {meeting_point()} failed within "
            f"{RENDEZVOUS_TIMEOUT.total_seconds() / 60:g} minutes: {str(error).splitlines()[0]}. Were all of them "
            f"started? For a single process: unset {', '.join((*RANK_VARIABLES, *RENDEZVOUS_VARIABLES))}"
        ) from error
    # torchrun keeps one store across restarts, where the addresses of the earlier processes would be taken for those
    # of the present ones (https://github.com/pytorch/pytorch/issues/135712).
    store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    PartialState(cpu=on_cpu, store=store, rank=own_rank, world_size=processes)


def by_main_process(decide: Callable[[], T]) -> T:
    """Decide in the main process, and broadcast its answer to all; a `ToolkitError` is raised in all."""
    if world_size() == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = decide()
        except ToolkitError as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]  # type: ignore[no-any-return]  # what decide() returned, pickled and back


def main_process_first(work: Callable[[], T]) -> T:
    """Do the work in the main process first, and then in the others, which find its results in caches."""
    if world_size() == 1:
        return work()
    if is_main_process():
        result = work()
        barrier()
        return result
    barrier()
    return work()


def barrier() -> None:
    """Barrier: wait until all processes are here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def gathered(value: T) -> list[T]:
    """All-gather: the value of each process, in rank order."""
    if world_size() == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def have_lost_one(error: BaseException) -> bool:
    """Whether this is a transport error, which means that another process is gone."""
    if world_size() == 1:
        return False
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def any_process(*flags: bool) -> tuple[bool, ...]:
    """All-reduce: for each flag, whether any process has raised it."""
    if world_size() == 1:
        return flags
    import torch
    from accelerate import PartialState

    raised = torch.tensor(flags, dtype=torch.int32, device=PartialState().device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())
