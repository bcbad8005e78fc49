"""`--from RUN@STEP`: a new run goes on from another's checkpoint with settings of its own."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tiny import assert_same_run, from_, losses, train, train_in_two, weights, write_recipe
from toolkit.errors import RunMismatchError, UsageError


def written(folder: Path) -> Path:
    return write_recipe(folder, training={"save_steps": 2, "save_total_limit": 9, "warmup_steps": 2})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: whoever trains it first trains the parent, and each child has a name of its own."""
    return written(tmp_path_factory.mktemp("branch"))


def test_with_nothing_changed_it_ends_as_the_parent(recipe: Path) -> None:
    whole, _ = train(recipe)
    child, told = from_(recipe, "tiny@4")
    assert child.folder.name == "tiny-2"
    assert "starting from step 4 of tiny" in told
    first, second = weights(whole.folder), weights(child.folder)
    assert all(bool((first[name] == second[name]).all()) for name in first)
    assert losses(child.folder) == [line for line in losses(whole.folder) if line[0] > 4 or line[1] == "eval"]
    record = json.loads((child.folder / "run.json").read_text())
    parent = json.loads((whole.folder / "run.json").read_text())
    assert (record["parent"]["id"], record["parent"]["run"], record["parent"]["step"]) == (parent["id"], "tiny", 4)
    assert child.tokens_seen == whole.tokens_seen
    assert child.seconds > 0


def test_what_counts_its_steps_in_a_parameter_group_ends_as_the_parent(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, memory=["weights-in-bf16"], training={"save_steps": 2, "save_total_limit": 9})
    whole, _ = train(recipe)
    child, _ = from_(recipe, "tiny@4")
    first, second = weights(whole.folder), weights(child.folder)
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_the_new_learning_rate_counts_and_the_child_resumes_exactly(recipe: Path) -> None:
    train(recipe)
    changed = ["training.learning_rate=5e-4", "training.weight_decay=0.1"]
    child, told = from_(recipe, "tiny@4", *changed, name="faster")
    assert any(line.strip() == "training.learning_rate: the run has 0.001, the recipe now says 0.0005" for line in told)
    rates = {line["step"]: line["learning_rate"] for line in lines(child.folder) if line["kind"] == "train"}
    # Linear decay to 0 at step 8 after a warm-up of 2, of which 4 steps are over: step 5 takes 4/6 of the peak.
    assert rates == pytest.approx({5: 5e-4 * 4 / 6, 6: 5e-4 * 3 / 6, 7: 5e-4 * 2 / 6, 8: 5e-4 * 1 / 6})
    with pytest.raises(Exception, match="step 6 is saved"):
        from_(recipe, "tiny@4", *changed, name="faster-in-two", stop_after=6)
    again, _ = from_(recipe, "tiny@4", *changed, name="faster-in-two")
    assert again.folder.name == "faster-in-two"
    assert_same_run(child.folder, again.folder)
    finished, _ = from_(recipe, "tiny@4", *changed, name="faster-in-two")
    assert finished.already_finished


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_child_needs_its_parent_no_more(tmp_path: Path) -> None:
    recipe = written(tmp_path)
    parent, _ = train(recipe)
    runs = recipe.parent / "runs"
    with pytest.raises(Exception, match="step 5 is saved"):
        from_(recipe, "tiny@4", name="child", stop_after=5)
    kept = weights(parent.folder)
    shutil.rmtree(parent.folder)
    child, _ = train(recipe, name="child")
    assert all(bool((kept[name] == weights(child.folder)[name]).all()) for name in kept)
    assert sorted(folder.name for folder in runs.iterdir()) == ["child"]


def test_another_optimizer_begins_anew_at_its_place_in_the_schedule(recipe: Path) -> None:
    train(recipe)
    child, told = from_(recipe, "tiny@4", "optimizer=muon", name="muon")
    assert any("optimizer.plugin: the run has 'adamw', the recipe now says 'muon'" in line for line in told)
    rate = next(line["learning_rate"] for line in lines(child.folder) if line["kind"] == "train")
    assert rate == pytest.approx(0.02 * 4 / 6)  # Muon's own peak, of its matrices
    back, _ = from_(recipe, "muon@6", name="back")  # to the one with fewer parameter groups
    rate = next(line["learning_rate"] for line in lines(back.folder) if line["kind"] == "train")
    assert rate == pytest.approx(1e-3 * 2 / 6)


def test_more_data_and_another_seed_are_fine(recipe: Path) -> None:
    train(recipe)
    other = ["training.seed=9", "dataset.max_samples=100", "model.dropout=0"]
    with pytest.raises(RunMismatchError, match="have another id, or none, in the recipe's tokenizer") as refused:
        from_(recipe, "tiny@4", *other, name="more")  # it would learn its tokenizer from the other data
    copied = re.search("mkdir tokenizer && cp .* tokenizer/", str(refused.value))
    assert copied
    subprocess.run(copied[0], shell=True, cwd=recipe.parent, check=True)
    own = f"tokenizer={{plugin: pretrained, path: {recipe.parent / 'tokenizer'}}}"
    child, _ = from_(recipe, "tiny@4", *other, own, name="more")
    assert child.steps == 8


def test_the_newest_checkpoint_is_the_default(recipe: Path) -> None:
    train(recipe)
    child, told = from_(recipe, "tiny", "training.max_steps=10", name="longer")
    assert "starting from step 8 of tiny" in told
    assert child.steps == 10


def test_what_cannot_be_begun_says_why(recipe: Path) -> None:
    train(recipe)
    for place, words in (
        ("tiny@5", "tiny has checkpoints at the steps 2, 4, 6, 8"),
        ("tiny@last", "must be a step number"),
        ("tiny@", "must be a step number"),
        ("", "no run in"),
        ("other@4", "no run in"),
    ):
        with pytest.raises(UsageError, match=words):
            from_(recipe, place)
    with pytest.raises(UsageError, match=r"raise training\.max_steps"):
        from_(recipe, "tiny@8", "training.learning_rate=1e-4", name="over")
    assert not (recipe.parent / "runs" / "over").exists()
    with pytest.raises(RunMismatchError, match=r"transformer\.h\.2"):
        from_(recipe, "tiny@4", "model.num_hidden_layers=3", name="deeper")
    with pytest.raises(RunMismatchError, match="the recipe trains adapters, the checkpoint holds full weights"):
        from_(recipe, "tiny@4", "memory=[lora]", "exporters=[merge-lora]", name="adapters")
    damaged = recipe.parent / "runs" / "tiny" / "checkpoints" / "checkpoint-6" / "model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=r"that checkpoint is damaged: model\.safetensors has"):
        from_(recipe, "tiny@6")
    damaged.write_bytes(whole)


def test_a_branch_that_was_stopped_early_goes_on(recipe: Path) -> None:
    train(recipe)
    whole, _ = from_(recipe, "tiny@2", "training.learning_rate=2e-3", name="twice")
    with pytest.raises(Exception, match="step 3 is saved"):
        from_(recipe, "tiny@2", "training.learning_rate=2e-3", name="twice-in-two", stop_after=3)
    resumed = train_in_two(recipe, "training.learning_rate=2e-3", name="twice-in-two", stop_after=5)
    assert_same_run(whole.folder, resumed.folder)


WSD = {
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "linear"},
}


def rates(run: Path) -> dict[float, float]:
    return {line["step"]: line["learning_rate"] for line in lines(run) if line["kind"] == "train"}


def test_the_decay_is_a_branch_of_a_constant_run(tmp_path: Path) -> None:
    """As docs/learning-sooner.md shows it: one constant run, and a decay from any of its checkpoints."""
    constant = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2, "keep_every": 2}
    recipe = write_recipe(tmp_path, training=constant)
    trunk, _ = train(recipe)
    decay = ["training.lr_scheduler_type=warmup_stable_decay", "training.lr_scheduler_kwargs.decay_type=linear"]
    decay += ["training.lr_scheduler_kwargs.num_decay_steps=4", "training.max_steps=10"]
    branch, _ = from_(recipe, "tiny@6", *decay, name="decayed")
    assert rates(trunk.folder) == pytest.approx({1: 0, 2: 5e-4} | dict.fromkeys(range(3, 9), 1e-3))
    assert rates(branch.folder) == pytest.approx({7: 1e-3, 8: 7.5e-4, 9: 5e-4, 10: 2.5e-4})
    # Nobody has to know beforehand where the decay will begin: in one run it gives the same.
    whole, _ = train(recipe, *decay, name="in-one")
    assert losses(branch.folder) == [line for line in losses(whole.folder) if line[0] > 6]
    first, second = weights(whole.folder), weights(branch.folder)
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.slow
def test_a_decayed_run_goes_on_from_where_its_decay_began(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={**WSD, "warmup_steps": 2, "keep_every": 6})
    decayed, _ = train(recipe)
    longer, _ = from_(recipe, "tiny@6", "training.max_steps=12", name="longer")
    whole, _ = train(recipe, "training.max_steps=12", name="whole")
    assert rates(decayed.folder)[8] == pytest.approx(5e-4)
    assert rates(longer.folder) == pytest.approx(dict.fromkeys(range(7, 12), 1e-3) | {12: 5e-4})
    first, second = weights(whole.folder), weights(longer.folder)
    assert all(bool((first[name] == second[name]).all()) for name in first)
