"""The global RNG states: Python's, numpy's, torch's, and that of each GPU."""

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
    """The states of all global generators at one moment."""

    python: Any
    numpy: Any
    processor: torch.Tensor
    gpus: list[torch.Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """The current states."""
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), numpy.random.get_state(), torch.get_rng_state(), gpus)

    def differs_from(self, other: RandomState) -> str:
        """The libraries whose generators were used between the two moments, in words."""
        same = {
            "Python": self.python == other.python,
            "numpy": all(map(numpy.array_equal, self.numpy, other.numpy)),
            "torch": all(map(torch.equal, [self.processor, *self.gpus], [other.processor, *other.gpus])),
        }
        return " and ".join(name for name, is_same in same.items() if not is_same)

    def restore(self) -> None:
        """Set all global generators back to these states."""
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)
        torch.set_rng_state(self.processor)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)


@contextlib.contextmanager
def random_state_preserved() -> Iterator[None]:
    """Restore every global RNG state afterwards."""
    before = RandomState.now()
    try:
        yield
    finally:
        before.restore()
