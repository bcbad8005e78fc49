"""The Trainer's private methods that ours stands on are there, are called, and are called where we count on it."""

import inspect
from pathlib import Path

import pytest
from transformers import Trainer

from tests.tiny import callback, train, train_in_two, write_recipe
from toolkit.training.trainer import RecipeTrainer

LEANED_ON = (
    "_save_checkpoint",
    "_load_optimizer_and_scheduler",
    "_get_grad_norm",
    "_get_num_items_in_batch",
    "_prepare_inputs",
    "_issue_warnings_after_load",
    "_track_num_input_tokens",
    "_load_from_checkpoint",
    "_load_rng_state",
    "_move_model_to_device",
)
"""Overridden."""
CALLED = {
    "_clip_grad_norm": ["model"],
    "_save_rng_state": ["folder"],
    "_save_scaler": ["folder"],
    "_wrap_model": ["model", False],
}
"""Only called, with these arguments."""


@pytest.mark.parametrize("name", LEANED_ON)
def test_it_is_the_trainers_own_with_the_parameters_that_we_take(name: str) -> None:
    theirs = list(inspect.signature(getattr(Trainer, name)).parameters.values())
    ours = list(inspect.signature(getattr(RecipeTrainer, name)).parameters.values())
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.kind == other.kind
        assert (one.default is inspect.Parameter.empty) == (other.default is inspect.Parameter.empty)


@pytest.mark.parametrize("name", CALLED)
def test_it_takes_the_arguments_of_our_calls(name: str) -> None:
    assert getattr(RecipeTrainer, name) is getattr(Trainer, name)
    inspect.signature(getattr(Trainer, name)).bind("self", *CALLED[name])


def test_under_autocast_neither_logits_nor_weights_are_copied(tmp_path: Path) -> None:
    seen = tmp_path / "dtype.txt"
    body = f"""
def on_step_begin(self, args, state, control, model=None, **rest):
    import pathlib, torch
    cached = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(8)[None]).logits
    hook.remove()
    pathlib.Path({str(seen)!r}).write_text(f"{{logits.dtype}}, cached weights: {{cached}}")
"""
    callback(tmp_path, "look", body)
    train(
        write_recipe(
            tmp_path, plugin_paths=["plugins"], callbacks=["look"], training={"precision": "bf16", "max_steps": 1}
        )
    )
    assert seen.read_text() == "torch.bfloat16, cached weights: [False]"


def test_an_epoch_is_asked_for_with_the_keywords_that_we_read() -> None:
    theirs = inspect.signature(Trainer._run_epoch).parameters
    assert {"resume_from_checkpoint", "epoch", "epochs_trained"} <= set(theirs)


def test_each_is_called_in_a_run_that_saves_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    for name in (*LEANED_ON, "_run_epoch", *CALLED):
        ours = getattr(RecipeTrainer, name)

        def noting(self, *args, ours=ours, name=name, **kwargs):
            if self.args.output_dir.endswith("runs/tiny/checkpoints"):  # neither in the plan nor in the trial save
                called.add(name)
            return ours(self, *args, **kwargs)

        monkeypatch.setattr(RecipeTrainer, name, noting)
    train_in_two(write_recipe(tmp_path), stop_after=2)
    assert called == {*LEANED_ON, "_run_epoch", *CALLED}


def test_the_norm_is_asked_for_after_backward_and_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the guard looks at the gradients; if the Trainer asked earlier or later, a bad step would be taken."""
    order: list[str] = []
    for name in ("training_step", "_get_grad_norm", "create_optimizer"):
        ours = getattr(RecipeTrainer, name)

        def noting(self, *args, ours=ours, name=name, **kwargs):
            result = ours(self, *args, **kwargs)
            if name == "create_optimizer":
                order.clear()  # of the step that was traced for the plan
                result.optimizer.register_step_pre_hook(lambda *arguments: order.append("step"))
            else:
                order.append(name)
            return result

        monkeypatch.setattr(RecipeTrainer, name, noting)
    train(write_recipe(tmp_path, memory=[{"plugin": "small-batch", "micro_batch_size": 2}], training={"max_steps": 2}))
    assert order == ["training_step", "training_step", "_get_grad_norm", "step"] * 2
