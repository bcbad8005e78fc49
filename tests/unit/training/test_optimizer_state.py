"""An optimizer's state in shards: written by the processes that hold it, and read by any number of them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW

from toolkit.training import optimizer_state
from toolkit.training.sharding import is_sharded, local_part, sharded_like


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone, which is enough to have shards."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def stepped(*, sharded: bool, steps: int = 2) -> tuple[torch.nn.Module, AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 5)
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def saved(folder: Path, optimizer: AdamW) -> None:
    optimizer_state.write_unsharded(optimizer, folder)
    optimizer_state.write_shards(optimizer, folder)


def plain(state: Any) -> Any:
    """Nested state with what this process holds in place of shards, as lists."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return local_part(state).tolist() if isinstance(state, torch.Tensor) else state


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("reads_shards", [True, False])
@pytest.mark.parametrize("writes_shards", [True, False])
def test_what_was_written_in_shards_or_whole_is_read_in_shards_or_whole(
    writes_shards: bool, reads_shards: bool, tmp_path: Path
) -> None:
    _, before = stepped(sharded=writes_shards)
    if writes_shards:
        saved(tmp_path, before)
    else:
        torch.save(before.state_dict(), tmp_path / optimizer_state.OPTIMIZER_FILE)
    _, after = stepped(sharded=reads_shards, steps=0)
    after.load_state_dict(optimizer_state.read_state(tmp_path, after))
    assert plain(after.state_dict()) == plain(before.state_dict())
    moments = [value for one in after.state.values() for value in one.values() if value.ndim]
    assert len(moments) == 4
    assert [is_sharded(one) for one in moments] == [reads_shards] * 4
    assert optimizer_state.has_state(tmp_path)
    optimizer_state.remove_state(tmp_path)
    assert not optimizer_state.has_state(tmp_path)


@pytest.mark.usefixtures("group")
def test_the_rest_of_a_tensor_is_cut_off_without_communication(tmp_path: Path) -> None:
    model, _ = stepped(sharded=True, steps=0)
    whole = torch.arange(30.0).reshape(5, 6)
    weight: Any = model.weight
    shard: Any = sharded_like(whole, weight)
    assert torch.equal(local_part(shard), whole)
    assert shard.placements == weight.placements


class Code:
    def __reduce__(self) -> Any:
        return print, ("this must not be run",)


@pytest.mark.usefixtures("group")
def test_code_in_the_metadata_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, optimizer = stepped(sharded=True)
    saved(tmp_path, optimizer)
    metadata = tmp_path / optimizer_state.SHARDS_FOLDER / optimizer_state.METADATA_FILE
    for content in (pickle.dumps(Code()), b"\x80\x04ctorch.distributed.checkpoint.filesystem\nos.system\n."):
        metadata.write_bytes(content)
        with pytest.raises(pickle.UnpicklingError, match=r"names (builtins.print|torch.*os.system)"):
            optimizer_state.read_state(tmp_path, optimizer)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("group")
def test_a_disk_that_refuses_is_an_error_of_the_system(tmp_path: Path) -> None:
    _, optimizer = stepped(sharded=True)
    (tmp_path / optimizer_state.SHARDS_FOLDER).write_text("a file, where the folder should be")
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        optimizer_state.write_shards(optimizer, tmp_path)
