"""A step that runs out of memory is done again in smaller pieces, as a computation alone shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.events import Event, Message
from toolkit.memory.oom_retry import OPTIMIZER, OOMRetry, RepeatableStep
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.run_directory import RunDirectory


class Computation:
    """Sums numbers, with a little noise, of so many sequences at a time as fit."""

    def __init__(self, *, fits: int) -> None:
        self.fits = fits
        self.sizes: list[int] = []
        self.total = torch.zeros(())

    def compute(self, piece: dict[str, torch.Tensor]) -> torch.Tensor:
        numbers = piece["input_ids"]
        self.sizes.append(len(numbers))
        noise = torch.rand(len(numbers)).double()
        if len(numbers) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        self.total = self.total + (numbers + noise).sum()
        return (numbers + noise).sum()

    def undo(self) -> None:
        self.total = torch.zeros(())


def retry(folder: Path, events: list[Event], *, sequences: int = 4, **why: str) -> OOMRetry:
    return OOMRetry(micro_batch_size=4, sequences=sequences, log=MetricsLog(RunDirectory(folder), events.append), **why)


def micro_batch(first: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(first, first + 4).double()}


def test_all_of_the_step_is_repeated_with_the_same_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = Computation(fits=2)
    for first in (0, 2, 4, 6):
        expected.compute({"input_ids": torch.arange(first, first + 2).double()})

    torch.manual_seed(1)
    computation, events = Computation(fits=4), list[Event]()
    of_run = retry(tmp_path, events)
    step = RepeatableStep(of_run, 7, compute=computation.compute, undo=computation.undo)
    step.run(micro_batch(0))
    computation.fits = 2
    loss = step.run(micro_batch(4))
    assert computation.sizes == [4, 4, 2, 2, 2, 2]
    assert torch.equal(computation.total, expected.total)
    assert loss.item() == pytest.approx(expected.total.item())
    assert of_run.state_dict() == {"sequences": 2}
    (told,) = [event.text for event in events if isinstance(event, Message)]
    assert told.startswith("out of memory in the forward or backward pass of step 7")
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 7, "kind": "memory", "sequences": 2, "during": "the forward or backward pass"}
    # The next step begins with the smaller pieces.
    RepeatableStep(of_run, 8, compute=computation.compute, undo=computation.undo).run(micro_batch(0))
    assert computation.sizes[6:] == [2, 2]


def test_a_run_that_never_ran_out_leaves_a_resume_its_choice(tmp_path: Path) -> None:
    assert retry(tmp_path, []).state_dict() == {"sequences": None}


@pytest.mark.parametrize(
    ("sequences", "why", "error", "words"),
    [
        (1, {}, TrainingError, "with a micro-batch of one sequence"),
        (4, {"indivisible": "they cannot be cut"}, TrainingError, "they cannot be cut"),
        (4, {"unrepeatable": "others wait"}, OutOfMemoryError, "others wait; .* with micro-batches of 2 sequences"),
        (4, {"unrepeatable_in_optimizer": "scaled"}, OutOfMemoryError, "scaled; .* with micro-batches of 2 sequences"),
    ],
)
def test_what_cannot_be_repeated_ends_the_attempt(
    tmp_path: Path, sequences: int, why: dict[str, str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        retry(tmp_path, [], sequences=sequences, **why).halve(3, OPTIMIZER)
