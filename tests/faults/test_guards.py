"""Numbers that are none, and losses that jump: found before the weights take them, with the documents named."""

import json
import re
from pathlib import Path

import pytest

from tests.tiny import assert_same_run, callback, steps_of, train, train_in_two, weights, write_recipe
from toolkit.errors import TrainingError
from toolkit.events import Message
from toolkit.training import loss_guard

JUMP = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    def spoil(module, arguments, output):
        if module.training and state.global_step in {steps}:
            output.logits = output.logits * {factor}
        return output
    model.register_forward_hook(spoil)
"""
"""Makes the logits of some steps (counted from 0) so large that the loss jumps."""


def recipe_with(folder: Path, body: str, **training: object) -> Path:
    callback(folder, "spoiler", body)
    settings = {"max_steps": 26, "eval_steps": 26, "logging_steps": 1, **training}
    return write_recipe(folder, plugin_paths=["plugins"], callbacks=["spoiler"], training=settings)


def judge_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the device judge, as on a GPU, although it is the CPU."""
    monkeypatch.setattr(loss_guard, "ASYNCHRONOUS_DEVICES", {"cpu"})


def texts_of(folder: Path, rows: str) -> list[str]:
    """The training documents of these numbers, as the dataset plugin splits them."""
    from tests.tiny import resolved
    from toolkit.training.components import context_of
    from toolkit.training.loading import documents_of

    recipe = resolved(folder / "tiny.yaml")
    data, _ = documents_of(recipe.recipe.dataset, recipe.recipe, context_of(recipe, folder / "elsewhere"))
    train_split = data["train"]
    numbers: list[int] = []
    for part in rows.replace(",", "").split(" "):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [train_split[number]["text"] for number in numbers]


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (JUMP.format(steps={5}, factor="float('nan')"), "the loss of step 6 is not a finite number"),
        (
            "def on_pre_optimizer_step(self, args, state, control, **kwargs):\n    pass\n"
            "def on_train_begin(self, args, state, control, model=None, **kwargs):\n"
            "    model.transformer.wte.weight.register_hook(\n"
            "        lambda gradient: gradient * float('inf') if state.global_step == 5 else gradient\n"
            "    )",
            "the gradient of step 6 is not a finite number",
        ),
        (
            "def on_optimizer_step(self, args, state, control, model=None, **kwargs):\n"
            "    if state.global_step == 5:\n"
            "        model.transformer.wte.weight.data[0, 0] = float('nan')",
            "after step 6, transformer.wte.weight contains non-finite values",
        ),
        (
            "def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):\n"
            "    if state.global_step == 5:\n"
            "        next(iter(optimizer.state.values()))['exp_avg_sq'][0] = float('inf')",
            "after step 6, the optimizer's exp_avg_sq contains non-finite values",
        ),
    ],
    ids=["loss", "gradient", "weights", "optimizer"],
)
def test_what_is_not_finite_stops_the_run_and_is_not_saved(
    tmp_path: Path, spoil: str, what: str, in_background: bool
) -> None:
    recipe = recipe_with(tmp_path, spoil, save_steps=2, save_in_background=in_background)
    with pytest.raises(TrainingError) as error:
        train(recipe)
    message = str(error.value)
    # What a thread finds is looked at after the next step, whose loss shows bad weights before that.
    shown_by_the_loss = in_background and what.startswith("after step 6, transformer.wte.weight")
    assert ("the loss of step 7 is not a finite number" if shown_by_the_loss else what) in message
    assert "earlier checkpoints are unaffected" in message
    assert "learning_rate" in message
    assert steps_of(tmp_path / "runs" / "tiny") == {2, 4}
    found = re.search(r"documents (.+) of the training split \(blocks (.+)\), from: '(.+)'", message)
    assert found, message
    named = " ".join(texts_of(tmp_path, found[1]))
    assert found[3].replace("<|endoftext|>", " ").split()[1] in named


def test_the_same_command_comes_to_the_same_place_from_the_checkpoint(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, JUMP.format(steps={5}, factor="float('nan')"), save_steps=2)
    messages = []
    for _ in range(2):
        with pytest.raises(TrainingError) as error:
            train(recipe)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_spike_is_told_and_recorded(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, JUMP.format(steps={22}, factor=50))
    result, events = train(recipe)
    (told,) = [event.text for event in events if isinstance(event, Message) and "the loss is" in event.text]
    assert "step 23: the loss is" in told
    assert "training continues; documents" in told
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    (spike,) = [line for line in lines if line["kind"] == "spike"]
    loss = next(line["loss"] for line in lines if line["kind"] == "train" and line["step"] == 23)
    assert spike["loss"] == pytest.approx(loss, rel=1e-5)
    assert (spike["step"], spike["action"]) == (23, "warn")
    assert spike["mean"] + 6 * spike["deviation"] < spike["loss"]


def test_a_run_can_stop_at_a_spike_and_go_on_with_a_warning(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, JUMP.format(steps={22}, factor=50), save_steps=20)
    with pytest.raises(TrainingError, match="the loss of step 23 is"):
        train(recipe, "training.on_spike=stop")
    assert train(recipe)[0].steps == 26


def test_a_batch_with_a_spike_is_left_out(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, JUMP.format(steps={22}, factor=50), max_steps=23, save_steps=22, save_total_limit=9)
    skipped, _ = train(recipe, "training.on_spike=skip-batch", name="skipped")
    from safetensors.torch import load_file

    before = load_file(skipped.folder / "checkpoints" / "checkpoint-22" / "model.safetensors")
    after = weights(skipped.folder)
    assert all(bool((before[name] == after[name]).all()) for name in before)
    taken, _ = train(recipe, name="taken")
    assert any(bool((before[name] != weights(taken.folder)[name]).any()) for name in before)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_left_out_batches_resume_exactly(
    tmp_path: Path, optimizer: str, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_device:
        judge_on_device(monkeypatch)
    body = JUMP.format(steps={21, 24}, factor=50)
    recipe = recipe_with(tmp_path, body, on_spike="skip-batch", save_in_background=True, save_steps=5)
    whole, _ = train(recipe, f"optimizer={optimizer}", name="whole")
    resumed = train_in_two(recipe, f"optimizer={optimizer}", name="resumed", stop_after=23)
    assert_same_run(whole.folder, resumed.folder)
    spikes = [line for line in (resumed.folder / "metrics.jsonl").read_text().splitlines() if '"spike"' in line]
    assert len(spikes) == 2


def test_too_many_spikes_in_a_row_are_none(tmp_path: Path) -> None:
    recipe = recipe_with(
        tmp_path, JUMP.format(steps=set(range(21, 60)), factor=50), max_steps=60, on_spike="skip-batch"
    )
    with pytest.raises(TrainingError, match="10 batches in a row were skipped"):
        train(recipe)


def test_no_spike_where_there_is_none(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"max_steps": 60, "eval_steps": 60})
    result, _ = train(recipe)
    assert '"spike"' not in (result.folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("on_spike", ["warn", "skip-batch", "stop"])
def test_the_device_judges_as_the_host_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_spike: str) -> None:
    """The step that is not finite is one that would be logged, evaluated and saved."""
    factor = "(float('nan') if state.global_step == 25 else 50)"
    body = JUMP.format(steps={22, 24, 25}, factor=factor)
    every = {"logging_steps": 13, "eval_steps": 13, "save_steps": 13, "max_steps": 30}
    recipe = recipe_with(tmp_path, body, on_spike=on_spike, **every)
    messages, lines, saved = [], [], []
    for judge in ("host", "device"):
        if judge == "device":
            judge_on_device(monkeypatch)
        with pytest.raises(TrainingError) as error:
            train(recipe, name=judge)
        folder = tmp_path / "runs" / judge
        messages.append(str(error.value))
        known = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        told = ("step", "kind", "loss", "eval_loss", "action", "batch", "mean", "deviation")
        lines.append([tuple(line.get(name) for name in told) for line in known if line["kind"] != "save"])
        assert steps_of(folder) == {13}
        saved.append((folder / "checkpoints" / "checkpoint-13" / "model.safetensors").read_bytes())
    assert messages[0] == messages[1]
    assert ("step 23 is" if on_spike == "stop" else "step 26 is not a finite") in messages[0]
    assert saved[0] == saved[1]
    spikes = [line[6:] for line in lines[0] if line[1] == "spike"]
    assert len(spikes) == (2 if on_spike == "skip-batch" else 1)  # with "warn" the first makes the second usual
    assert [line[:6] for line in lines[0]] == [line[:6] for line in lines[1]]
    for one, other in zip(spikes, [line[6:] for line in lines[1] if line[1] == "spike"], strict=True):
        assert one == pytest.approx(other, rel=1e-12)
