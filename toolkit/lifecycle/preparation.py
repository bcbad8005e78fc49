"""The data of a recipe made ready for its runs: by a command of its own, or before a run's processes meet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from toolkit.errors import require_at_least_one
from toolkit.events import DataPrepared, Event, Listener, Message, ProgressReporter
from toolkit.lifecycle.length_told import data_prepared
from toolkit.logs import plugin_messages_told
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import Overrides, ResolvedRecipe, load, resolve
from toolkit.recipe.streams import is_stream
from toolkit.storage import runs_folder
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import environment_variables
from toolkit.system.device import detect
from toolkit.training import sources
from toolkit.training.components import context_of
from toolkit.training.sources import Prepared


def prepare(
    recipe: str | os.PathLike[str],
    *,
    overrides: Overrides = (),
    workers: int | None = None,
    plugin_folders: Iterable[str | os.PathLike[str]] = (),
    listener: Listener | None = None,
) -> DataPrepared:
    """Tokenize and pack a recipe's documents, as a run does first; its runs then find them prepared.

    Interrupted or killed, the same call goes on where it was. Of several that need the same data one works, and the
    others wait for it.

    Args:
        recipe: the name of a recipe that comes with the toolkit, or the path of a YAML file.
        overrides: values in place of the recipe's, as for `resolve`.
        workers: processes that tokenize; if not given, as many as there are processors, where that pays. Without
            effect on a stream, which one process tokenizes.
        plugin_folders: find plugins in these folders too.
        listener: is called with the progress, as for `run`.

    Returns:
        The data account, and the steps of a run with it.

    Raises:
        RecipeError, UsageError, PluginError: the recipe or an argument is invalid.
        UnavailableError: this machine lacks something: the Hub, disk space.
    """
    require_at_least_one(workers=workers)
    tell = listener or _unheard
    loaded = load(os.fspath(recipe), overrides=overrides, plugin_folders=map(Path, plugin_folders))
    resolved = resolve(loaded, detect())
    context = context_of(resolved, Path(resolved.name), progress=ProgressReporter(tell))
    if workers is not None and any(is_stream(part.plugin) for part in sources_of(resolved.recipe).values()):
        tell(Message("workers has no effect on a stream: one process tokenizes it, with all processors"))
    with plugin_messages_told(tell), environment_variables.set_aside():
        prepared = data_prepared(resolved, sources.prepare(resolved, context, workers=workers).data)
    tell(prepared)
    return prepared


def before_meeting(
    resolved: ResolvedRecipe, runs: Path, series: str, *, fresh: bool, rehearsal: bool, listener: Listener
) -> Prepared | None:
    """Prepare the data of a run of several processes: one of them works, and no other waits in a collective for it.

    Returns:
        What each process then has; None for a run that is finished.

    Raises:
        RecipeError: an option has to change; with its place.
        UnavailableError: the machine or the network lacks something.
    """
    newest = None if fresh else runs_folder.newest_in_series(runs, series)
    if newest and RunDirectory(newest).status == "finished":
        return None
    folder = newest or runs / series
    return sources.prepare(
        resolved,
        context_of(resolved, folder, rehearsal=rehearsal, progress=ProgressReporter(listener)),
        beside=True,
    )


def _unheard(event: Event) -> None:
    """The listener where none is given."""
