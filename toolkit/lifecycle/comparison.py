"""Compares a run with the recipe that is to resume it: what differs, and what a person can do about it.

A setting that did not exist in the run's version counts as its present default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError

from toolkit import __version__
from toolkit.data.stats import DataAccount
from toolkit.errors import RunMismatchError
from toolkit.recipe.document import dotted, read
from toolkit.recipe.identity import Setting, knows, settings
from toolkit.recipe.resolve import ResolvedRecipe, leaves
from toolkit.recipe.schema import Component
from toolkit.recipe.settings import MOVED
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import DATA_FILE, RunDirectory
from toolkit.system.files import read_json

LENGTH_SETTINGS = ("training.max_steps", "training.max_tokens", "training.num_train_epochs")
COMPILE_KEY = "training.torch_compile"
"""Where a run's identity records what `torch_compile: auto` has decided."""


def as_decided(resolved: ResolvedRecipe, run: RunDirectory) -> ResolvedRecipe:
    """The recipe with what `torch_compile: auto` has decided in this run; as it is, if nothing is decided yet."""
    decided = run.record["identity"].get(COMPILE_KEY, False)
    if resolved.training.torch_compile != "auto" or decided == "auto":
        return resolved
    return resolved.with_training(torch_compile=decided)


def differences(run: RunDirectory, resolved: ResolvedRecipe) -> dict[str, str]:
    """The settings in which the recipe would change the run's numbers, by key, with both values in words."""
    record = run.record
    new = settings(as_decided(resolved, run))
    moved = {f"training.{setting}" for setting in MOVED}  # the strategies that set them are compared
    old = {key: value for key, value in record["identity"].items() if key not in moved}
    left = None if (defaults := record.get("defaults")) is None else frozenset(defaults)
    found = {}
    for key in sorted(old.keys() | new.keys()):
        if key not in old:
            found[key] = _not_in_the_run(key, new[key], old)
        elif key in new:
            found[key] = _in_both(key, old[key], new[key], None if left is None else key in left)
        else:
            found[key] = _not_in_the_recipe(key, old, new, resolved, record, left_out=bool(left and key in left))
    return {key: words for key, words in found.items() if words}


def _not_in_the_run(key: str, setting: Setting, old: Mapping[str, Any]) -> str | None:
    if setting.value == setting.default:
        return None
    section = key.rpartition(".")[0]
    known = setting.default is not ... and f"{section}.plugin" in {*old, "training.plugin"}
    had = f"its default, {setting.default!r}" if known else "nothing"
    return f"the run has {had}, the recipe now says {setting.value!r}"


def _in_both(key: str, had: Any, setting: Setting, was_default: bool | None) -> str | None:
    """`was_default`: whether nobody had set it; None if the run's version did not record that."""
    if had == setting.value:
        return None
    if setting.is_set or was_default is False:
        return f"the run has {had!r}, the recipe now says {setting.value!r}"
    option = key.rpartition(".")[2]
    cure = f"to resume, write {option}: {json.dumps(had)} there"
    if was_default:
        return f"its default has changed from {had!r} to {setting.value!r} since the run began; {cure}"
    return f"the run has {had!r}, and the recipe leaves it to the default, now {setting.value!r}; {cure}"


def _not_in_the_recipe(
    key: str,
    old: Mapping[str, Any],
    new: Mapping[str, Setting],
    resolved: ResolvedRecipe,
    record: Mapping[str, Any],
    *,
    left_out: bool,
) -> str | None:
    plugin = f"{key.rpartition('.')[0]}.plugin"
    if key == plugin or knows(resolved, key):
        return f"the run has {old[key]!r}, the recipe now says nothing"
    replaced = plugin in old and (plugin not in new or new[plugin].value != old[plugin])
    if replaced or left_out:  # an option of a replaced plugin, which is reported; or a removed one that nobody had set
        return None
    return (
        f"the run has {old[key]!r}, and pretrain-toolkit {__version__} no longer has this option; resume with the "
        f"version that began the run{f', {version}' if (version := record.get('toolkit')) else ''}"
    )


def require_same(run: RunDirectory, resolved: ResolvedRecipe) -> None:
    """Make sure that resuming the run would not mix two runs.

    Raises:
        RunMismatchError: the recipe differs; with every difference, and the ways to go on.
    """
    if not (found := differences(run, resolved)):
        return
    step = newest_step(run)
    there = None if step is None else f"{run.name}@{step}"
    if step is not None and run.status == "finished" and (longer := _longer(found, resolved, step)):
        raise RunMismatchError(
            f"{run.folder} finished at step {step:,}, and the recipe now says {longer}: with --from {there} the same "
            f"command continues from there as a new run, with --fresh it starts from scratch beside it",
            differences=lines(found),
        )
    raise RunMismatchError.of(run.folder, lines(found), checkpoint=there)


def require_same_data(run: RunDirectory, account: DataAccount) -> None:
    """Make sure that the documents, known only now, give the tokens that the run has trained on.

    If those were packed in another format, the keys cannot be compared, and the data accounts have to agree instead.

    Raises:
        RunMismatchError: they do not.
    """
    before = str(run.record.get("data_key") or account.key)
    if before == account.key:
        return
    changed = [f"the prepared tokens: the run has {before[:12]}, the data now gives {account.key[:12]}"]
    if _generation(before) != _generation(account.key):
        now = dict(leaves(_of_tokens(account.as_dict())))
        had = dict(leaves(_of_tokens(read_json(run.folder / DATA_FILE))))
        changed = [
            f"the prepared tokens: {dotted(path)}: the run has {had[path]!r}, the data now gives {value!r}"
            for path, value in now.items()
            if path in had and had[path] != value
        ]
    if changed:
        step = newest_step(run)
        raise RunMismatchError.of(run.folder, changed, checkpoint=None if step is None else f"{run.name}@{step}")


def _generation(key: str) -> str:
    """The packing format in the name of a cache entry, FORMAT-DIGEST; empty in the first versions."""
    return key.rpartition("-")[0]


def _of_tokens(account: Mapping[str, Any]) -> dict[str, Any]:
    """An account without the key, and without what is said of documents, which a later version may say otherwise."""
    sources = {name: _of_tokens(own) for name, own in account.get("sources", {}).items()}
    kept = {
        name: value for name, value in account.items() if name not in ("key", "filters", "shared_text", "shared_with")
    }
    return kept | {"sources": sources}


def lines(found: Mapping[str, str]) -> list[str]:
    """The differences as lines, `key: words`."""
    return [f"{key}: {words}" for key, words in found.items()]


def newest_step(run: RunDirectory) -> int | None:
    """The step of the run's last checkpoint, intact or not."""
    return max((step for step, _ in checkpoint.numbered(run.checkpoints)), default=None)


def _longer(found: Mapping[str, str], resolved: ResolvedRecipe, step: int) -> str:
    """The changed settings of the run's length in words, if nothing else differs and they go beyond this step."""
    steps = resolved.training.max_steps
    if not found.keys() <= set(LENGTH_SETTINGS) or (steps is not None and steps <= step):
        return ""
    names = [key.removeprefix("training.") for key in found]
    return " and ".join(f"{name}: {getattr(resolved.training, name)}" for name in names)


def exporters_of(resolved: ResolvedRecipe) -> list[dict[str, Any]]:
    """A recipe's exporters with their options, in the form in which run.json lists those that have run."""
    exporters: list[dict[str, Any]] = json.loads(json.dumps(resolved.data()["exporters"]))
    return exporters


def carried_out(run: RunDirectory) -> list[dict[str, Any]]:
    """The exporters that have run on a finished run, with their options."""
    done: list[dict[str, Any]] | None = run.record.get("exporters")
    if done is None:  # a run of an earlier version, where those of its own recipe have run
        done = read(run.folder / "resolved.yaml").data["exporters"]
    assert done is not None
    return done


def not_exported(run: RunDirectory, resolved: ResolvedRecipe) -> list[str]:
    """The exporters of a recipe that have not run on a finished run, or only with other options."""
    done = carried_out(run)
    return [part.name for part in resolved.recipe.exporters if not any(map(partial(_is, part), done))]


def _is(part: Component, exporter: Mapping[str, Any]) -> bool:
    """Whether an exporter in run.json is this one; an option missing there counts as its present default."""
    options = {name: value for name, value in exporter.items() if name != "plugin"}
    try:
        return exporter["plugin"] == part.name and type(part.plugin).model_validate(options) == part.plugin
    except ValidationError:
        return False
