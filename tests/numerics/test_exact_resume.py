"""A run that was stopped and resumed is the run that never stopped, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.tiny import (
    assert_same_run,
    command,
    stopper,
    train,
    train_in_two,
    weights,
    write_recipe,
    write_tiny_bert,
    write_tiny_mixture,
)
from toolkit.errors import InterruptedRun, TrainingError
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import RunDirectory

RECIPES: dict[str, dict[str, Any]] = {
    "dropout and accumulation": {"memory": [{"plugin": "small-batch", "micro_batch_size": 1}]},
    "document mask": {"objective": {"document_mask": True}},
    "within documents": {
        "objective": {"document_mask": True},
        "model": {"plugin": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2},
    },
    "masked words": {"objective": {"plugin": "masked-lm", "block_size": 32}, "model": {"plugin": "tiny-bert"}},
    "lora": {"memory": [{"plugin": "lora", "lora_dropout": 0.1}], "exporters": ["merge-lora"]},
    "muon": {"optimizer": "muon"},
    "bf16": {"training": {"precision": "bf16"}},
    "samples": {"callbacks": [{"plugin": "samples", "every_steps": 2}]},
    "chunked loss": {"memory": ["chunked-loss", "gradient-checkpointing"]},
    "released gradients": {"memory": ["release-gradients"], "training": {"max_grad_norm": 0}},
    "adafactor": {"memory": ["low-memory-optimizer"]},
    "adafactor, bf16": {"memory": ["low-memory-optimizer", "weights-in-bf16"]},
    "frozen layers": {"memory": ["frozen-layers"]},
    "weights in bf16": {"memory": ["weights-in-bf16"]},
    "bf16, muon, released": {
        "memory": ["weights-in-bf16", "release-gradients"],
        "optimizer": "muon",
        "training": {"max_grad_norm": 0},
    },
    "mixture of experts": {"model": {"plugin": "tiny-mixture"}},
    "workers": {"training": {"dataloader_num_workers": 1, "max_steps": 6}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_bert(tmp_path / "plugins")
    write_tiny_mixture(tmp_path / "plugins")
    return tmp_path


SLOW = {"adafactor", "weights in bf16", "frozen layers", "muon", "samples", "document mask", "within documents", "bf16"}
"""A part of what others among them have as well."""


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(sections, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, sections in RECIPES.items()
    ],
)
def test_stopped_and_resumed_is_never_stopped(folder: Path, sections: dict[str, Any]) -> None:
    # 20 blocks make an epoch of 5 steps, the last one not full: the stop is in the second epoch.
    recipe = write_recipe(folder, plugin_paths=["plugins"], dataset={"max_samples": 40}, **sections)
    whole, _ = train(recipe, name="whole")
    resumed = train_in_two(recipe, name="resumed", stop_after=3)
    assert whole.steps == resumed.steps >= 6
    assert whole.tokens_seen == resumed.tokens_seen
    assert_same_run(whole.folder, resumed.folder)


@pytest.mark.parametrize("stop_after", [1, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 4)), 7])
def test_wherever_it_stops(tmp_path_factory: pytest.TempPathFactory, stop_after: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "wherever"  # for all of these: the undisturbed run is trained once
    folder.mkdir(exist_ok=True)
    recipe = write_recipe(folder, dataset={"max_samples": 60})
    whole, _ = train(recipe, name="whole")
    resumed = train_in_two(recipe, name=f"stopped-after-{stop_after}", stop_after=stop_after)
    assert_same_run(whole.folder, resumed.folder)


def test_evaluation_and_samples_do_not_change_training(folder: Path) -> None:
    recipe = write_recipe(folder)
    watched, _ = train(recipe, "callbacks=[{plugin: samples, every_steps: 1}]", "training.eval_steps=1", name="watched")
    alone, _ = train(recipe, "training.eval_steps=8", "training.logging_steps=8", name="alone")
    first, second = weights(watched.folder), weights(alone.folder)
    assert [name for name in first if not bool((first[name] == second[name]).all())] == []


@pytest.mark.slow
def test_twenty_steps_are_ten_and_ten_across_two_processes(folder: Path) -> None:
    recipe = write_recipe(folder, training={"max_steps": 20, "save_steps": 10})
    whole, _ = train(recipe, name="whole")
    # The first process ends after step 10 as `docker stop` would end it.
    first = command("recipe", "run", str(recipe), "--name", "parts", "--json", "--set", "callbacks=[stopper]",
                    "--plugins", str(stopper(folder, at=10)), cwd=folder)  # fmt: skip
    out, err = first.communicate(timeout=300)
    assert first.returncode == 143, out + err
    assert "step 10 is saved" in err
    second = command("recipe", "run", str(recipe), "--name", "parts", "--json", cwd=folder)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, out + err
    assert_same_run(whole.folder, folder / "runs" / "parts")


def test_a_checkpoint_that_lacks_weights_of_the_model_is_refused(folder: Path) -> None:
    """An earlier version wrote a mixture of experts under names that are not the model's, and loaded none of them."""
    recipe = write_recipe(folder, plugin_paths=["plugins"], model={"plugin": "tiny-mixture"})
    with pytest.raises(InterruptedRun):
        train(recipe, name="old", stop_after=3)
    run = RunDirectory(folder / "runs" / "old")
    checkpoint_folder = run.checkpoints / "checkpoint-3"
    changed = checkpoint_folder.rename(run.folder / "changed")
    weights_file = changed / "model.safetensors"
    published = {f"{name}.published": tensor for name, tensor in load_file(weights_file).items()}
    save_file(published, weights_file, metadata={"format": "pt"})
    checkpoint.commit(changed, checkpoint_folder, run_id=run.id, step=3)
    with pytest.raises(TrainingError, match=r"the checkpoint does not hold lm_head\.weight and \d+ more weights"):
        train(recipe, name="old")
