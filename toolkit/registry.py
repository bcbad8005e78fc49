"""Plugin registry: discovers plugins without importing them, and loads one by name.

Plugins come from two sources: entry points of installed distributions (group `toolkit.KIND`; ours are registered this
way too), and folders named by a recipe or on the command line, laid out as `FOLDER/KIND/NAME.py`. A folder's modules
get private names, so that a user's `dataset/torch.py` never shadows a library.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from toolkit import __version__
from toolkit.api import API_VERSION, KINDS, PLANNER_HOOKS, CorpusFilter, Fidelity, Plugin, Task
from toolkit.errors import PluginError, nearest

BASES = (*KINDS.values(), CorpusFilter)
"""The classes that plugins derive from."""
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
LOCAL_PREFIX = "_toolkit_local_"
"""With what the names of modules from plugin folders begin."""


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
            if isinstance(error, ImportError) and error.name == "toolkit.api":
                cause += (
                    f"; pretrain-toolkit {__version__} offers version {API_VERSION} of the plugin API: upgrade "
                    f"pretrain-toolkit if the plugin is written for a newer one, and the plugin otherwise"
                )
            raise PluginError(
                f"the {self.kind} plugin {self.name!r} of {self.distribution} cannot be imported: {cause}"
            ) from error
        if (version := getattr(loaded, "api_version", 1)) != API_VERSION:
            raise PluginError(
                f"the {self.kind} plugin {self.name!r} of {self.distribution} is written for version {version} of the "
                f"plugin API, and pretrain-toolkit {__version__} offers {API_VERSION}: upgrade "
                f"{'pretrain-toolkit' if isinstance(version, int) and version > API_VERSION else 'the plugin'}"
            )
        if faults := contract_faults(loaded, self.kind):
            raise PluginError(
                f"the {self.kind} plugin {self.name!r} of {self.distribution} breaks its contract: " + "; ".join(faults)
            )
        return loaded  # type: ignore[no-any-return]  # contract_faults has just shown that it is one


class Registry:
    """The plugins on offer, by kind and name."""

    def __init__(self, offers: Iterable[Offer], folders: Collection[Path] = ()) -> None:
        self.folders = tuple(folders)
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
        folders = tuple(plugin_paths)
        return cls([*_installed(), *(offer for folder in folders for offer in _local(folder))], folders)

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
            raise PluginError(f"the {kind} plugin {name!r} is provided by both {rivals}; uninstall one")
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
            raise PluginError(f"{file}: plugins belong in folders named after their kind; {nearest(kind, KINDS)}")
        if not NAME.fullmatch(name):
            raise PluginError(f"{file}: the file name of a plugin has lowercase letters, digits and _ only")
        yield Offer(kind, name, str(file), file)


def local_files() -> list[str]:
    """The files of the plugins that this process has loaded from folders."""
    return [str(module.__file__) for name, module in sys.modules.items() if name.startswith(LOCAL_PREFIX)]


def import_files(files: Iterable[str]) -> None:
    """Import what `local_files` found in another process, so that objects of those modules can be unpickled."""
    for file in map(Path, files):
        with contextlib.suppress(PluginError):  # the other process has refused it too, and asks for nothing of it
            Offer(kind=file.parent.name, name=file.stem, distribution=str(file), target=file).load()


def _only_plugin_in(file: Path, kind: str) -> Any:
    """Import a local file under a private name and return the one class in it that is of this kind."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    name = f"{LOCAL_PREFIX}{digest}_{file.stem}"
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
        faults.append(f"it has no method {method}{_parameters(getattr(candidate, method))}")
    contracts = [base for base in candidate.__mro__ if issubclass(base, contract) and base in BASES]
    for method, declared in _methods(contracts[0], *filter(None, [PLANNER_HOOKS.get(kind)])).items():
        own = _function(inspect.getattr_static(candidate, method, None))
        if callable(own) and not _takes_what_is_passed(own, declared):
            faults.append(f"{method} takes {_parameters(own)} where {kind} plugins take {_parameters(declared)}")
    if not candidate.__doc__ or candidate.__doc__ == contracts[0].__doc__:
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
    return faults


def _methods(contract: type[Plugin], *hooks: type) -> Mapping[str, Any]:
    bases = [base for base in contract.__mro__ if issubclass(base, Plugin)]
    members = [(name, _function(value)) for base in [*bases, *hooks] for name, value in vars(base).items()]
    return {name: value for name, value in members if inspect.isfunction(value) and not name.startswith("_")}


def _function(member: Any) -> Any:
    """The function of a class method; any other member as it is."""
    return member.__func__ if isinstance(member, classmethod) else member


def _takes_what_is_passed(own: Any, declared: Any) -> bool:
    """Whether a method takes the required parameters of its contract under their names, and needs no others.

    A parameter that the contract makes optional is passed only to methods that take it: so it may be added to a
    contract, and plugins that override the method load as before.
    """
    required = [one for one in inspect.signature(declared).parameters.values() if one.default is one.empty]
    by_name = {one.name: one.name for one in required if one.kind is one.KEYWORD_ONLY}
    try:
        bound = inspect.signature(own).bind(*(one.name for one in required if one.name not in by_name), **by_name)
    except TypeError:
        return False
    # A tuple is what went into *args, a mapping what went into **kwargs.
    return all(name == value for name, value in bound.arguments.items() if isinstance(value, str))


def _parameters(method: Any) -> str:
    return f"({', '.join(inspect.signature(method).parameters)})"


def _declared_facts(kind: str) -> dict[str, tuple[str, ...]]:
    """The class attributes without a default that plugins of this kind must set, and their allowed values."""
    return {"memory": {"fidelity": get_args(Fidelity)}, "objective": {"task": get_args(Task)}}.get(kind, {})
