"""A process group of any size with one process in it, whose collectives return at once: torch's backend `fake`.

With it `fully_shard` gives this process rank 0's shards of the model, and its collectives are recorded like every other
operation. Rank 0's shards are the largest where a dimension cannot be divided evenly.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


@contextlib.contextmanager
def joined(processes: int) -> Iterator[None]:
    """Be rank 0 of so many processes, beside any group that this process is really in.

    A group is kept once it is made: torch's caches of sharded operations refer to it, and crash on one that is gone.
    """
    from torch.distributed import distributed_c10d
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    fsdp: Any = _fsdp_param
    before, chunks = distributed_c10d._world, fsdp._chunk_with_empty
    distributed_c10d._world, fsdp._chunk_with_empty = _world_of(processes), _first_chunk
    try:
        with warnings.catch_warnings():
            # FSDP2 compares the addresses of storages, which fake tensors do not have: all differ, as real ones would.
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield
    finally:
        distributed_c10d._world, fsdp._chunk_with_empty = before, chunks


def _first_chunk(tensor: torch.Tensor, num_chunks: int, dim: int) -> list[torch.Tensor]:
    """Rank 0's shard, in place of a list of all shards: thousands of fake tensors for each parameter take minutes."""
    size = tensor.size(dim)
    return [tensor.narrow(dim, 0, min(size, -(-size // num_chunks)))]


@functools.cache
def _world_of(processes: int) -> Any:
    """The record that torch keeps of this process's groups, with a default group of this size."""
    from torch import distributed
    from torch.distributed import distributed_c10d
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    before = distributed_c10d._world
    distributed_c10d._world = world = distributed_c10d._World()
    try:
        distributed.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    finally:
        distributed_c10d._world = before
    return world


def mesh(processes: int, *, per_host: int, within_host: bool) -> DeviceMesh:
    """All processes in a row; or with `within_host` those of a host, and the hosts below each other (HSDP)."""
    from torch.distributed.device_mesh import init_device_mesh

    if not within_host:
        return init_device_mesh("cpu", (processes,), mesh_dim_names=("shard",))
    shape = (processes // per_host, per_host)
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
