"""A model's weights, gradients and optimizer state, sharded over the processes of a run by FSDP2.

torch's `fully_shard` on each layer, and on the model for the rest: embeddings, the last norm, the head. accelerate is
kept out of it: on CPU processes its `fsdp=True` is plain DDP, without a word (1.15). What is sharded is asked of the
parameters themselves.

The head stays gathered from its forward pass to its backward pass, because a loss of hidden states multiplies by its
weight outside of the module.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

from toolkit.errors import TrainingError, UnavailableError
from toolkit.recipe.settings import Training
from toolkit.system import distributed

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel


class ShardedModel:
    """A model of which each process holds a shard, and the whole of it, on demand, on the main process."""

    def __init__(
        self, model: PreTrainedModel, settings: Training, device: torch.device, *, mesh: DeviceMesh | None = None
    ) -> None:
        """Shard the model in place, before its optimizer is built.

        Args:
            model: on the CPU, finished: the same weights in each process.
            settings: how to shard.
            device: where this process trains.
            mesh: of the processes, for a plan, which has no values to compare or to gather; of those of this run, if
                not given.

        Raises:
            TrainingError: the processes have built different weights, or a parameter cannot be sharded.
            UnavailableError: the hosts run different numbers of processes.
        """
        from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard, register_fsdp_forward_method

        from toolkit.training.compilation import repeated_layers

        # With a loss of hidden states the model returns a slice of them, which nothing here changes in place.
        warnings.filterwarnings(
            "ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning
        )
        self.model = model
        self.device = device
        self._copy = None
        if mesh is None:
            _check_same_weights(model)
            mesh = _mesh(settings, device)
            self._copy = _hollow(model) if distributed.is_main_process() else None
        self._is_filled = False
        options: dict[str, Any] = {"mesh": mesh}
        if settings.shard_cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
        for layer in repeated_layers(model):
            fully_shard(layer, reshard_after_forward=settings.shard_reshard_after_forward, **options)
        fully_shard(model, reshard_after_forward=False, **options)
        if hasattr(model, "generate"):  # an adapter's generate calls the base model past the outer one's hooks
            register_fsdp_forward_method(model, "generate")
        if whole := [name for name, parameter in model.named_parameters() if not is_sharded(parameter)]:
            raise TrainingError(
                f"{whole[0]} is not sharded, and neither are {len(whole) - 1:,} more parameters of this "
                f"{type(model).__name__}; remove shard"
            )

    def reshard(self) -> None:
        """Free all gathered weights; a forward pass without a backward pass leaves some.

        Necessary before anything but an optimizer's step reads or writes the parameters.
        """
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self) -> PreTrainedModel | None:
        """The model with all of its weights, in host memory of the main process, and None in the others.

        All processes have to call it. It is the same object each time; frozen weights are gathered once.
        """
        self.reshard()
        if self._copy is not None and not self._is_filled:
            _fill(self._copy)
        copies: Iterator[Any] = iter(self._copy.parameters()) if self._copy is not None else itertools.repeat(None)
        for parameter, whole in zip(self.model.parameters(), copies, strict=self._copy is not None):
            if parameter.requires_grad or not self._is_filled:
                gathered = gather(parameter.detach(), self.device)
                if whole is not None:
                    whole.data.copy_(gathered)
        if self._copy is not None:
            for buffer, kept in zip(self.model.buffers(), self._copy.buffers(), strict=True):
                kept.copy_(buffer)
        self._is_filled = True
        return self._copy


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Whether this is a tensor of which this process holds a shard."""
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor: all of it, unless it is sharded. It shares memory with the tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The whole of a tensor; of a sharded one, all processes have to ask. `device`: where they communicate."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    there: DTensor = tensor.to(device)  # type: ignore[assignment]  # declared as Tensor's
    return there.full_tensor()


def sharded_like(whole: torch.Tensor, parameter: DTensor) -> torch.Tensor:
    """Return this process's shard of a tensor that each process has whole, without communication.

    Args:
        whole: of the parameter's shape.
        parameter: whose placement and device the result has.
    """
    from torch.distributed.tensor import distribute_tensor

    shard = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return shard.to(parameter.device)


def _mesh(settings: Training, device: torch.device) -> DeviceMesh:
    """The processes in a row, or, for HSDP, those of a host in a row and the hosts below each other."""
    from torch.distributed.device_mesh import init_device_mesh

    world = distributed.world_size()
    if not settings.shard_within_host:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    of_host = distributed.gathered(distributed.local_world_size())
    if len(set(of_host)) > 1 or world % of_host[0]:
        raise UnavailableError(
            f"memory.shard.within_host: each host has to run as many processes as the others; these run "
            f"{', '.join(map(str, sorted(set(of_host))))}"
        )
    return init_device_mesh(device.type, (world // of_host[0], of_host[0]), mesh_dim_names=("replicate", "shard"))


def _check_same_weights(model: PreTrainedModel) -> None:
    """Check that the processes shard the same model; DDP would broadcast the main process's.

    Raises:
        TrainingError: they do not.
    """
    sums = [float(parameter.detach().double().sum()) for parameter in model.parameters()]
    others = distributed.gathered(sums)
    for name, *values in zip((name for name, _ in model.named_parameters()), *others, strict=True):
        if len(set(map(repr, values))) > 1:
            raise TrainingError(
                f"the run's processes have built different weights ({name}), so their shards are not of one model; a "
                f"model plugin has to draw them from torch's global generator, which is seeded alike in all of them"
            )


def _hollow(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model without its weights, on torch's meta device; tied ones stay tied."""
    import torch

    memo: dict[int, Any] = {
        id(parameter): torch.nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _fill(model: PreTrainedModel) -> None:
    """Give the parameters of a hollow model room in host memory."""
    import torch

    room = {
        id(parameter): torch.nn.Parameter(
            torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad
        )
        for parameter in model.parameters()
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, room[id(parameter)])
