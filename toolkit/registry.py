"""Plugin registry: discovers plugins without importing them, and loads one by name.

Plugins come from two sources: entry points of installed distributions (group `toolkit.KIND`; ours are registered this
way too), and folders named by a recipe or on the command line, laid out as `FOLDER/KIND/NAME.py`. A folder's modules
get private names, so that a user's `dataset/torch.py` never shadows a library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from toolkit.api import KINDS, Claim, Fidelity, Memory, Plugin, Task
from toolkit.errors import PluginError, nearest

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Offer:
    """A plugin on offer, not yet imported."""

    kind: str
    name: str
    distribution: str
    """Name and version of the distribution, or the file of a local plugin."""
    target: metadata.EntryPoint | Path

    def load(self) -> type[Plugin]:
        """Import the plugin and check it against its kind's contract.

        Raises:
            PluginError: it cannot be imported, or does not meet the contract of its kind.
        """
        try:
            loaded = _only_plugin_in(self.target, self.kind) if isinstance(self.target, Path) else self.target.load()
        except PluginError:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise PluginError(
                f"the {self.kind} plugin {self.name!r} of {self.distribution} cannot be imported: {cause}"
            ) from error
        if faults := contract_faults(loaded, self.kind):
            raise PluginError(
                f"the {self.kind} plugin {self.name!r} of {self.distribution} breaks its contract: " + "; ".join(faults)
            )
        return loaded  # type: ignore[no-any-return]  # contract_faults has just shown that it is one


class Registry:
    """The plugins on offer, by kind and name."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self._offers: dict[tuple[str, str], list[Offer]] = defaultdict(list)
        for offer in offers:
            self._offers[offer.kind, offer.name].append(offer)
        self._loaded: dict[tuple[str, str], type[Plugin]] = {}

    @classmethod
    def discover(cls, plugin_paths: Iterable[Path] = ()) -> Registry:
        """Find all plugins: those of installed distributions and those in the given folders.

        Raises:
            PluginError: a folder does not exist or is not laid out as KIND/NAME.py.
        """
        return cls([*_installed(), *(offer for folder in plugin_paths for offer in _local(folder))])

    def offers(self, kind: str | None = None) -> list[Offer]:
        """All offers, sorted by kind and name."""
        order = list(KINDS)
        every = [offer for offers in self._offers.values() for offer in offers if kind in (None, offer.kind)]
        return sorted(every, key=lambda offer: (order.index(offer.kind), offer.name))

    def names(self, kind: str) -> list[str]:
        """The names that a recipe may use for this kind."""
        return sorted({name for offered_kind, name in self._offers if offered_kind == kind})

    def offer(self, kind: str, name: str) -> Offer:
        """Return the only offer of this kind and name.

        Raises:
            PluginError: nobody offers it, or two do.
        """
        offers = self._offers.get((kind, name), [])
        if not offers:
            raise PluginError(f"no {kind} plugin is named {name!r}; {nearest(name, self.names(kind))}")
        if len(offers) > 1:
            rivals = " and ".join(offer.distribution for offer in offers)
            raise PluginError(f"the {kind} plugin {name!r} is offered by both {rivals}; uninstall one")
        return offers[0]

    def load(self, kind: str, name: str) -> type[Plugin]:
        """Import the plugin of this kind and name, once; later calls return the same class.

        Raises:
            PluginError: it cannot be found, imported or used.
        """
        if (kind, name) not in self._loaded:
            self._loaded[kind, name] = self.offer(kind, name).load()
        return self._loaded[kind, name]


def _installed() -> Iterable[Offer]:
    # Each call looks through all distributions, and each name or version of one parses its metadata.
    entries, sources = metadata.entry_points(), dict[metadata.Distribution | None, str]()
    for kind in KINDS:
        for entry in entries.select(group=f"toolkit.{kind}"):
            if (dist := entry.dist) not in sources:
                sources[dist] = f"{dist.name} {dist.version}" if dist else "an unknown distribution"
            yield Offer(kind, entry.name, sources[dist], entry)


def _local(folder: Path) -> Iterable[Offer]:
    if not folder.is_dir():
        raise PluginError(f"the plugin folder {folder} does not exist")
    for file in sorted(folder.glob("*/*.py")):
        kind, name = file.parent.name, file.stem.replace("_", "-")
        if file.stem.startswith("_"):
            continue
        if kind not in KINDS:
            raise PluginError(f"{file}: plugins lie in folders named for their kind; {nearest(kind, KINDS)}")
        if not NAME.fullmatch(name):
            raise PluginError(f"{file}: a plugin's file is named in small letters, digits and _")
        yield Offer(kind, name, str(file), file)


def _only_plugin_in(file: Path, kind: str) -> Any:
    """Import a local file under a private name and return the one class in it that is of this kind."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    name = f"_toolkit_local_{digest}_{file.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise PluginError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    members = vars(sys.modules[name]).values()
    own = [member for member in members if isinstance(member, type) and member.__module__ == name]
    classes = [member for member in own if issubclass(member, KINDS[kind])]
    if len(classes) != 1:
        raise PluginError(f"{file} defines {len(classes)} {kind} plugins where it should define one")
    return classes[0]


def contract_faults(candidate: Any, kind: str) -> list[str]:
    """List the ways in which an object is not a plugin of this kind; empty if it is one."""
    contract = KINDS[kind]
    if not isinstance(candidate, type) or not issubclass(candidate, contract):
        return [f"{candidate!r} is not a subclass of toolkit.api.{contract.__name__}"]
    faults = []
    for method in sorted(getattr(candidate, "__abstractmethods__", ())):
        faults.append(f"it has no method {method}{_parameters(getattr(contract, method))}")
    for method, declared in _methods(contract).items():
        own = inspect.getattr_static(candidate, method)
        if callable(own) and _parameters(own) != _parameters(declared):
            faults.append(f"{method} takes {_parameters(own)} where {kind} plugins take {_parameters(declared)}")
    if not candidate.__doc__ or candidate.__doc__ == contract.__doc__:
        faults.append("its class has no docstring")
    if not candidate.model_config.get("frozen") or candidate.model_config.get("extra") != "forbid":
        faults.append("it must stay frozen and refuse unknown options")
    for option, info in candidate.model_fields.items():
        if not info.description:
            faults.append(f"its option {option} has no description")
    for fact, allowed in _declared_facts(kind).items():
        if fact in candidate.model_fields:  # an option of this plugin, so left to the recipe
            continue
        value = getattr(candidate, fact, None)
        if value not in allowed:
            faults.append(f"{fact} is {value!r}; known: {', '.join(allowed)}")
    if issubclass(candidate, Memory) and (unknown := candidate.claims - set(get_args(Claim))):
        faults.append(f"claims has {', '.join(sorted(unknown))}; known: {', '.join(get_args(Claim))}")
    return faults


def _methods(contract: type[Plugin]) -> Mapping[str, Any]:
    members = [member for base in contract.__mro__ if issubclass(base, Plugin) for member in vars(base).items()]
    return {name: value for name, value in members if inspect.isfunction(value) and not name.startswith("_")}


def _parameters(method: Any) -> str:
    return f"({', '.join(inspect.signature(method).parameters)})"


def _declared_facts(kind: str) -> dict[str, tuple[str, ...]]:
    """The class attributes without a default that plugins of this kind must set, and their allowed values."""
    return {"memory": {"fidelity": get_args(Fidelity)}, "objective": {"task": get_args(Task)}}.get(kind, {})
