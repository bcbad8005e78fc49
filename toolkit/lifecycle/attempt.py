"""One process's work on a run: assemble, resume, train, export, and record in run.json how it ended."""

from __future__ import annotations

import contextlib
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from toolkit.data.stats import DataAccount
from toolkit.errors import InterruptedRun, TrainingError
from toolkit.events import Listener, Message, ProgressReporter, TrainingStarted
from toolkit.lifecycle import branch, compile_choice, ending, run_of_stream
from toolkit.lifecycle.comparison import exporters_of, require_same_data
from toolkit.lifecycle.export import export, final_sample, ready, told_by
from toolkit.lifecycle.length_told import account_refreshed, length_told
from toolkit.lifecycle.saving import saver_of
from toolkit.lifecycle.start import Start, begin_attempt
from toolkit.lifecycle.trial_save import try_saving
from toolkit.logs import libraries_quiet
from toolkit.memory import watch
from toolkit.memory.allocator import FreedMemory
from toolkit.memory.budget import own_share
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage import checkpoint
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.run_directory import DATA_FILE, RunDirectory
from toolkit.system import distributed
from toolkit.system.disk import check_disk, seconds_to_write
from toolkit.system.files import read_json
from toolkit.system.host_memory import peak_bytes
from toolkit.system.signals import Interrupt, StopRequest
from toolkit.training.components import Components, assemble, context_of
from toolkit.training.intervals import Intervals
from toolkit.training.refusals import refusals_placed
from toolkit.training.sources import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from toolkit.training.trainer import RecipeTrainer


class Attempt:
    """One process's work on a run."""

    def __init__(
        self,
        resolved: ResolvedRecipe,
        directory: RunDirectory,
        stop: StopRequest,
        listener: Listener,
        *,
        prepared: Prepared | None,
        rehearsal: bool,
        stop_after: int | None,
        profile_steps: int | None,
    ) -> None:
        self.resolved = resolved
        self.directory = directory
        self.stop = stop
        self.listener = listener
        self.prepared = prepared
        self.stop_after = stop_after
        self.profile_steps = profile_steps
        self.freed = FreedMemory(matters=resolved.device.kind == "cpu")
        self.sizes = BatchSplit.of(resolved, processes=distributed.world_size())
        self.context = context_of(resolved, directory.folder, rehearsal=rehearsal, progress=ProgressReporter(listener))

    def run(self) -> None:
        """Assemble, resume, train and export; record in run.json how it ended."""
        size = self.sizes.micro_batch_size
        start = distributed.by_main_process(
            lambda: begin_attempt(self.directory, self.resolved, self.listener, micro_batch_size=size)
        )
        with self._memory_watched():
            self._work(start)

    def _memory_watched(self) -> contextlib.AbstractContextManager[None]:
        record, device = self.directory.record, self.resolved.device
        share = own_share(device.memory_bytes, device, distributed.world_size())
        return watch.watched(
            self.directory.folder,
            limit=record.get("memory_budget_bytes") or share,
            planned=record.get("planned_memory_bytes"),
            freed=self.freed,
            rank=distributed.rank(),
        )

    def _work(self, start: Start) -> None:
        with ending.noted(self.directory, self.stop), contextlib.ExitStack() as stack:
            with self.stop.never_swallowed():
                components = distributed.main_process_first(
                    lambda: assemble(self.resolved, self.context, self.prepared)
                )
                run_of_stream.end_preparation_with(stack, components)
                distributed.by_main_process(lambda: self._check_data(components.data.account))
                intervals = length_told(self.resolved, components.data, self.directory, self.listener)
                states = self.resolved.training.optimizer_states
                checkpoint_bytes = checkpoint.expected_bytes(components.model, optimizer_states=states)
                if start.folder and start.of_parent:
                    branch.check_fits(
                        self.directory,
                        start.folder,
                        components.model,
                        components.tokenizer,
                        total_steps=intervals.total_steps,
                    )
                check_disk(self.directory.folder, checkpoint_bytes=checkpoint_bytes)
                trainer = self._trainer(components, intervals, start, checkpoint_bytes)
                if not self._is_over(intervals, start):
                    context, steps = self.context, intervals.total_steps
                    try_saving(self.resolved, components, trainer, self.directory, context, steps, self.listener)
                self._shard(trainer)
                if not self._is_over(intervals, start):
                    with self.stop.held_back():
                        self.resolved = compile_choice.decide(
                            self.resolved,
                            trainer,
                            self.directory,
                            steps=intervals.total_steps - start.step,
                            listener=self.listener,
                        )
                    self._profile(trainer)
                    size = self.resolved.training.global_batch_size
                    run_of_stream.await_first_steps(
                        components, start.step, batch_size=size, progress=self.context.progress
                    )
            with self._compiled(components):
                self._train(trainer, intervals, start)
            step = trainer.state.global_step or start.step
            is_short = step < intervals.total_steps or trainer.status.evaluation_left_out
            if is_short and self.stop.signal_number is not None:
                run_of_stream.raise_failure(components, step, self.listener)
                raise self.stop.error(f"step {step} is saved; the same command resumes from there")
            model = trainer.finished_model()
            if distributed.is_main_process():
                self._finish(model, components, trainer, step)
            distributed.barrier()

    def _shard(self, trainer: RecipeTrainer) -> None:
        """Shard the model, if the recipe asks for it; say so where there is nobody to share it with."""
        if self.resolved.training.shard and not trainer.shards:
            self.listener(
                Message(
                    "shard has no effect in one process, which holds all of the weights and the optimizer state; "
                    "start several: --processes N"
                )
            )
        trainer.shard_model()

    def _compiled(self, components: Components) -> contextlib.AbstractContextManager[None]:
        if self.resolved.training.torch_compile is not True:
            return contextlib.nullcontext()
        from toolkit.training.compilation import compiled

        return compiled(components.model, components.loss)

    def _check_data(self, account: DataAccount) -> None:
        """Check the documents: they are part of a run's identity, and known only now."""
        require_same_data(self.directory, account)
        self.directory.update(data_key=account.key)

    def _trainer(
        self, components: Components, intervals: Intervals, start: Start, checkpoint_bytes: int
    ) -> RecipeTrainer:
        from toolkit.planning.roofline import product_rate
        from toolkit.training.build import build_trainer
        from toolkit.training.pace import Pace
        from toolkit.training.run_callback import RunCallback
        from toolkit.training.short_blocks import ShortBlocks
        from toolkit.training.status import TrainingStatus

        device, training = self.resolved.device, self.resolved.training
        log, short = MetricsLog(self.directory, self.listener), ShortBlocks.of(training, intervals.total_steps)
        saver = saver_of(self.directory, training, components.model, start, log)
        save_seconds = distributed.by_main_process(
            lambda: seconds_to_write(self.directory.checkpoints, checkpoint_bytes)
        )
        rate = distributed.by_main_process(lambda: product_rate(device, training.precision))
        pace = Pace(
            save_seconds=save_seconds,
            stall_seconds=0.0 if saver.in_background else save_seconds,
            evaluation_tokens=len(components.data.validation or ()) * self.context.block_size,
            flops_per_token=short.flops_per_token(components.model, self.context.block_size),
            device_flops=distributed.world_size() * rate,
        )
        # A run that starts from another's checkpoint evaluates there first, as its parent did.
        begins = start.of_parent and not self.directory.metrics()
        due = intervals.eval_steps is not None and start.step % intervals.eval_steps == 0
        status = TrainingStatus(evaluation_left_out=start.evaluation_left_out or (begins and due))
        flow = RunCallback(
            intervals,
            pace,
            log=log,
            saver=saver,
            status=status,
            stop=self.stop,
            stop_after=self.stop_after,
            epochs=components.data.epochs,
        )
        size, progress = training.global_batch_size, self.context.progress
        waiting = run_of_stream.data_wait(components, batch_size=size, stop=self.stop, progress=progress)
        return build_trainer(
            self.resolved,
            components,
            self.context,
            self.sizes,
            saver=saver,
            log=log,
            status=status,
            stop=self.stop,
            callbacks=[*self._plugin_callbacks(), *waiting, flow],  # flow after all that decide
            sequences=start.sequences,
            evaluation_sequences=start.evaluation_sequences,
            total_steps=intervals.total_steps,
            with_new_settings=start.of_parent,
        )

    def _plugin_callbacks(self) -> list[TrainerCallback]:
        recipe, callbacks = self.resolved.recipe, []
        for part in recipe.callbacks:
            with refusals_placed(recipe, part.path):
                callbacks += part.plugin.callbacks(self.context)
        return callbacks

    def _profile(self, trainer: RecipeTrainer) -> None:
        from toolkit.training.step_profile import TRACE_FILE, StepProfile

        if self.profile_steps is None or not distributed.is_main_process():
            return
        trainer.add_callback(
            StepProfile(
                self.profile_steps,
                trace=self.directory.folder / TRACE_FILE,
                settings=self.resolved.training,
                device=self.resolved.device,
                tell=lambda words: self.listener(Message(words)),
            )
        )

    def _is_over(self, intervals: Intervals, start: Start) -> bool:
        """Whether there is nothing left to train; the Trainer would take one more step."""
        return start.folder is not None and (start.ended or start.step >= intervals.total_steps)

    def _train(self, trainer: RecipeTrainer, intervals: Intervals, start: Start) -> None:
        if start.folder and self._is_over(intervals, start):
            trainer.load_end(start.folder)
            with self.stop.deferred(), libraries_quiet():
                trainer.make_up_evaluation()
            return
        parameters = list(trainer.components.model.parameters())
        self.listener(
            TrainingStarted(
                folder=self.directory.folder,
                total_steps=intervals.total_steps,
                resumed_from=start.step if start.folder else None,
                parameters=sum(parameter.numel() for parameter in parameters),
                trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
                device=self.resolved.device.name,
                precision=self.resolved.training.precision,
            )
        )
        with self.stop.deferred(), libraries_quiet(), trainer.saver.finished(unless=(Interrupt, InterruptedRun)):
            try:
                trainer.train(resume_from_checkpoint=str(start.folder) if start.folder else None)
            except UnpicklingError as error:  # weights_only=True, whose own message is long
                raise TrainingError(
                    f"a file of {start.folder} contains code or other objects that are not training state, and was not "
                    f"loaded: this run did not write it. Remove that checkpoint, and the same command resumes from "
                    f"the one before it"
                ) from error

    def _finish(self, model: PreTrainedModel, components: Components, trainer: RecipeTrainer, step: int) -> None:
        """Generate a sample, export the model, and record the results."""
        model = ready(model, self.context.task)
        evaluations = [line for line in self.directory.metrics() if line["kind"] == "eval"]
        last = evaluations[-1] if evaluations else {}
        results: dict[str, Any] = {
            "steps": step,
            "tokens_seen": int(trainer.state.num_input_tokens_seen),
            "seconds": trainer.status.seconds_trained,
            "peak_memory_bytes": peak_bytes(self.resolved.device.kind),
            "memory_was_short": self.freed.is_returned,
            "eval_loss": last.get("eval_loss"),
            "perplexity": last.get("perplexity"),
            **({"eval_loss_by_source": last["by_source"]} if "by_source" in last else {}),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "sample": final_sample(model, components.tokenizer, self.context),
        }
        account_refreshed(components.data, self.directory)
        told = told_by(self.resolved, read_json(self.directory.folder / DATA_FILE), results)
        exports = export(self.resolved, model, components.tokenizer, told, self.context, self.listener)
        exports = self.directory.record.get("exports", {}) | exports
        self.directory.update(results=results, exports=exports, exporters=exporters_of(self.resolved))
        self.directory.end_attempt(how="finished", step=step)
