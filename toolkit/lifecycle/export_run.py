"""`toolkit run export`: a recipe's exporters, on a checkpoint of a run that is finished or not.

Tokenizer and weights come from the checkpoint, and no data is loaded. A model whose weights are all in the checkpoint
is loaded from there alone; for an adapter, or an architecture that only a plugin knows, the recipe's plugins build
the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import Results, RunContext
from toolkit.errors import UsageError, nearest
from toolkit.events import Exported, Listener, ProgressReporter
from toolkit.lifecycle.averaging import last_checkpoints, mean_of
from toolkit.lifecycle.comparison import carried_out, exporters_of
from toolkit.lifecycle.export import export, ready, told_by
from toolkit.logs import libraries_quiet, plugin_messages_told
from toolkit.recipe.resolve import ResolvedRecipe, load, resolve
from toolkit.recipe.schema import Recipe
from toolkit.storage import checkpoint
from toolkit.storage.async_saver import STATE_FILE
from toolkit.storage.checkpoint import Checkpoint
from toolkit.storage.records import ResultsRecord, TrainingState, read_record
from toolkit.storage.run_directory import DATA_FILE, RunDirectory
from toolkit.system import environment_variables
from toolkit.system.device import detect
from toolkit.system.files import read_json
from toolkit.training.components import check_exporters, context_of
from toolkit.training.refusals import refusals_placed
from toolkit.training.strategies import with_strategies

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExportedStep:
    """What was exported, and from which step."""

    step: int
    """The last of `averaged`."""
    averaged: tuple[int, ...]
    """Steps whose mean it is."""
    done: tuple[Exported, ...]


def export_run(
    run: RunDirectory,
    listener: Listener,
    *,
    recipe: str | None = None,
    exporters: Collection[str] = (),
    step: int | None = None,
    average: int = 1,
    plugin_folders: Collection[Path] = (),
) -> ExportedStep:
    """Run exporters on a checkpoint, beside what the run has already exported.

    The folders of a finished run's last step have the exporters' own names; those of any other checkpoint get its
    step as a suffix, and those of an average also the number of checkpoints.

    Args:
        run: the run, which is locked meanwhile.
        listener: is told what happens.
        recipe: the recipe whose exporters to run; by default the one that the run was started with, or the run's copy
            if that is gone.
        exporters: names of those to run; all, if none are given.
        step: the checkpoint's; by default the newest intact one's.
        average: so many checkpoints, that one and those before it, of whose weights the mean is exported.
        plugin_folders: folders to find plugins in.

    Raises:
        UsageError: there is no such exporter or checkpoint, there are too few for an average, or an earlier export has
            been changed since.
        UnavailableError: a process is working on the run.
        RecipeError: the recipe is invalid, or an exporter refuses.
    """
    with run.locked(), plugin_messages_told(listener), environment_variables.set_aside():
        resolved = resolve(_recipe(run, recipe, exporters, plugin_folders), detect())
        found = _checkpoint(run, step)
        averaged = last_checkpoints(run, found, average) if average > 1 else [found]
        results = run.record["results"]
        is_end = run.status == "finished" and results is not None and found.step == results["steps"] and average == 1
        suffix = "" if is_end else f"-{found.step}" + (f"-average-{average}" if average > 1 else "")
        _check_targets(run, resolved, suffix)
        rehearsal = bool(run.record.get("rehearsal"))
        context = context_of(resolved, run.folder, rehearsal=rehearsal, progress=ProgressReporter(listener))
        with libraries_quiet():
            from transformers import AutoTokenizer

            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(found.folder, local_files_only=True)
            folders = [one.folder for one in averaged]
            model = mean_of(folders, lambda folder: _loaded(resolved, folder, tokenizer, run, context))
        check_exporters(resolved.recipe, model, context)
        done: list[Exported] = []

        def tell(event: Any) -> None:
            done.append(event)
            listener(event)

        told = _results(resolved, run, found, results if is_end else None, average)
        exports = export(resolved, model, tokenizer, told, context, tell, suffix=suffix)
        run.update(exports=run.record.get("exports", {}) | exports)
        if is_end:
            before = carried_out(run)
            run.update(exporters=before + [entry for entry in exporters_of(resolved) if entry not in before])
    return ExportedStep(found.step, tuple(one.step for one in averaged), tuple(done))


def _recipe(run: RunDirectory, name: str | None, wanted: Collection[str], plugin_folders: Collection[Path]) -> Recipe:
    """The run's own recipe, with its exporters replaced by the wanted ones of the named recipe."""
    source = Path(run.record["source"])
    name = name or str(source if source.is_file() else run.folder / "resolved.yaml")
    named, own = load(name, plugin_folders=plugin_folders or run.plugin_folders), run.recipe()
    known = {part.name for part in named.exporters}
    if not known:
        raise UsageError(
            f"{name} has no exporters; add some to it (exporters: [model-folder]), or name another --recipe"
        )
    if unknown := sorted(set(wanted) - known):
        raise UsageError(f"{name} has no exporter {unknown[0]!r}; {nearest(unknown[0], known)}")
    chosen = tuple(part for part in named.exporters if not wanted or part.name in wanted)
    return replace(own, document=named.document, exporters=chosen)


def _checkpoint(run: RunDirectory, step: int | None) -> Checkpoint:
    steps = sorted(number for number, _ in checkpoint.numbered(run.checkpoints))
    there = f"{run.name} has checkpoints at the steps {', '.join(f'{number:,}' for number in steps) or '(none)'}"
    if not steps or (step is not None and step not in steps):
        raise UsageError(f"there is no checkpoint to export; {there}")
    if step is None:
        found, skipped = checkpoint.newest_intact(run.checkpoints, run_id=run.id)
        if found is None:
            raise UsageError(f"no checkpoint of {run.name} is intact: {skipped[0].folder.name}: {skipped[0].reason}")
        return found
    folder = run.checkpoints / f"checkpoint-{step}"
    if reason := checkpoint.fault(folder, run_id=run.id):
        raise UsageError(f"the checkpoint of step {step:,} is damaged: {reason}; {there}")
    return Checkpoint(folder, step)


def _check_targets(run: RunDirectory, resolved: ResolvedRecipe, suffix: str) -> None:
    """Refuse to replace a folder that somebody has changed, or added something to, since it was exported."""
    exports = run.record.get("exports", {})
    for part in resolved.recipe.exporters:
        name = part.plugin.folder
        folder = run.folder / f"{name}{suffix}"
        if name is None or not folder.exists():
            continue
        files = exports.get(folder.name, {})
        more = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - files.keys()
        if reason := checkpoint.difference(folder, files) or (f"{min(more)} was added" if more else None):
            raise UsageError(f"{folder} has changed since it was exported ({reason}); move it away, then try again")


def _loaded(
    resolved: ResolvedRecipe,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    run: RunDirectory,
    context: RunContext,
) -> PreTrainedModel:
    """The model of a checkpoint."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = folder / "config.json"
    if config.exists() and read_json(config).get("model_type") in CONFIG_MAPPING:
        auto: Any = AutoModelForCausalLM if context.task == "causal-lm" else AutoModelForMaskedLM
        model = auto.from_pretrained(folder, dtype="auto", local_files_only=True, use_safetensors=True)
        model.config.name_or_path = ""
    else:
        model = _built(resolved, tokenizer, folder, run, context)
    return ready(model, context.task)


def _built(
    resolved: ResolvedRecipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    run: RunDirectory,
    context: RunContext,
) -> PreTrainedModel:
    """The model built by the recipe's plugins, with a checkpoint's weights loaded as on a resume."""
    from transformers import set_seed

    from toolkit.training.arguments import training_arguments
    from toolkit.training.checkpoint_weights import CompleteTrainer

    set_seed(context.seed)  # an adapter's base, if initialized in the run, is not in its checkpoints
    with refusals_placed(resolved.recipe, ("model",)):
        model = resolved.recipe.model.plugin.build(tokenizer, context)
    model = with_strategies(resolved, model, context)
    arguments = training_arguments(
        resolved.training.model_copy(update={"report_to": ()}),
        output=run.checkpoints,
        micro_batch_size=1,
        accumulation=1,
        device_kind=resolved.device.kind,
        evaluates=False,
    )
    CompleteTrainer(model=model, args=arguments)._load_from_checkpoint(str(folder))
    return model


def _results(
    resolved: ResolvedRecipe, run: RunDirectory, found: Checkpoint, finished: ResultsRecord | None, average: int
) -> Results:
    """The run's results at a checkpoint's step; an average was never evaluated."""
    metrics: dict[str, Any] = {**(finished or {})}
    if finished is None:
        seen = read_json(found.folder / "trainer_state.json")["num_input_tokens_seen"]
        metrics = {"steps": found.step, "tokens_seen": int(seen)}
        metrics["seconds"] = read_record(found.folder / STATE_FILE, TrainingState)["seconds_trained"]
        lines = [] if average > 1 else run.metrics()
        evaluated = [line for line in lines if line["kind"] == "eval" and line["step"] <= found.step]
        metrics |= {name: line[name] for line in evaluated[-1:] for name in ("eval_loss", "perplexity")}
    if average > 1:
        metrics["averaged_checkpoints"] = average
    own = (run.folder / "resolved.yaml").read_text(encoding="utf-8")
    return replace(told_by(resolved, read_json(run.folder / DATA_FILE), metrics), recipe=own)
