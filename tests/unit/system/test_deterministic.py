"""`training.deterministic` lasts as long as the run."""

from pathlib import Path

import pytest
import torch

from tests.tiny import callback, train, write_recipe


@pytest.mark.parametrize("wanted", [True, False])
def test_kernels_are_deterministic_for_as_long_as_the_run_wants_it(tmp_path: Path, wanted: bool) -> None:
    callback(
        tmp_path,
        "look",
        "def on_step_end(self, args, state, control, **k):\n"
        f"    assert torch.are_deterministic_algorithms_enabled() is {wanted}",
    )
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], callbacks=["look"], training={"max_steps": 2})
    result, _ = train(recipe, f"training.deterministic={str(wanted).lower()}")
    assert result.steps == 2
    assert not torch.are_deterministic_algorithms_enabled()
