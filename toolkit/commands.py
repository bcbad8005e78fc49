"""The commands as functions of Python, for the command line, and for scripts and notebooks: `import toolkit`.

Nothing here parses words or prints, and nothing is imported before a call needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import require_at_least_one

if TYPE_CHECKING:
    from toolkit.api import Device
    from toolkit.events import Event, Listener, RunResult
    from toolkit.inference.evaluation import Evaluation
    from toolkit.lifecycle.rehearsal import StandIn
    from toolkit.planning.plan import Plan
    from toolkit.recipe.resolve import Overrides, ResolvedRecipe

FilePath = str | os.PathLike[str]


def resolve(
    recipe: FilePath,
    *,
    overrides: Overrides = (),
    device: str | None = None,
    plugin_folders: Iterable[FilePath] = (),
) -> ResolvedRecipe:
    """Validate a recipe, and work out every value that a run would use. Imports no torch.

    Args:
        recipe: the name of a recipe that comes with the toolkit, or the path of a YAML file.
        overrides: values in place of the recipe's, by dotted key: {"training.max_steps": 10}. Item 0 of a list is
            "memory.0". Text as `--set` takes it is read, too: ["training.max_steps=10"].
        device: resolve for this device in place of this machine's: "h100", "t4", ...
        plugin_folders: find plugins in these folders too, laid out as DIR/KIND/NAME.py.

    Returns:
        The recipe. `training` holds its settings with the memory strategies' changes, `data()` is all of it as plain
        data, `to_yaml()` as text that is a recipe again, with who set each value.

    Raises:
        RecipeError: it is invalid; `problems` holds all that is wrong, each with its place.
        UsageError: there is no such recipe or device, or an override cannot be read.
        PluginError: a plugin folder does not exist, or a strategy breaks its contract.
    """
    from toolkit.planning.devices import device_called

    return _resolved(recipe, overrides, plugin_folders, device_called(device))


def run(
    recipe: FilePath,
    *,
    overrides: Overrides = (),
    runs: FilePath | None = None,
    name: str | None = None,
    fresh: bool = False,
    from_checkpoint: str | None = None,
    profile_steps: int | None = None,
    plugin_folders: Iterable[FilePath] = (),
    listener: Listener | None = None,
) -> RunResult:
    """Train a recipe to its end, in RUNS/NAME: the same call starts a run, resumes it, or finds it finished.

    In the main thread, SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM end it after the step, with a checkpoint.

    Args:
        recipe: the name of a recipe that comes with the toolkit, or the path of a YAML file.
        overrides: values in place of the recipe's, as for `resolve`.
        runs: the folder of runs; the environment variable TOOLKIT_RUNS or "runs", if not given.
        name: the name of the run and its folder; the recipe's, if not given.
        fresh: start over in a folder beside the old run, which stays as it is.
        from_checkpoint: begin a new run at this checkpoint of another, "RUN@STEP"; without @STEP at the newest.
        profile_steps: profile this many steps and tell the listener where their time goes; the whole profile is
            profile.json.gz in the run's folder.
        plugin_folders: find plugins in these folders too.
        listener: is called with each event (`toolkit.events`), in this thread or another. Nothing is shown without
            one; `toolkit.LogLines(print)` is one that prints lines.

    Returns:
        What was reached, and where the model is.

    Raises:
        RecipeError, UsageError, PluginError: the recipe or an argument is invalid.
        RunMismatchError: the run of this name was made with other settings; `differences` names them.
        UnavailableError: this machine lacks something: the Hub, a device, disk space.
        TrainingError: training cannot go on.
        InterruptedRun: a signal stopped it; the message says what is saved, and the same call goes on from there.
    """
    from toolkit.report.run_log import logged

    require_at_least_one(profile_steps=profile_steps)
    folder = _folder_of(runs)
    if name is not None:
        from toolkit.storage.runs_folder import check_name

        check_name(folder, name)
    with logged(listener or _unheard) as tell:
        resolved = resolve(recipe, overrides=overrides, plugin_folders=plugin_folders)
        from toolkit.lifecycle import branch, launch

        parent = None if from_checkpoint is None else branch.parent(from_checkpoint, folder)
        return launch.run(
            resolved,
            runs=folder,
            name=name,
            fresh=fresh,
            parent=parent,
            profile_steps=profile_steps,
            listener=tell,
        )


def rehearse(
    recipe: FilePath,
    *,
    overrides: Overrides = (),
    runs: FilePath | None = None,
    name: str | None = None,
    plugin_folders: Iterable[FilePath] = (),
    listener: Listener | None = None,
) -> tuple[RunResult, list[StandIn]]:
    """Try a run from its start to its export in seconds and without a network: a shrunk model, a few steps.

    Args:
        recipe: the name of a recipe that comes with the toolkit, or the path of a YAML file.
        overrides: values in place of the recipe's, as for `resolve`.
        runs: the folder of runs, as for `run`.
        name: the run's name, to which "-rehearsal" is added.
        plugin_folders: find plugins in these folders too.
        listener: is called with each event, as for `run`.

    Returns:
        The result, and what a small one stood in for, which was not tested.

    Raises:
        ToolkitError: what would have stopped the run itself.
    """
    from toolkit.recipe.resolve import load
    from toolkit.report.run_log import logged
    from toolkit.storage.runs_folder import check_name
    from toolkit.system.device import detect

    folder = _folder_of(runs)
    if name is not None:
        check_name(folder, name)
    with logged(listener or _unheard) as tell:
        read = load(os.fspath(recipe), overrides=overrides, plugin_folders=map(Path, plugin_folders))
        from toolkit.lifecycle import rehearsal

        return rehearsal.rehearse(read, runs=folder, device=detect(), listener=tell, name=name)


def plan(
    recipe: FilePath,
    *,
    overrides: Overrides = (),
    device: str | None = None,
    memory: int | str | None = None,
    processes: int = 1,
    gpus_per_node: int | None = None,
    network: float | None = None,
    runs: FilePath | None = None,
    search_seconds: float = 60,
    plugin_folders: Iterable[FilePath] = (),
    listener: Listener | None = None,
) -> Plan:
    """Estimate a run's memory, disk and time, without its weights and without a GPU.

    Args:
        recipe: the name of a recipe that comes with the toolkit, or the path of a YAML file.
        overrides: values in place of the recipe's, as for `resolve`.
        device: plan for this device in place of this machine's: "h100", "t4", ...
        memory: what the run may take, in place of the device's memory: bytes, or "12GiB".
        processes: devices that share a step.
        gpus_per_node: how many of them are in a host, in place of 8; only for GPUs.
        network: Gbit/s of a host, in place of what is usual; only for a GPU whose links are known.
        runs: the folder of runs; one of this name that has counted the same data gives the number of steps.
        search_seconds: how long `auto` may look for strategies with which it fits.
        plugin_folders: find plugins in these folders too.
        listener: is called with the progress, as for `run`.

    Returns:
        The plan, with what `auto` has chosen. Its `limit_bytes` are free here now, or the other device's memory.

    Raises:
        RecipeError: it is invalid, or nothing that `auto` may choose fits.
        UsageError: there is no such recipe or device, or an argument is invalid.
        PluginError: a plugin cannot be planned.
        UnavailableError: a file of the Hub cannot be fetched, or the plan would take too long.
    """
    from toolkit.lifecycle.device_plan import plan_of
    from toolkit.planning.devices import device_called

    return plan_of(
        _resolved(recipe, overrides, plugin_folders, device_called(device, memory=memory)),
        device=device,
        memory=memory,
        processes=processes,
        gpus_per_node=gpus_per_node,
        network=network,
        runs=_folder_of(runs),
        search_seconds=search_seconds,
        listener=listener or _unheard,
    ).plan


def evaluate(
    run: FilePath,
    *,
    runs: FilePath | None = None,
    model_folder: str = "model",
    stride: int | None = None,
    max_documents: int | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Score the documents that a run held out with a model that it exported, with a sliding window.

    Args:
        run: the name of a run in the folder of runs, or the path of its folder.
        runs: the folder of runs, as for `run`.
        model_folder: the name of the exported folder: "model-800-average-4", say.
        stride: tokens by which the window moves; half of the window, if not given.
        max_documents: score so many documents only.
        listener: is called with the progress, as for `run`.

    Returns:
        Perplexity per token and per word, bits per byte, and on how much they were measured.

    Raises:
        UsageError: there is no such run; or it has no such model, held nothing out, or has a masked model.
    """
    from toolkit.storage import runs_folder

    found = runs_folder.find(os.fspath(run), _folder_of(runs))
    from toolkit.inference import evaluation

    require_at_least_one(stride=stride, max_documents=max_documents)
    return evaluation.evaluate(
        found, model_folder=model_folder, stride=stride, max_documents=max_documents, listener=listener or _unheard
    )


def generate(
    run: FilePath,
    prompt: str,
    *,
    runs: FilePath | None = None,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
) -> str:
    """Let the model that a run exported continue a prompt; a masked model fills in its [MASK].

    Args:
        run: the name of a run in the folder of runs, or the path of its folder.
        prompt: what the model continues.
        runs: the folder of runs, as for `run`.
        max_new_tokens: tokens to write at most.
        temperature: 0 always takes the likeliest token; higher is more varied.
        top_k: draw from so many of the likeliest tokens; None draws from all.
        seed: the same seed writes the same text. The caller's random numbers are left as they are.

    Returns:
        The prompt and its continuation.

    Raises:
        UsageError: there is no such run, it has no model, or there is nothing to fill in.
    """
    from toolkit.storage import runs_folder

    found = runs_folder.find(os.fspath(run), _folder_of(runs))
    from toolkit.inference import generation

    require_at_least_one(max_new_tokens=max_new_tokens, top_k=top_k)
    return generation.generate(
        found, prompt=prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )


def _resolved(
    recipe: FilePath, overrides: Overrides, plugin_folders: Iterable[FilePath], device: Device
) -> ResolvedRecipe:
    from toolkit.recipe.resolve import load, resolve

    return resolve(load(os.fspath(recipe), overrides=overrides, plugin_folders=map(Path, plugin_folders)), device)


def _folder_of(runs: FilePath | None) -> Path:
    return Path(runs or os.environ.get("TOOLKIT_RUNS") or "runs")


def _unheard(event: Event) -> None:
    """The listener where none is given."""
