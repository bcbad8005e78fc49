"""The end of a run: a sample from the model, and the folders that the exporters write."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import OptionError, Results, RunContext, Task
from toolkit.events import Exported, Listener
from toolkit.inference.generation import fill_mask_text, sample_text
from toolkit.logs import libraries_quiet
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage import checkpoint
from toolkit.storage.records import FileEntry
from toolkit.storage.run_directory import MODEL_FOLDER
from toolkit.system.disk import disk_faults_named
from toolkit.system.files import move_folder, sync
from toolkit.training.refusals import refusals_placed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ready(model: PreTrainedModel, task: Task) -> PreTrainedModel:
    """Prepare the trained model for sampling and export."""
    if task == "causal-lm":
        model.config.use_cache = True  # the Trainer switches it off, and generation would crawl without it
    return model


def final_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: RunContext, *, max_new_tokens: int = 100
) -> str:
    """A sample from the finished model: a text, or from a masked model a sentence with its masked word filled in."""
    context.progress("generating a sample")
    if context.task == "masked-lm":
        return fill_mask_text(model, tokenizer)
    return sample_text(
        model,
        tokenizer,
        prompt="",
        max_new_tokens=min(max_new_tokens, context.block_size - 1),
        temperature=0.7,
        top_k=20,  # the tail of a small model's guesses is noise
        seed=context.seed,
    )


def told_by(resolved: ResolvedRecipe, data: Mapping[str, Any], metrics: Mapping[str, Any]) -> Results:
    """The `Results` of a run for its exporters; of `metrics`, only the numbers."""
    sources = {name: part.plugin for name, part in sources_of(resolved.recipe).items()}
    licenses = [source.licenses for source in sources.values()]
    return Results(
        recipe=resolved.to_yaml(),
        data=data,
        metrics={key: value for key, value in metrics.items() if type(value) in (int, float)},
        # Where one source names none, those of the others do not hold for all of it.
        licenses=_united(licenses) if all(licenses) else (),
        languages=_united(source.languages for source in sources.values()),
        source_licenses={name: source.licenses for name, source in sources.items() if name},
    )


def _united(lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Everything in these lists once, in order."""
    return tuple(dict.fromkeys(one for several in lists for one in several))


def export(
    resolved: ResolvedRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    results: Results,
    context: RunContext,
    listener: Listener,
    *,
    suffix: str = "",
) -> dict[str, dict[str, FileEntry]]:
    """Let each exporter fill an empty folder, rename it into place once it is complete, and return the files of each.

    Args:
        resolved: the recipe with the exporters.
        model: the finished model.
        tokenizer: its tokenizer.
        results: the run's results.
        context: the plugins' view of the run, in whose folder the exported folders are created.
        listener: is told of each exporter that is done.
        suffix: of the folder names.

    Returns:
        The files of each folder, as `checkpoint.listed` gives them.

    Raises:
        RecipeError, UnavailableError: an exporter refuses, or there is nothing for it to read.
    """
    recipe, newest = resolved.recipe, context.folder / f"{MODEL_FOLDER}{suffix}"
    exported: dict[str, dict[str, FileEntry]] = {}
    for part in recipe.exporters:
        exporter = part.plugin
        context.progress(f"exporting: {part.name}")
        with refusals_placed(recipe, part.path), libraries_quiet():
            if exporter.folder is None:
                if not newest.is_dir():
                    raise OptionError(
                        f"this exporter reads what another one has written, but there is no {newest.name}; put one "
                        f"that writes it (model-folder, merge-lora) before it"
                    )
                exporter.export(model, tokenizer, newest, results, context)
                listener(Exported(part.name, None))
                continue
            newest = context.folder / f"{exporter.folder}{suffix}"
            with _replacing(newest) as staging:
                exporter.export(model, tokenizer, staging, results, context)
                exported[newest.name] = checkpoint.listed(staging)
        listener(Exported(part.name, newest))
    return exported


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces this one if all goes well."""
    staging, replaced = (folder.with_name(f".{folder.name}.{name}") for name in ("staging", "replaced"))
    shutil.rmtree(staging, ignore_errors=True)  # left by an attempt that was killed here
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    staging.mkdir()
    try:
        with disk_faults_named(folder.parent, f"{folder.name}/"):
            yield staging
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)  # so that a complete one exists at any moment, under one name or the other
        move_folder(staging, folder)
        sync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_line(model: Path, task: Task) -> str:
    """The line of Python that loads an exported model."""
    head = {"causal-lm": "AutoModelForCausalLM", "masked-lm": "AutoModelForMaskedLM"}[task]
    return f'model = transformers.{head}.from_pretrained("{model}")'
