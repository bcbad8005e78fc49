"""Callbacks, in a real Trainer: samples that a resume does not repeat, and a stop that a resume remembers."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from toolkit.api import RunContext, ToolkitError
from toolkit.storage.run_directory import RunDirectory
from toolkit_plugins.callback.early_stopping import EarlyStopping
from toolkit_plugins.callback.samples import FILE, Samples
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

TEXT = ["some words, and some more words"] * 3


@pytest.fixture
def run(run_context: RunContext) -> RunContext:
    run_context.folder.mkdir()
    return run_context


@pytest.fixture
def tokenizer(run: RunContext):
    return ByteBPE(vocab_size=300).build(TEXT, run)


def trainer_of(tokenizer, run: RunContext, callbacks: list[TrainerCallback], **options: object) -> Trainer:
    torch.manual_seed(0)
    ids = torch.randint(200, (24, 16), generator=torch.Generator().manual_seed(3))
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        **{
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_steps": 3,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        },
    )
    return Trainer(
        model=GPT2(num_hidden_layers=2, hidden_size=32, dropout=0.1).build(tokenizer, run),
        args=arguments,
        train_dataset=data,
        eval_dataset=data[:4],
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def written(run: RunContext) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.folder / FILE).read_text(encoding="utf-8").splitlines()]


class TestSamples:
    def test_every_so_many_steps(self, tokenizer, run: RunContext, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "toolkit")
        plugin = Samples(every_steps=2, prompt="some words", max_new_tokens=5)
        trainer_of(tokenizer, run, plugin.callbacks(run)).train()
        samples = written(run)
        assert [sample["step"] for sample in samples] == [2, 4, 6]
        assert {sample["prompt"] for sample in samples} == {"some words"}
        assert all(len(tokenizer.encode(sample["text"])) > 0 for sample in samples)
        assert [line.partition(" wrote: ")[0] for line in caplog.messages if "wrote" in line] == [
            f"step {step}" for step in (2, 4, 6)
        ]
        assert all("\n" not in line and "wrote: some words" in line for line in caplog.messages if "wrote" in line)

    def test_ten_times_in_a_run(self, tokenizer, run: RunContext) -> None:
        callbacks = Samples(max_new_tokens=1).callbacks(run)
        trainer_of(tokenizer, run, callbacks, max_steps=20, save_strategy="no").train()
        assert [sample["step"] for sample in written(run)] == list(range(2, 21, 2))

    def test_training_does_not_notice(self, tokenizer, run: RunContext) -> None:
        """Dropout draws from the generator that sampling would have used, and needs the model in training mode."""
        plain = trainer_of(tokenizer, run, [])
        plain.train()
        watched = trainer_of(tokenizer, run, Samples(every_steps=1, max_new_tokens=4).callbacks(run))
        watched.train()
        assert plain.state.log_history[0]["loss"] == watched.state.log_history[0]["loss"]
        for ours, theirs in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_the_same_step_gives_the_same_text_and_a_resume_repeats_none(self, tokenizer, run: RunContext) -> None:
        plugin = Samples(every_steps=2, max_new_tokens=5)
        trainer_of(tokenizer, run, plugin.callbacks(run)).train()
        before = written(run)
        RunDirectory(run.folder).cut_metrics(3)  # as every attempt does that goes on from there
        resumed = trainer_of(tokenizer, run, plugin.callbacks(run))
        resumed.train(resume_from_checkpoint=str(run.folder / "checkpoints" / "checkpoint-3"))
        assert written(run) == before

    def test_whatever_the_model_writes_stands_in_one_line(
        self, tokenizer, run: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "half a character \ufffd, a line\u2028and a paragraph\u0085"
        monkeypatch.setattr(Samples, "sample", lambda *_, **__: text)
        trainer_of(tokenizer, run, Samples(every_steps=3).callbacks(run)).train()
        with (run.folder / FILE).open("a") as file:
            file.write('{"step": 6, "te')
        RunDirectory(run.folder).cut_metrics(4)
        assert [(sample["step"], sample["text"]) for sample in written(run)] == [(3, text)]

    def test_a_disk_that_is_full_does_not_end_the_run(
        self, tokenizer, run: RunContext, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "toolkit")
        (run.folder / FILE).symlink_to("/dev/full")
        trainer_of(tokenizer, run, Samples(every_steps=3, max_new_tokens=2).callbacks(run)).train()
        assert any("its text is not in samples.jsonl: No space left" in line for line in caplog.messages)

    def test_no_longer_than_the_model_can_read(self, tokenizer, run: RunContext) -> None:
        model = GPT2(num_hidden_layers=1, hidden_size=32).build(tokenizer, replace(run, block_size=8))
        room = 8 - len(tokenizer.encode("some words"))
        long, exact = (
            Samples(max_new_tokens=length, prompt="some words").sample(model, tokenizer, seed=1)
            for length in (100, room)
        )
        assert long == exact
        with pytest.raises(ToolkitError, match="shorten it"):
            Samples(prompt="some words" * 9).sample(model, tokenizer, seed=1)

    def test_temperature_zero_is_the_likeliest(self, tokenizer, run: RunContext) -> None:
        model = GPT2(num_hidden_layers=1, hidden_size=32).build(tokenizer, run)
        texts = {Samples(temperature=0, max_new_tokens=6).sample(model, tokenizer, seed=seed) for seed in range(4)}
        assert len(texts) == 1

    def test_masked_lm_has_none_and_says_why(self, run: RunContext, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "toolkit")
        assert Samples().callbacks(replace(run, task="masked-lm")) == []
        assert "writes no text" in caplog.text


class TestEarlyStopping:
    def evaluated(self, callback: TrainerCallback, losses: list[float]) -> int | None:
        """Number of evaluations until the training is stopped."""
        from transformers import TrainerControl

        control, state = TrainerControl(), TrainerState(stateful_callbacks=[callback])
        callback.on_train_begin(None, state, control)
        for number, loss in enumerate(losses, start=1):
            callback.on_evaluate(None, state, control, metrics={"eval_loss": loss})
            if control.should_training_stop:
                return number
        return None

    @pytest.mark.parametrize(
        ("options", "losses", "stop"),
        [
            ({"patience": 2}, [5, 4, 3, 2, 1], None),
            ({"patience": 2}, [5, 4, 4.1, 4.2, 3], 4),
            ({"patience": 2}, [5, 4, 4.1, 3.9, 4, 4], 6),
            ({"patience": 1}, [5, 5], 2),
            ({"patience": 2, "threshold": 0.5}, [5, 4.8, 4.6, 4.4, 4.2], 3),
            ({"patience": 3, "threshold": 0.5}, [5, 4.8, 4.6, 4.4, 4.2], None),
            ({"patience": 2}, [float("nan"), 5, 4], None),
            ({"patience": 2}, [5, float("nan"), float("nan")], 3),
            ({"patience": 1}, [float("nan")], 1),
        ],
    )
    def test_patience(self, run: RunContext, options: dict[str, float], losses: list[float], stop: int | None) -> None:
        (callback,) = EarlyStopping(**options).callbacks(run)
        assert self.evaluated(callback, losses) == stop

    def test_a_trainer_stops_and_says_so(self, tokenizer, run: RunContext, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "toolkit")
        plugin = EarlyStopping(patience=2, threshold=100.0)
        trainer = trainer_of(tokenizer, run, plugin.callbacks(run), max_steps=20, eval_strategy="steps", eval_steps=2)
        trainer.train()
        assert trainer.state.global_step == 6
        assert "step 6: 2 evaluations in a row brought no loss below" in caplog.text

    def test_a_resume_remembers(self, tokenizer, run: RunContext) -> None:
        plugin = EarlyStopping(patience=3, threshold=100.0)
        options = {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 5}
        whole = trainer_of(tokenizer, run, plugin.callbacks(run), **options)
        whole.train()
        assert whole.state.global_step == 8
        resumed = trainer_of(tokenizer, run, plugin.callbacks(run), **options)
        resumed.train(resume_from_checkpoint=str(run.folder / "checkpoints" / "checkpoint-5"))
        assert resumed.state.global_step == 8

    def test_it_can_be_added_to_a_run_that_has_begun(self, tokenizer, run: RunContext) -> None:
        options = {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 3}
        trainer_of(tokenizer, run, [], **options).train()
        plugin = EarlyStopping(patience=1, threshold=100.0)
        resumed = trainer_of(tokenizer, run, plugin.callbacks(run), **options)
        resumed.train(resume_from_checkpoint=str(run.folder / "checkpoints" / "checkpoint-3"))
        assert resumed.state.global_step == 6
