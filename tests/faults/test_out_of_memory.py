"""Memory that runs out: the step is done again in smaller pieces, and ends as the smaller micro-batch would have."""

import json
from pathlib import Path

import pytest

from tests.faults.command_server import CommandServer
from tests.tiny import assert_same_run, callback, from_, losses, train, train_in_two, weights, write_recipe
from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.events import Message

FORWARD = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    self.left = {times}
    def fail(module, arguments, output):
        if module.training and state.global_step == {step} and self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    model.register_forward_hook(fail)
"""
BACKWARD = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    self.left = {times}
    def fail(gradient):
        if state.global_step == {step} and self.left:
            self.left -= 1
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
    # The position embedding comes last in the backward pass: the others have their gradients by then.
    model.transformer.wpe.weight.register_hook(fail)
"""
OPTIMIZER = """
def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
    self.left = {times}
    def fail(*arguments):
        if state.global_step == {step} and self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    optimizer.optimizer.register_step_pre_hook(fail)
"""
EVALUATION = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    self.left = {times}
    def fail(module, arguments, output):
        if not module.training and self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    model.register_forward_hook(fail)
"""
PLACES = {"forward": FORWARD, "backward": BACKWARD, "optimizer": OPTIMIZER}


def killed(server: CommandServer, recipe: Path) -> int:
    """Give the command with the callback `killing`; its exit status."""
    words = ("recipe", "run", str(recipe), "--set", "callbacks=[killing]")
    return server.start(words, folder=recipe.parent, output=recipe.parent / "output").wait().status


def failing(folder: Path, body: str, *, times: int = 1, step: int = 0, **sections: object) -> Path:
    callback(folder, "failing", body.format(times=times, step=step))
    return write_recipe(folder, plugin_paths=["plugins"], **sections)


@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", PLACES)
def test_the_step_is_done_again_in_smaller_pieces(tmp_path: Path, undisturbed: Path, place: str, step: int) -> None:
    # With dropout, so that the random numbers count. 5 steps make an epoch, the last one not full.
    recipe = failing(tmp_path, PLACES[place], step=step, dataset={"max_samples": 40})
    survived, events = train(recipe, "callbacks=[failing]", name="survived")
    (told,) = [e.text for e in events if isinstance(e, Message) and "out of memory" in e.text]
    assert f"of step {step + 1}: the step is repeated" in told
    assert "with micro-batches of 2 sequences" in told
    # The same settings up to that step, then half the micro-batch: the run that never ran out.
    smaller = smaller_from(write_recipe(undisturbed, dataset={"max_samples": 40}), step)
    first, second = weights(survived.folder), weights(smaller)
    assert [name for name in first if not bool((first[name] == second[name]).all())] == []
    told_losses, expected = (
        [loss for at, kind, loss in losses(folder) if kind != "memory" and at > step]
        for folder in (survived.folder, smaller)
    )
    assert told_losses == pytest.approx(expected, rel=1e-6)
    lines = [json.loads(line) for line in (survived.folder / "metrics.jsonl").read_text().splitlines()]
    (recorded,) = [line for line in lines if line["kind"] == "memory"]
    assert (recorded["step"], recorded["sequences"]) == (step + 1, 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that never ran out of memory: each is trained once, for all places where others do."""
    return tmp_path_factory.mktemp("undisturbed")


def smaller_from(recipe: Path, step: int) -> Path:
    """A run that has micro-batches of 4 up to this step, and of 2 from there on."""
    two, four = (f"memory=[{{plugin: small-batch, micro_batch_size: {size}}}]" for size in (2, 4))
    name = f"{recipe.stem}-smaller-from-{step}"
    if step == 0:
        return train(recipe, two, name=name)[0].folder
    parent = f"{recipe.stem}-saved-every-{step}"
    train(recipe, four, f"training.save_steps={step}", "training.save_total_limit=9", name=parent)
    return from_(recipe, f"{parent}@{step}", two, name=name)[0].folder


@pytest.mark.parametrize("place", PLACES)
def test_with_accumulation_the_whole_step_is_done_again(tmp_path: Path, undisturbed: Path, place: str) -> None:
    training = {"global_batch_size": 8}
    recipe = failing(tmp_path, PLACES[place], step=3, training=training)
    four = "memory=[{plugin: small-batch, micro_batch_size: 4}]"
    survived, _ = train(recipe, four, "callbacks=[failing]", name="survived")
    smaller = smaller_from(write_recipe(undisturbed, "accumulating", training=training), 3)
    first, second = weights(survived.folder), weights(smaller)
    assert [name for name in first if not bool((first[name] == second[name]).all())] == []


def test_twice_out_of_memory_is_a_quarter(tmp_path: Path) -> None:
    recipe = failing(tmp_path, FORWARD, times=2)
    survived, _ = train(recipe, "callbacks=[failing]", name="survived")
    quarter, _ = train(recipe, "memory=[{plugin: small-batch, micro_batch_size: 1}]", name="quarter")
    first, second = weights(survived.folder), weights(quarter.folder)
    assert [name for name in first if not bool((first[name] == second[name]).all())] == []


def test_what_fits_with_no_sequence_says_what_to_try(tmp_path: Path) -> None:
    recipe = failing(tmp_path, FORWARD, times=99, step=3)
    with pytest.raises(TrainingError, match="of step 4, with a micro-batch of one sequence") as error:
        train(recipe, "callbacks=[failing]")
    assert "gradient-checkpointing" in str(error.value)


def test_a_resume_goes_on_in_pieces_and_is_exact(tmp_path: Path) -> None:
    recipe = failing(tmp_path, FORWARD, step=2)
    whole, _ = train(recipe, "callbacks=[failing]", name="whole")
    resumed = train_in_two(recipe, "callbacks=[failing]", name="resumed", stop_after=5)
    assert_same_run(whole.folder, resumed.folder)


def test_an_evaluation_shrinks_its_own_batch_alone(tmp_path: Path) -> None:
    recipe = failing(tmp_path, EVALUATION)
    survived, events = train(recipe, "callbacks=[failing]", name="survived")
    assert [e.text for e in events if isinstance(e, Message) and "batches of 2" in e.text]
    whole, _ = train(recipe, name="whole")
    first, second = weights(whole.folder), weights(survived.folder)
    assert [name for name in first if not bool((first[name] == second[name]).all())] == []
    assert survived.eval_loss == pytest.approx(whole.eval_loss, rel=1e-6)


def test_another_error_is_no_matter_of_memory(tmp_path: Path) -> None:
    body = FORWARD.replace("torch.OutOfMemoryError", "RuntimeError").replace("CUDA out of memory.", "Something else.")
    recipe = failing(tmp_path, body)
    with pytest.raises(RuntimeError, match="Something else"):
        train(recipe, "callbacks=[failing]")


def test_after_the_kernel_has_ended_it_the_same_command_begins_smaller(server: CommandServer, tmp_path: Path) -> None:
    """The kernel's killer sends SIGKILL; what tells it from any other is how much the process held."""
    from toolkit.memory.watch import READING_LAYOUT, READINGS_FILE, last_reading

    body = "def on_step_begin(self, args, state, control, **kwargs):\n    if state.global_step == 3:\n        kill(9)"
    callback(tmp_path, "killing", body)
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], training={"save_steps": 2, "save_in_background": False})
    run = tmp_path / "runs" / "tiny"

    def told() -> list[str]:
        _, events = train(recipe)
        return [e.text for e in events if isinstance(e, Message) and "killed, apparently out of memory" in e.text]

    assert killed(server, recipe) == -9
    reading = last_reading(run)
    assert reading is not None
    assert 50e6 < reading.resident < reading.limit
    # It was far from the limit, so this kill was somebody's. Now the same with little left.
    (run / READINGS_FILE).write_bytes(READING_LAYOUT.pack(95 * 2**30, 100 * 2**30))
    (message,) = told()
    assert "it held 95.00 of 100.00 GiB" in message
    assert "with micro-batches of 2 sequences" in message
    train(recipe, "training.save_total_limit=9", name="larger")
    smaller, _ = from_(recipe, "larger@2", "memory=[{plugin: small-batch, micro_batch_size: 2}]", name="smaller")
    first, second = weights(run), weights(smaller.folder)
    assert [name for name in first if not bool((first[name] == second[name]).all())] == []


def test_killed_in_its_first_step_it_begins_smaller_too(server: CommandServer, tmp_path: Path) -> None:
    """Nothing of it could be lost, but it would be killed in the same way for ever."""
    from toolkit.memory.watch import READING_LAYOUT, READINGS_FILE

    callback(tmp_path, "killing", "def on_step_begin(self, args, state, control, **kwargs):\n    kill(9)")
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"])
    assert killed(server, recipe) == -9
    (tmp_path / "runs/tiny" / READINGS_FILE).write_bytes(READING_LAYOUT.pack(95 * 2**30, 100 * 2**30))
    result, events = train(recipe)
    assert any("with micro-batches of 2 sequences" in event.text for event in events if isinstance(event, Message))
    assert result.steps == 8


def test_released_gradients_are_not_cut_into_pieces_after_a_kill(server: CommandServer, tmp_path: Path) -> None:
    from toolkit.memory.watch import READING_LAYOUT, READINGS_FILE

    callback(tmp_path, "killing", "def on_step_begin(self, args, state, control, **kwargs):\n    kill(9)")
    settings = {"memory": ["release-gradients"], "training": {"max_grad_norm": 0}}
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], **settings)
    whole, _ = train(recipe, name="whole")
    assert killed(server, recipe) == -9
    (tmp_path / "runs/tiny" / READINGS_FILE).write_bytes(READING_LAYOUT.pack(95 * 2**30, 100 * 2**30))
    result, events = train(recipe)
    assert any("release-gradients" in event.text for event in events if isinstance(event, Message))
    assert_same_run(whole.folder, result.folder)


def test_a_process_that_was_killed_before_it_read_its_memory_is_not_blamed(tmp_path: Path) -> None:
    from toolkit.memory.watch import READING_LAYOUT, READINGS_FILE, last_reading

    (tmp_path / READINGS_FILE).write_bytes(bytes(READING_LAYOUT.size))
    assert last_reading(tmp_path) is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("weight", [0, 3])
def test_in_the_middle_of_the_optimizers_step_nothing_is_stepped_twice(optimizer: str, weight: int) -> None:
    """Some weights moved and others not: no smaller passes can mend that, whatever the optimizer counts."""
    import torch
    from accelerate import Accelerator

    from toolkit.memory.oom_retry import RetryingOptimizer

    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(8, 8)) for _ in range(4)]
    # SGD with momentum counts no steps, as Muon does not for its matrices.
    made = torch.optim.AdamW(weights) if optimizer == "adamw" else torch.optim.SGD(weights, momentum=0.9)
    for parameter in weights:
        parameter.grad = torch.ones_like(parameter)
    plain, again = made.step, []

    def failing(closure: object = None) -> None:
        if not again:
            for parameter in weights[weight:]:
                parameter.grad = None
            plain()
            for parameter in weights[weight:]:
                parameter.grad = torch.ones_like(parameter)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        plain()

    made.step = failing  # type: ignore[method-assign]  # it is to fail
    retrying = RetryingOptimizer(
        made,
        Accelerator(cpu=True),
        passes_again=lambda: again.append(1),
        half_moved=lambda: TrainingError("half moved"),
    )
    if weight:
        with pytest.raises(TrainingError, match="half moved"):
            retrying.step()
    else:
        retrying.step()
        assert again == [1]


HALF_MOVED = """
def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
    made = optimizer.optimizer
    weights = [weight for group in made.param_groups for weight in group["params"]]
    def fail(*arguments):
        if state.global_step == {step} and self.sequences > 2:
            weights[0].detach().add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    made.register_step_pre_hook(fail)
def on_step_begin(self, args, state, control, model=None, **kwargs):
    if not hasattr(self, "sequences"):
        def count(module, arguments, output):
            self.sequences = len(output.logits)
        model.register_forward_hook(count)
"""


def test_what_cannot_be_done_again_begins_smaller_at_the_next_start(tmp_path: Path) -> None:
    """Where the optimizer has moved some weights and others not: from the last checkpoint, as if by hand."""
    recipe = failing(tmp_path, HALF_MOVED, step=5, training={"save_steps": 4, "save_total_limit": 9})
    with pytest.raises(OutOfMemoryError, match=r"of step 6, and this attempt .* with micro-batches of 2 sequences"):
        train(recipe, "callbacks=[failing]", name="survived")
    survived, events = train(recipe, "callbacks=[failing]", name="survived")
    (told,) = [e.text for e in events if isinstance(e, Message) and "ran out of memory" in e.text]
    assert "trains with micro-batches of 2 sequences" in told
    assert not (survived.folder / "out-of-memory.json").exists()
    first, second = weights(survived.folder), weights(smaller_from(recipe, 4))
    assert [name for name in first if not bool((first[name] == second[name]).all())] == []


def test_in_the_first_step_too(tmp_path: Path) -> None:
    """Nothing of such an attempt could be lost, but what it has found out would be."""
    recipe = failing(tmp_path, HALF_MOVED.replace("if not hasattr", "if True or not hasattr"), step=0)
    with pytest.raises(OutOfMemoryError, match="of step 1, "):
        train(recipe, "callbacks=[failing]")
    result, events = train(recipe, "callbacks=[failing]")
    assert any(
        "trains with micro-batches of 2 sequences" in event.text for event in events if isinstance(event, Message)
    )
    assert result.steps == 8


@pytest.mark.parametrize("optimizer", ["adamw", "rounding"])
@pytest.mark.parametrize("allocation", [1, 2, 3])
def test_a_state_that_was_half_made_is_made_again(
    optimizer: str, allocation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam takes memory for its two averages in its first step, a weight at a time: the likeliest place of all."""
    import torch
    from accelerate import Accelerator

    from toolkit.memory.oom_retry import RetryingOptimizer
    from toolkit_plugins.memory.stochastic_rounding import StochasticRounding

    def made() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        kind = torch.bfloat16 if optimizer == "rounding" else torch.float32
        weights = [torch.nn.Parameter(torch.randn(8, 8).to(kind)) for _ in range(3)]
        for parameter in weights:
            parameter.grad = torch.ones_like(parameter)
        inner = torch.optim.AdamW(weights, lr=0.1)
        return weights, StochasticRounding(inner, seed=1) if optimizer == "rounding" else inner

    expected, plain = made()
    plain.step()
    weights, surviving = made()
    allocations, again, real = [], [], torch.zeros_like

    def zeros_like(*args: object, **kwargs: object) -> torch.Tensor:
        allocations.append(1)
        if len(allocations) == allocation:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    moved = optimizer == "rounding" and allocation == 3  # it steps one weight after the other
    retrying = RetryingOptimizer(
        surviving,
        Accelerator(cpu=True),
        passes_again=lambda: again.append(1),
        half_moved=lambda: TrainingError("half moved"),
    )
    if moved:
        with pytest.raises(TrainingError, match="half moved"):
            retrying.step()
        return
    retrying.step()
    assert again == [1]
    assert all(torch.equal(one, other) for one, other in zip(expected, weights, strict=True))


def test_of_several_processes_the_fullest_that_was_ended_counts(tmp_path: Path) -> None:
    from toolkit.memory.allocator import FreedMemory
    from toolkit.memory.watch import READING_LAYOUT, READINGS_FILE, forget_readings, last_reading, watched

    (tmp_path / READINGS_FILE).write_bytes(READING_LAYOUT.pack(10, 100))
    (tmp_path / f"{READINGS_FILE}.1").write_bytes(READING_LAYOUT.pack(95, 100))
    reading = last_reading(tmp_path)
    assert reading is not None
    assert (reading.resident, reading.is_near_the_limit) == (95, True)
    forget_readings(tmp_path)
    assert last_reading(tmp_path) is None
    with watched(tmp_path, limit=10**15, planned=None, freed=FreedMemory(matters=False), rank=1):
        assert (tmp_path / f"{READINGS_FILE}.1").exists()
    assert list(tmp_path.iterdir()) == []  # what comes to its end by itself leaves nothing


def test_memory_is_in_the_metrics(tmp_path: Path) -> None:
    result, _ = train(write_recipe(tmp_path))
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    readings = [line["memory_bytes"] for line in lines if line["kind"] == "train"]
    assert len(readings) == 8
    assert all(50e6 < reading < 50e9 for reading in readings)
    peak = json.loads((result.folder / "run.json").read_text())["results"]["peak_memory_bytes"]
    assert peak >= max(readings)
