"""Shards weights, gradients and optimizer state over the processes of a run (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

from toolkit.api import Change, Claim, Device, Fidelity, Requirement, Settings, Strategy


class FullyShard(Strategy):
    """Give each process an equal share of the weights, the gradients and the optimizer state, in place of a copy.

    The layers' weights are gathered one layer at a time, when it is computed, and their gradients are reduced to the
    process that holds their share: FSDP2, PyTorch's `fully_shard`, also known as ZeRO-3. The numbers are those of
    several processes without it, up to the order of floating-point sums. It costs half as much communication again,
    most of it while other layers are computed. In one process there is nothing to share, and the run says so.
    Checkpoints are for any number of processes, with or without this strategy.
    Zhao et al. 2023, https://arxiv.org/abs/2304.11277; Rajbhandari et al. 2019, https://arxiv.org/abs/1910.02054.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"weights", "gradients"})
    fidelity: ClassVar[Fidelity] = "exact"

    within_host: bool = False
    """Share among the processes of one host, and copy to the other hosts (HSDP): each layer is gathered over the fast
    links inside a host, and only gradients cross the network. Each host needs room for the whole."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights after its forward pass, and gather them again for its backward pass; false is
    faster and holds all weights during a step (ZeRO-2)."""
    cpu_offload: bool = False
    """Keep the shares in host memory, and take the optimizer's steps there: the least GPU memory, and the slowest. Not
    tried on a GPU yet."""

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """The usual one, among several processes; in one it would change nothing, and is not tried."""
        return [cls()]

    def requires(self) -> Sequence[Requirement]:
        """A GPU for `cpu_offload`: on a CPU the shares are in host memory already."""
        return [Requirement("device", "cuda", cure="leave out cpu_offload")] if self.cpu_offload else []

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Turn sharding on; the core shards the finished model, before its optimizer is built."""
        among = "the processes of a host" if self.within_host else "all processes"
        options = {
            "shard": Change(True, f"weights, gradients and optimizer state are shared out among {among}"),
            "shard_within_host": Change(self.within_host),
            "shard_reshard_after_forward": Change(self.reshard_after_forward),
            "shard_cpu_offload": Change(self.cpu_offload),
        }
        return {name: change for name, change in options.items() if change.value != getattr(Settings(), name)}
