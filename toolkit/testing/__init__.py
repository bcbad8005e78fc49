"""The conformance kit: checks a plugin against its kind's contract, as the toolkit's own plugins are checked.

In the tests of a plugin:

    from toolkit.testing import assert_conforms

    def test_it_keeps_its_contract() -> None:
        assert_conforms("memory", "my-strategy", options={"layers": 1})

Everything runs in seconds, with tiny models and texts that the kit generates; on the CPU, except `apply` of a memory
strategy that needs an accelerator. The network is used only if the plugin itself uses it. Without `options`, the plugin
is checked with its defaults, as `rehearse()` returns it; with them, as it is. What could not be tried does not pass: a
plugin whose required options are not given, or one that needs a device or a package that this machine lacks; the check
then has `tried` False.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit.api import Plugin
from toolkit.errors import PluginError, ToolkitError
from toolkit.recipe.option_errors import option_error
from toolkit.registry import Offer, Registry
from toolkit.system import environment_variables
from toolkit.testing import (
    callback,
    dataset,
    exporter,
    filter,
    launcher,
    memory,
    model,
    objective,
    optimizer,
    tokenizer,
)
from toolkit.testing.bench import Bench, Check, Fault, NotTriedHere, described
from toolkit.testing.imports import check_imports
from toolkit.testing.resume import check_resume

__all__ = ["Check", "assert_conforms", "check_plugin", "check_resume"]

Try = Callable[[Any, Bench], str]

BEHAVIOUR: Mapping[str, Sequence[tuple[str, Try]]] = {
    "dataset": dataset.CHECKS,
    "filter": filter.CHECKS,
    "tokenizer": tokenizer.CHECKS,
    "model": model.CHECKS,
    "objective": objective.CHECKS,
    "optimizer": optimizer.CHECKS,
    "memory": memory.CHECKS,
    "callback": callback.CHECKS,
    "exporter": exporter.CHECKS,
    "launcher": launcher.CHECKS,
}
"""The checks of each kind, in the order in which they run."""


@environment_variables.set_aside()
def check_plugin(
    kind: str, name: str, registry: Registry | None = None, options: Mapping[str, Any] | None = None
) -> list[Check]:
    """Check a plugin and return every finding, good or bad.

    Args:
        kind: dataset, filter, tokenizer, model, objective, optimizer, memory, callback, exporter or launcher.
        name: the name that recipes use.
        registry: where to find it; the installed plugins, if not given.
        options: its options, as a recipe would have them; the defaults, if not given.

    Raises:
        PluginError: there is no plugin of this name.
    """
    registry = registry or Registry.discover()
    return list(_checks(registry.offer(kind, name), registry, options))


def assert_conforms(
    kind: str, name: str, *, registry: Registry | None = None, options: Mapping[str, Any] | None = None
) -> None:
    """Check a plugin, for use in its tests.

    Raises:
        AssertionError: it breaks its contract; the message lists every failed check.
        PluginError: there is no plugin of this name.
    """
    failed = [check for check in check_plugin(kind, name, registry, options) if not check.passed]
    if failed:
        lines = "\n".join(f"  {check.name}: {check.detail}" for check in failed)
        raise AssertionError(f"the {kind} plugin {name!r} breaks its contract:\n{lines}")


def _checks(offer: Offer, registry: Registry, options: Mapping[str, Any] | None) -> Iterator[Check]:
    try:
        loaded = registry.load(offer.kind, offer.name)
    except PluginError as error:
        yield Check("contract", False, str(error))
        return
    yield Check("contract", True, f"{loaded.__qualname__} loads, and has the methods and descriptions of its kind")
    yield check_imports(offer)
    plugin, check = _with_options(loaded, options)
    yield check
    if plugin is None:
        return
    told = set()
    for check in _behaviour(plugin, offer, rehearsed=options is None):
        # What fails one check often fails the next with the same message, which adds nothing.
        if check.passed or check.detail not in told:
            yield check
        told.add(check.detail)


def _with_options(loaded: type[Plugin], options: Mapping[str, Any] | None) -> tuple[Plugin | None, Check]:
    """The plugin, if its options are valid and survive a JSON round trip; and the finding about them."""
    required = [name for name, info in loaded.model_fields.items() if info.is_required()]
    if missing := [name for name in required if name not in (options or {})]:
        example = ", ".join(f"{name!r}: ..." for name in missing)
        return None, Check(
            "options",
            False,
            f"nothing more was tried: {', '.join(missing)} must be given; in a test: "
            f"assert_conforms(..., options={{{example}}})",
        )
    try:
        plugin = loaded.model_validate(dict(options or {}))
        written = plugin.model_dump_json()
        again = loaded.model_validate(json.loads(written))
    except ValidationError as errors:
        refused = [
            f"{'.'.join(map(str, error['loc']))}: {option_error(error, loaded)}"
            for error in errors.errors(include_url=False)
        ]
        return None, Check("options", False, "; ".join(refused))
    except ToolkitError as error:
        return None, Check("options", False, described(error))
    except Exception as error:  # noqa: BLE001 - a plugin's validators may raise anything
        return None, Check("options", False, described(error, loaded))
    if again != plugin:
        return None, Check("options", False, f"they change on the way through JSON: {plugin!r} becomes {again!r}")
    return plugin, Check("options", True, written)


def _behaviour(plugin: Plugin, offer: Offer, *, rehearsed: bool) -> Iterator[Check]:
    from toolkit.system.rng_state import random_state_preserved

    with tempfile.TemporaryDirectory(prefix="toolkit-check-") as folder:
        bench = Bench(Path(folder), rehearsal=rehearsed, offer=offer)
        small, check = _rehearsed(plugin)
        yield check
        if small is None:
            return
        if rehearsed:
            plugin = small
        for name, try_ in BEHAVIOUR[plugin.kind]:
            # What a plugin prints must not mix with the findings on stdout, which a script may parse.
            with random_state_preserved(), contextlib.redirect_stdout(sys.stderr), _quiet_libraries(), _one_thread():
                check = _tried(name, try_, plugin, bench)
            yield check


def _rehearsed(plugin: Plugin) -> tuple[Plugin | None, Check]:
    try:
        small = plugin.rehearse()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return None, Check("rehearse", False, described(error, type(plugin)))
    if type(small) is not type(plugin):
        return None, Check("rehearse", False, f"returns {small!r}, which is not a {type(plugin).__name__}")
    return small, Check("rehearse", True, "returns the same component, small")


def _tried(name: str, try_: Try, plugin: Plugin, bench: Bench) -> Check:
    try:
        return Check(name, True, try_(plugin, bench))
    except Fault as fault:
        return Check(name, False, str(fault))
    except NotTriedHere as reason:
        return Check(name, False, str(reason), tried=False)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return Check(name, False, described(error, type(plugin)))


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers: they say nothing useful about the kit's tiny models."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads a property that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: multithreading only slows models of this size, on a busy machine by seconds a step."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
