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

    def differs_from(self, other: RandomState) -> str:
        """The libraries from whose generators numbers were drawn between the two moments, in words."""
        same = {
            "Python": self.python == other.python,
            "numpy": all(map(numpy.array_equal, self.numpy, other.numpy)),
            "torch": all(map(torch.equal, [self.processor, *self.gpus], [other.processor, *other.gpus])),
        }
        return " and ".join(name for name, is_same in same.items() if not is_same)

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
