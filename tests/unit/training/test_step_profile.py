"""A profile says where the time of a step goes, and adds up to it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.tiny import command, train, write_recipe
from toolkit.api import Device, Settings
from toolkit.events import Message
from toolkit.training.step_profile import (
    COPIES,
    DATA,
    ELEMENTWISE,
    LOSS,
    OPTIMIZER,
    PRODUCTS,
    TRACE_FILE,
    WAITING,
    Summary,
    summed_up,
)

CPU = Device("cpu", "a CPU", 2**30)
GPU = Device("cuda", "a GPU", 2**30, bf16=True)


def summary_of(*, steps: int) -> Summary:
    """Of a step that multiplies large matrices, casts, takes a loss, an optimizer's step, and sleeps."""
    large, weight = torch.rand(600, 600), torch.nn.Parameter(torch.rand(600, 600))
    optimizer = torch.optim.AdamW([weight])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        begun = time.perf_counter()
        for _ in range(steps):
            product = large @ weight
            torch.nn.functional.cross_entropy(product.double(), torch.arange(600)).backward()
            optimizer.step()
            time.sleep(0.02)
        seconds = (time.perf_counter() - begun) / steps
    return summed_up(profile.events(), steps=steps, step_seconds=seconds, device_kind="cpu")


def test_each_part_is_found_and_all_add_up_to_the_step() -> None:
    summary = summary_of(steps=3)
    assert summary.seconds.keys() >= {PRODUCTS, COPIES, LOSS, OPTIMIZER, WAITING["cpu"]}
    assert DATA not in summary.seconds
    assert sum(summary.seconds.values()) == pytest.approx(summary.step_seconds, rel=0.01)
    assert summary.seconds[WAITING["cpu"]] >= 0.02
    assert list(summary.seconds.values()) == sorted(summary.seconds.values(), reverse=True)


@pytest.mark.parametrize(
    ("seconds", "settings", "device", "cure"),
    [
        ({PRODUCTS: 3.0, ELEMENTWISE: 1.0}, {}, GPU, "matrix products; memory: [mixed-precision] computes them"),
        ({PRODUCTS: 3.0, ELEMENTWISE: 1.0}, {}, CPU, "other kernels; training.torch_compile: true"),
        ({DATA: 3.0, ELEMENTWISE: 1.0}, {}, CPU, "data; training.dataloader_num_workers: 1"),
        ({OPTIMIZER: 3.0}, {}, CPU, "optimizer; a larger training.global_batch_size"),
        ({PRODUCTS: 3.0, ELEMENTWISE: 1.0}, {"torch_compile": True}, CPU, "no option would make this much faster"),
    ],
)
def test_the_cure_is_of_the_largest_part_that_has_one(
    seconds: dict[str, float], settings: dict[str, bool], device: Device, cure: str
) -> None:
    lines = Summary(2, 4.0, seconds, 0.0).lines(Settings(**settings), device)
    assert lines[0] == "profile of 2 steps, 4.00 s each:"
    assert cure in lines[-1]


def test_a_run_tells_its_profile_and_trains_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    plain, _ = train(recipe, "training.max_steps=10", name="plain")
    profiled, events = train(recipe, "training.max_steps=10", name="profiled", profile_steps=2)
    (told,) = [event.text for event in events if isinstance(event, Message) and "profile" in event.text]
    assert told.startswith("profile of 2 steps, ")
    assert PRODUCTS in told
    assert told.endswith(TRACE_FILE)
    assert (profiled.folder / TRACE_FILE).stat().st_size > 0
    assert profiled.eval_loss == plain.eval_loss


def test_a_run_that_is_too_short_says_so(tmp_path: Path) -> None:
    _, events = train(write_recipe(tmp_path), "training.max_steps=3", profile_steps=2)
    assert any("no profile: it begins after" in event.text for event in events if isinstance(event, Message))


def test_torchs_profiler_says_nothing_of_its_own(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, callbacks=[])
    process = command("recipe", "run", str(recipe), "--profile", "1", cwd=tmp_path)
    out, errors = process.communicate()
    assert process.returncode == 0
    assert "profile of 1 step" in out
    assert not errors
