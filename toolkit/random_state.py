"""The global random states: Python's, numpy's, torch's, and that of each GPU."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch


@dataclass(frozen=True)
class RandomState:
    """All of them at one moment."""

    python: Any
    numpy: Any
    processor: torch.Tensor
    gpus: list[torch.Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """As they are."""
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), numpy.random.get_state(), torch.get_rng_state(), gpus)

    def restore(self) -> None:
        """Make them so again."""
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)
        torch.set_rng_state(self.processor)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)


@contextlib.contextmanager
def random_state_preserved() -> Iterator[None]:
    """Put every global random state back as it was."""
    before = RandomState.now()
    try:
        yield
    finally:
        before.restore()
