"""The processes of one run: one, or the N that torchrun, `recipe run --processes N` or another launcher has started.

World size and rank come from environment variables, torchrun's, which may be left over from another job: `check` looks
at them before anything waits for processes that nobody has started, and translates those of other launchers.

Only the main process (rank 0) writes the run's records and reports what happens; what depends on a clock, a signal or
a file is decided there and broadcast, because processes that disagree deadlock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.errors import ToolkitError, UnavailableError
from toolkit.system.launchers import torchruns_variables

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

RANK_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
RENDEZVOUS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
"""Together with the numbers, what torchrun sets for each process that it starts."""
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


def local_world_size() -> int:
    """Number of the run's processes on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main_process() -> bool:
    """Whether this is the main process, the one that writes."""
    return rank() == 0


def check(environ: MutableMapping[str, str] = os.environ) -> None:
    """Check that the environment describes a single process, or one of several that can rendezvous.

    Where another launcher has started several, torchrun's variables are set in `environ`.

    Raises:
        UnavailableError: it is left over, empty or incomplete.
    """
    if not any(name in environ for name in RANK_VARIABLES):
        environ.update(torchruns_variables(environ))
        if "WORLD_SIZE" not in environ:
            return
    cure = (
        f"a single-process run needs none of {', '.join((*RANK_VARIABLES, *RENDEZVOUS_VARIABLES))}: unset them. "
        f"To start several: toolkit recipe run NAME --processes N"
    )
    for name in (*RANK_VARIABLES, "LOCAL_WORLD_SIZE"):
        if not environ.get(name, "0").isdecimal():
            raise UnavailableError(f"{name} is set to {environ[name]!r}, which is not a number; {cure}")
    alone = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    if "WORLD_SIZE" in environ and all(environ.get(name, value) == value for name, value in alone.items()):
        for name in (*RANK_VARIABLES, "LOCAL_WORLD_SIZE"):  # or accelerate would open a port for a rendezvous of one
            environ.pop(name, None)
        return
    present = [f"{name} is set to {environ[name]}" for name in RANK_VARIABLES if name in environ]
    if missing := [name for name in (*RANK_VARIABLES, *RENDEZVOUS_VARIABLES) if not environ.get(name)]:
        are = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
        raise UnavailableError(f"{' and '.join(present)}, but {are} not set; {cure}")
    size, own = int(environ["WORLD_SIZE"]), int(environ["RANK"])
    if own >= size:
        raise UnavailableError(f"RANK is set to {own}, but the ranks of {size} processes end at {size - 1}; {cure}")
    port = environ["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UnavailableError(f"MASTER_PORT is set to {port!r}, which is not a port; {cure}")


def meeting_point() -> str:
    """Address of the rendezvous: host:port."""
    return ":".join(os.environ[name] for name in RENDEZVOUS_VARIABLES)


def join(*, on_cpu: bool, timeout: timedelta, offloads: bool = False) -> None:
    """Rendezvous with the other processes and create the process group, which the Trainer then finds.

    A group that is there already is taken: Ray's TorchTrainer, for one, joins it before it calls anybody's code.

    Args:
        on_cpu: whether they train on CPUs.
        timeout: for how long a process waits for the others in a collective.
        offloads: whether they train on GPUs and keep gradients in host memory, for which NCCL has no collectives.

    Raises:
        UnavailableError: they do not come.
    """
    if world_size() == 1:
        return
    import torch
    from accelerate import PartialState

    if torch.distributed.is_initialized():
        PartialState(cpu=on_cpu)
        return
    from torch.distributed import DistError
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, own_rank, processes = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    except DistError as error:
        raise _not_met(error, RENDEZVOUS_TIMEOUT) from error
    # torchrun keeps one store across restarts, where the addresses of the earlier processes would be taken for those
    # of the present ones (https://github.com/pytorch/pytorch/issues/135712).
    store = PrefixStore(f"restart-{_restart()}", store)
    try:
        if offloads and not on_cpu:
            torch.distributed.init_process_group(
                "cuda:nccl,cpu:gloo", store=store, rank=own_rank, world_size=processes, timeout=timeout
            )
            PartialState(cpu=False)
            return
        PartialState(cpu=on_cpu, store=store, rank=own_rank, world_size=processes, timeout=timeout)
    except DistError as error:
        raise _not_met(error, timeout) from error


def _not_met(error: Exception, timeout: timedelta) -> UnavailableError:
    return UnavailableError(
        f"the rendezvous of the {world_size()} processes at {meeting_point()} failed within "
        f"{timeout.total_seconds() / 60:g} minutes: {str(error).splitlines()[0]}. Were all of them "
        f"started? For a single process: unset {', '.join((*RANK_VARIABLES, *RENDEZVOUS_VARIABLES))}"
    )


def launch_id() -> str | None:
    """What the processes that torchrun has started together have in common, and no others have; None if they have not.

    Its `--standalone` draws an id, and so do those who name one with `--rdzv-id`.
    """
    drawn = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if world_size() == 1 or drawn == "none" else f"{meeting_point()} {drawn} {_restart()}"


def _restart() -> str:
    """What tells the processes of a restart from earlier ones that met at the same store.

    Each host's torchrun counts its own restarts, and one that has come later has counted fewer: where each round has a
    store of its own, as by `toolkit.system.torchrun`, the count would keep the processes apart.
    """
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "True") == "True"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if shares_store else "0"


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


def any_process_on_device(flag: torch.Tensor) -> torch.Tensor:
    """All-reduce on the device, for which the host does not wait: whether any process has raised the flag."""
    if world_size() == 1:
        return flag
    import torch

    raised = flag.to(torch.int32)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return raised.bool()
