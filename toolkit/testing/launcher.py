"""The checks of a launcher plugin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from toolkit.api import Job, Launcher
from toolkit.errors import OptionError
from toolkit.testing.bench import Bench, Fault, require
from toolkit.testing.elsewhere import answer_elsewhere
from toolkit.testing.exporter import connections_watched

SECRET = "TOOLKIT_CHECK_SECRET"
VALUE = "a-value-that-no-file-may-hold"
RECIPE = 'recipe: 1\ndescription: it\'s a "test" $HOME\n'


def _jobs() -> Iterator[Job]:
    """Jobs of which each engine can do at least one."""
    for image in (None, "registry.example/toolkit:1"):
        for nodes, gpus in ((1, 0), (1, 8), (2, 0), (4, 8)):
            for runs, cache in (("runs", "cache"), ("/shared/runs", "/shared/cache")):
                yield Job("My recipe_1", RECIPE, nodes, gpus, image, 77, None, runs, cache, (SECRET,))


def _written(plugin: Launcher, bench: Bench) -> list[Mapping[str, str]]:
    """The files of each job that the launcher does not refuse, with its command in words."""
    written, refusals = list[Mapping[str, str]](), dict[str, None]()
    for job in _jobs():
        try:
            written.append({**plugin.files(job), "the command": " ".join(plugin.submission(job))})
        except OptionError as refusal:
            refusals[refusal.message] = None
    if not written:
        raise Fault(f"it refuses every job that it was tried with: {'; '.join(refusals)}")
    return written


def files(plugin: Launcher, bench: Bench) -> str:
    """It gives text under plain names, and its command."""
    told = ""
    for file in _written(plugin, bench):
        names = [name for name in file if name != "the command"]
        require(names, "it gives no files")
        for name in names:
            require(Path(name).name == name and name != "My recipe_1.yaml", f"{name!r} is no name for a file of it")
            require(
                isinstance(file[name], str) and file[name].endswith("\n"), f"{name} does not end with its last line"
            )
        told = f"{', '.join(names)}; {file['the command']}"
    return told


def command(plugin: Launcher, bench: Bench) -> str:
    """Its files prepare the data and run the recipe, with the run's grace period."""
    for file in _written(plugin, bench):
        text = "\n".join(file.values())
        for words in ("toolkit recipe prepare ", "--no-python toolkit recipe run ", "77"):
            require(words in text, f"its files do not hold {words!r}: use job.prepare(), job.train() and grace_seconds")
    return "its files prepare the data, run the recipe and have the grace period"


def pure(plugin: Launcher, bench: Bench) -> str:
    """The same job gives the same files in another process, on another day, and nothing is sent."""
    with connections_watched() as connections:
        here = _written(plugin, bench)
    require(not connections, f"it connects to {', '.join(connections[:2])}; a launcher only writes files")
    require(here == _written(plugin, bench), "a second call gives other files")
    require(here == answer_elsewhere(plugin, bench, _written), "in another process, on another day, it gives others")
    return "the same files in another process with another hash seed and a later clock"


def secrets(plugin: Launcher, bench: Bench) -> str:
    """A secret is in the files by its name and never by its value."""
    with patch.dict("os.environ", {SECRET: VALUE}):
        texts = ["\n".join(file.values()) for file in _written(plugin, bench)]
    require(not any(VALUE in text for text in texts), "a file holds the value of a secret; name the variable only")
    require(all(SECRET in text for text in texts), f"it does not pass {SECRET} on; refer to job.secrets")
    return "secrets are named, and their values are in no file"


def sweep(plugin: Launcher, bench: Bench) -> str:
    """Where it fans out, its files start the workers of a sweep."""
    if not plugin.fans_out:
        return "it starts single runs; with fans_out it would start sweeps"
    for one in _jobs():
        job = replace(one, nodes=1, minutes=None, sweep=("--set=training.seed=1,2",), workers=3)
        with contextlib.suppress(OptionError):
            text = "\n".join(plugin.files(job).values())
            for words in ("toolkit recipe sweep ", *job.sweep):
                require(words in text, f"its files do not hold {words!r}: use job.train()")
    return "its files start the workers of a sweep"


CHECKS = (("files", files), ("command", command), ("pure", pure), ("secrets", secrets), ("sweep", sweep))
