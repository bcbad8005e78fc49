"""A run's length: in steps, in tokens, or in epochs, in this order."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.recipe.length import total_steps
from toolkit.recipe.settings import Training


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 7, "max_tokens": "1B", "num_train_epochs": 3}, 7),
        ({"max_tokens": 1025, "num_train_epochs": 3}, 9),
        ({"max_tokens": "2K"}, 16),
        ({"max_tokens": 1.28e3}, 10),
        ({"num_train_epochs": 2.5}, 33),
    ],
)
def test_what_decides(settings: dict[str, Any], steps: int) -> None:
    training = Training(global_batch_size=4, **settings)
    assert total_steps(training, block_size=32, blocks=50) == steps


def test_epochs_need_a_count() -> None:
    assert total_steps(Training(), block_size=32, blocks=None) is None
    assert total_steps(Training(max_tokens=128, global_batch_size=4), block_size=32, blocks=None) == 1


@pytest.mark.parametrize("written", ["much", "0", -3, "5X", 0.5])
def test_what_is_no_count_of_tokens(written: Any) -> None:
    with pytest.raises(ValidationError):
        Training(max_tokens=written)
