"""ResolvedRecipe -> Trainer run -> RunResult. The same call starts a run, resumes it, or finds it finished."""

from __future__ import annotations

import contextlib
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolkit import checkpoint, processes, run_directory
from toolkit.api import Callback
from toolkit.assemble import Components, assemble, context_of, refusals_placed
from toolkit.errors import RunMismatchError, ToolkitError, UnavailableError
from toolkit.export import export, final_sample, load_line
from toolkit.host import DISK_FAULTS, check_device, check_disk, environment
from toolkit.messages import libraries_quiet, plugin_messages_told
from toolkit.progress import DataPrepared, Event, Listener, Message, RunResult, TrainingStarted
from toolkit.resolve import ResolvedRecipe
from toolkit.run_directory import RunDirectory
from toolkit.signals import StopRequest

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

    from toolkit.schedule import Cadence
    from toolkit.trainer import RecipeTrainer


def run(
    resolved: ResolvedRecipe,
    *,
    runs: Path,
    name: str | None = None,
    fresh: bool = False,
    rehearsal: bool = False,
    stop_after: int | None = None,
    listener: Listener,
) -> RunResult:
    """Train the recipe to its end, from the beginning or from the newest intact checkpoint.

    Args:
        resolved: what to train.
        runs: the folder of the runs.
        name: the run's name, if not the recipe's.
        fresh: begin a new run beside those of this name.
        rehearsal: tell the plugins that nothing may be uploaded.
        stop_after: end this attempt after so many steps of the run, as a signal would.
        listener: is told what happens.

    Raises:
        RunMismatchError: the run of this name was made with other settings.
        InterruptedRun: a signal stopped it, with its checkpoint saved.
        ToolkitError: anything else that a person can mend.
    """
    if not processes.is_first():
        listener = _told_by_the_first
    with StopRequest().handled() as stop, plugin_messages_told(listener):
        processes.join(on_cpu=resolved.device.kind == "cpu")
        check_device(resolved)
        series = name or resolved.name
        directory = processes.by_first(lambda: _directory(resolved, runs, series, fresh=fresh, rehearsal=rehearsal))
        with directory.locked() if processes.is_first() else contextlib.nullcontext():
            if directory.status == "finished":
                return _result(directory, already_finished=True)
            return _Attempt(resolved, directory, stop, listener, rehearsal=rehearsal, stop_after=stop_after).run()


def _told_by_the_first(event: Event) -> None:
    """The listener of all processes but the first."""


def _directory(resolved: ResolvedRecipe, runs: Path, series: str, *, fresh: bool, rehearsal: bool) -> RunDirectory:
    """The directory of the run to go on with, or a new one."""
    found = None if fresh else run_directory.newest_in_series(runs, series)
    if found:
        directory = RunDirectory(found)
        if not directory.is_blank:
            directory.check_identity(resolved)
            return directory
        with directory.locked():  # a start that came to nothing: its recipe may have been mended since
            shutil.rmtree(found)
    folder = found or run_directory.next_in_series(runs, series)
    directory = run_directory.create(folder, resolved, environment(resolved), series=series)
    directory.update(rehearsal=rehearsal)
    return directory


class _Attempt:
    """One process's work on a run."""

    def __init__(
        self,
        resolved: ResolvedRecipe,
        directory: RunDirectory,
        stop: StopRequest,
        listener: Listener,
        *,
        rehearsal: bool,
        stop_after: int | None,
    ) -> None:
        self.resolved = resolved
        self.directory = directory
        self.stop = stop
        self.listener = listener
        self.stop_after = stop_after
        self.context = context_of(resolved, directory.folder, rehearsal=rehearsal)

    def run(self) -> RunResult:
        """Assemble, resume, train, export; note in run.json how it ended."""
        found = processes.by_first(self._begin)
        from_step = step = found.step if found else 0
        try:
            components = processes.first_then_others(lambda: assemble(self.resolved, self.context))
            processes.by_first(lambda: self._check_data(components.data.account.key))
            cadence = self._prepare(components)
            trainer = self._trainer(components, cadence, found)
            check_disk(
                self.directory.folder,
                checkpoint_bytes=checkpoint.expected_bytes(cast("torch.nn.Module", trainer.model)),
            )
            self._train(trainer, cadence, found)
            step = trainer.state.global_step or from_step
            if step < cadence.total_steps:
                raise self.stop.error(f"step {step} is saved; the same command goes on from there")
            if processes.is_first():
                self._finish(components, trainer, step)
            processes.wait()
        except BaseException as error:
            if processes.is_first():
                how = "interrupted" if self.stop.signal_number is not None else "failed"
                with contextlib.suppress(OSError):  # a full disk is told by the error itself
                    self.directory.end_attempt(how=how, step=self._last_step(), error=_first_line(error))
            if isinstance(error, OSError) and error.errno in DISK_FAULTS:
                raise UnavailableError(
                    f"cannot write to {self.directory.folder}: {error.strerror}; the checkpoints stand: "
                    f"make room and give the same command"
                ) from error
            raise
        return _result(self.directory, already_finished=False)

    def _begin(self) -> checkpoint.Checkpoint | None:
        """Clear up after a crash, and find where to go on."""
        checkpoint.clean(self.directory.checkpoints)
        found = self._newest_checkpoint()
        from_step = found.step if found else 0
        self.directory.begin_attempt(from_step=from_step)
        self.directory.cut_metrics(from_step)
        return found

    def _newest_checkpoint(self) -> checkpoint.Checkpoint | None:
        run_id = self.directory.record["id"]
        found, skipped = checkpoint.newest_intact(self.directory.checkpoints, run_id=run_id)
        for bad in skipped:
            self.listener(Message(f"skipped {bad.folder.name}: {bad.reason}"))
        if found:
            self.listener(Message(f"going on from {found.folder}"))
        elif skipped:
            self.listener(Message("no checkpoint is intact, so the run begins again at step 0"))
        return found

    def _check_data(self, key: str) -> None:
        """The documents are part of a run's identity, and known only now."""
        before = self.directory.record.get("data_key")
        if before not in (None, key):
            difference = f"the prepared tokens: the run has {before[:12]}, the data now gives {key[:12]}"
            raise RunMismatchError(self.directory.folder, [difference])
        self.directory.update(data_key=key)

    def _prepare(self, components: Components) -> Cadence:
        """Reckon the run's length, and give the account of its data."""
        from toolkit.schedule import Cadence

        training, data = self.resolved.training, components.data
        steps_per_epoch = math.ceil(len(data.train) / training.global_batch_size)
        total_steps = training.max_steps or math.ceil(training.num_train_epochs * steps_per_epoch)
        tokens_per_step = training.global_batch_size * data.account.block_size
        prepared = DataPrepared(
            account=data.account,
            tokens_per_step=tokens_per_step,
            epochs=total_steps / steps_per_epoch,
            total_steps=total_steps,
            from_cache=data.from_cache,
        )
        budget = {"tokens_per_step": tokens_per_step, "epochs": prepared.epochs, "total_steps": total_steps}
        if processes.is_first():
            run_directory.write_json(self.directory.folder / "data.json", data.account.as_dict() | budget)
        self.listener(prepared)
        if data.validation is None:
            self.listener(
                Message("nothing is held out, so there will be no evaluation; dataset.eval_fraction: 0.05 would")
            )
        return Cadence.of(training, total_steps=total_steps, validation_blocks=len(data.validation or ()))

    def _trainer(self, components: Components, cadence: Cadence, found: checkpoint.Checkpoint | None) -> RecipeTrainer:
        from toolkit.schedule import Schedule
        from toolkit.trainer import RecipeTrainer, training_arguments

        training = self.resolved.training
        micro, accumulation = self._micro_batches()
        schedule = Schedule(cadence, self.directory, self.listener, self.stop)
        schedule.resumed_from = found.folder if found else None
        schedule.stop_after = self.stop_after
        with libraries_quiet():
            trainer = RecipeTrainer(
                components=components,
                arguments=training_arguments(
                    training,
                    output=self.directory.checkpoints,
                    micro_batch_size=micro,
                    accumulation=accumulation,
                    device_kind=self.resolved.device.kind,
                    evaluates=components.data.validation is not None,
                ),
                optimizer=self.resolved.recipe.one("optimizer"),
                run=self.directory,
                context=self.context,
                callbacks=[schedule, *self._plugin_callbacks()],
                on_saved=schedule.saved,
            )
        trainer.keep = training.save_total_limit
        schedule.trainer = trainer
        return trainer

    def _micro_batches(self) -> tuple[int, int]:
        """Sequences per forward pass on each device, and forward passes per step."""
        whole, devices = self.resolved.training.global_batch_size, processes.count()
        micro = self.resolved.training.micro_batch_size or max(1, whole // devices)
        if whole % (micro * devices):
            raise self.resolved.recipe.error(
                f"{devices} processes with micro-batches of {micro} cannot share {whole} sequences per step evenly; "
                f"set global_batch_size to a multiple of {micro * devices}",
                ("training", "global_batch_size"),
            )
        return micro, whole // (micro * devices)

    def _plugin_callbacks(self) -> list[TrainerCallback]:
        recipe, callbacks = self.resolved.recipe, []
        for path, part in recipe.components.items():
            if path[0] == "callbacks":
                with refusals_placed(recipe, path):
                    callbacks += cast(Callback, part.plugin).callbacks(self.context)
        return callbacks

    def _train(self, trainer: RecipeTrainer, cadence: Cadence, found: checkpoint.Checkpoint | None) -> None:
        if found and found.step >= cadence.total_steps:  # the Trainer would take one step more
            trainer._load_from_checkpoint(str(found.folder))
            trainer.seconds_before = float(
                run_directory.read_json(found.folder / "toolkit_state.json")["seconds_trained"]
            )
            trainer.state.global_step = found.step
            trainer.state.num_input_tokens_seen = self._tokens_seen(found.folder)
            return
        parameters = list(cast("torch.nn.Module", trainer.model).parameters())
        self.listener(
            TrainingStarted(
                folder=self.directory.folder,
                total_steps=cadence.total_steps,
                resumed_from=found.step if found else None,
                parameters=sum(parameter.numel() for parameter in parameters),
                trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
                device=self.resolved.device.name,
                precision=self.resolved.training.precision,
            )
        )
        with self.stop.deferred(), libraries_quiet():
            trainer.train(resume_from_checkpoint=str(found.folder) if found else None)

    def _tokens_seen(self, folder: Path) -> int:
        return int(run_directory.read_json(folder / "trainer_state.json")["num_input_tokens_seen"])

    def _finish(self, components: Components, trainer: RecipeTrainer, step: int) -> None:
        """Sample a text, export the model, and write down what was reached."""
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        if self.context.task == "causal-lm":
            model.config.use_cache = True  # the Trainer switches it off, and generation would crawl without it
        evaluations = [line for line in self.directory.metrics() if line["kind"] == "eval"]
        last = evaluations[-1] if evaluations else {}
        results: dict[str, Any] = {
            "steps": step,
            "tokens_seen": int(trainer.state.num_input_tokens_seen),
            "seconds": trainer.seconds_trained,
            "eval_loss": last.get("eval_loss"),
            "perplexity": last.get("perplexity"),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "sample": final_sample(model, components, self.context),
        }
        export(self.resolved, model, components, results, self.context, self.listener)
        self.directory.update(results=results)
        self.directory.end_attempt(how="finished", step=step)

    def _last_step(self) -> int:
        steps = [line["step"] for line in self.directory.metrics()]
        return max(steps, default=0)


def _result(directory: RunDirectory, *, already_finished: bool) -> RunResult:
    results = directory.record["results"]
    model = directory.model if directory.model.is_dir() else None
    return RunResult(
        folder=directory.folder,
        name=directory.name,
        already_finished=already_finished,
        steps=results["steps"],
        tokens_seen=results["tokens_seen"],
        seconds=results["seconds"],
        eval_loss=results["eval_loss"],
        perplexity=results["perplexity"],
        sample=results["sample"],
        model_folder=model,
        load_line=load_line(model, directory.record["task"]) if model else None,
    )


def _first_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, ToolkitError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0] if text else type(error).__name__
