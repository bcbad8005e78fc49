"""Validates a document against the plugins that it names: Document + Registry -> Recipe.

All problems are reported at once, each with its place and its fix. Only the plugins that the recipe names are imported,
and none of their methods is called but the validators of their options.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar  # with a default, which typing's has from Python 3.13 on

from toolkit import api
from toolkit.errors import OptionError, PluginError, Problem, RecipeError, nearest
from toolkit.recipe.document import Document, Path_, dotted
from toolkit.recipe.option_errors import option_error
from toolkit.recipe.settings import MOVED, Training
from toolkit.recipe.streams import problems_of_streams
from toolkit.registry import Registry

FORMAT = 1
"""The version of the recipe format that this toolkit reads."""

SINGLE_SECTIONS = {
    "dataset": "dataset",
    "tokenizer": "tokenizer",
    "model": "model",
    "objective": "objective",
    "optimizer": "optimizer",
}
"""Sections that hold one plugin, with its kind."""
LIST_SECTIONS = {"memory": "memory", "callbacks": "callback", "exporters": "exporter"}
"""Sections that hold a list of plugins, with their kind."""
FILTERS = "filters"
"""The list of filters in a dataset's section: an option of every dataset, which its plugin knows nothing of."""
FILTERS_PROPERTY: Mapping[str, Any] = {
    "type": "array",
    "items": {"$ref": "#/$defs/filter"},
    "description": "Filters for the training documents, in this order: which are kept, and what is changed in them.",
    "default": [],
}
"""The same in a JSON Schema that defines the filters."""
DEFAULTS: Mapping[str, Any] = {
    "description": "",
    "plugin_paths": [],
    "optimizer": "adamw",
    "memory": ["auto"],
    "callbacks": [],
    "exporters": ["model-folder"],
    "training": {},
}
"""The sections that a recipe may leave out, and their defaults."""
PLUGIN_KIND = "x-plugin-kind"
"""Key in the JSON Schema of an option that is itself a plugin: its kind."""
SECTIONS = ("recipe", "description", "plugin_paths", *SINGLE_SECTIONS, *LIST_SECTIONS, "training")


P = TypeVar("P", bound=api.Plugin, default=api.Plugin, covariant=True)


@dataclass(frozen=True)
class Component(Generic[P]):
    """A plugin with its options, where it comes from, and its place in the recipe."""

    name: str
    plugin: P
    distribution: str
    path: Path_ = field(default=(), compare=False)
    """("dataset",), ("memory", 0), ...; empty while it is in no recipe."""
    filters: tuple[Component[api.Filter], ...] = ()
    """Of a dataset, for its training documents."""

    def data(self) -> dict[str, Any]:
        """The plugin with all its options as plain data, as a recipe has it."""
        filters = {FILTERS: [part.data() for part in self.filters]} if self.plugin.kind == "dataset" else {}
        return {"plugin": self.name, **self.plugin.model_dump(mode="json"), **filters}


StrategyComponent = Component[api.Strategy]


def component(registry: Registry, kind: str, name: str, options: Mapping[str, Any], path: Path_ = ()) -> Component[Any]:
    """The plugin of this kind and name, with these options.

    Raises:
        PluginError: there is none, or it cannot be used.
        ValidationError, OptionError: it refuses the options.
    """
    plugin = registry.load(kind, name).model_validate(options)
    return Component(name, plugin, registry.offer(kind, name).distribution, path)


@dataclass(frozen=True)
class Recipe:
    """A valid recipe: what the user wrote, checked, with a value for every option."""

    document: Document
    description: str
    plugin_paths: tuple[str, ...]
    dataset: Component[api.Dataset]
    tokenizer: Component[api.Tokenizer]
    model: Component[api.Model]
    objective: Component[api.Objective]
    optimizer: Component[api.Optimizer]
    memory: tuple[StrategyComponent, ...]
    callbacks: tuple[Component[api.Callback], ...]
    exporters: tuple[Component[api.Exporter], ...]
    training: Training
    registry: Registry = field(repr=False, compare=False)
    """Where its plugins were found, and where others can be."""

    @property
    def components(self) -> tuple[Component, ...]:
        """The components of all sections, in the order of SECTIONS; filters after their dataset."""
        single = [getattr(self, section) for section in SINGLE_SECTIONS]
        lists = (part for section in LIST_SECTIONS for part in getattr(self, section))
        return *(part for one in single for part in (one, *one.filters)), *lists

    def with_each(self, change: Callable[[Component], Component]) -> Recipe:
        """A copy in which each component is what `change` makes of it, of the same kind."""
        parts: dict[str, Any] = {section: change(getattr(self, section)) for section in SINGLE_SECTIONS}
        parts |= {section: tuple(map(change, getattr(self, section))) for section in LIST_SECTIONS}
        return replace(self, **parts)

    def error(self, message: str, path: Path_) -> RecipeError:
        """The error for one problem at this path in the recipe."""
        return RecipeError([Problem(self.document.place(path), dotted(path), message)])


def validate(document: Document, registry: Registry) -> Recipe:
    """Check every section of the document.

    Raises:
        RecipeError: with every problem found.
    """
    return _Validation(document, registry).recipe()


Options = TypeVar("Options", bound=BaseModel)


class _Validation:
    """One pass over a document, collecting problems."""

    def __init__(self, document: Document, registry: Registry) -> None:
        self.document = document
        self.registry = registry
        self.problems: list[Problem] = []

    def recipe(self) -> Recipe:
        data = {**DEFAULTS, **self.document.data}
        self._check_sections(data)
        components = self._components(data)
        training = self._training(data["training"], {part.name for part in components.get("memory", ()) if part})
        if self.problems:
            raise RecipeError(self.problems)
        recipe = Recipe(
            document=self.document,
            description=str(data["description"]),
            plugin_paths=plugin_paths(self.document),
            **components,
            training=training,
            registry=self.registry,
        )
        for path, message in problems_of_streams(recipe):
            self._problem(path, message)
        if self.problems:
            raise RecipeError(self.problems)
        return recipe

    def _check_sections(self, data: Mapping[str, Any]) -> None:
        for key in data:
            if key not in SECTIONS:
                self._problem((key,), f"no such section; {nearest(key, SECTIONS)}")
        if (version := data.get("recipe", FORMAT)) != FORMAT:
            self._problem(("recipe",), f"this toolkit reads recipe format {FORMAT}, but this recipe has {version!r}")
        if "recipe" not in data:
            self._problem((), f"the format of the recipe is missing; add: recipe: {FORMAT}")

    def _components(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """By section; what has a problem is None or left out. The registry has checked that each is of its kind."""
        parts: dict[str, Any] = {}
        for section, kind in SINGLE_SECTIONS.items():
            if section not in data:
                known = ", ".join(self.registry.names(kind))
                self._problem((), f"the section {section!r} is missing; its plugins: {known}")
            else:
                parts[section] = self._component(data[section], (section,), kind)
        for section, kind in LIST_SECTIONS.items():
            if (listed := self._listed(data[section], (section,), kind)) is not None:
                parts[section] = listed
        return parts

    def _listed(self, entries: Any, path: Path_, kind: str) -> tuple[Component[Any] | None, ...] | None:
        if not isinstance(entries, list):
            self._problem(path, f"must be a list: {path[-1]}: [{{plugin: NAME}}, ...]")
            return None
        return tuple(self._component(entry, (*path, index), kind) for index, entry in enumerate(entries))

    def _component(self, entry: Any, path: Path_, kind: str) -> Component[Any] | None:
        options = {"plugin": entry} if isinstance(entry, str) else entry
        if not isinstance(options, Mapping) or not isinstance(options.get("plugin"), str):
            known = ", ".join(self.registry.names(kind))
            self._problem(path, f"name the plugin: {{plugin: NAME, option: value}}; known: {known}")
            return None
        name = options["plugin"]
        try:
            plugin_class = self.registry.load(kind, name)
        except PluginError as error:
            self._problem((*path, "plugin"), str(error))
            return None
        given: Any = {key: value for key, value in options.items() if key != "plugin"}
        filters = self._listed(given.pop(FILTERS, []), (*path, FILTERS), "filter") if kind == "dataset" else ()
        nested = getattr(plugin_class, "nested_plugins", {})
        if nested and filters:
            self._problem((*path, FILTERS), f"{name} has no documents of its own; give each of its sources its filters")
        for inner, inner_kind in nested.items():
            given = self._with_part(given, inner, inner_kind, path)
        plugin = self._model(plugin_class, given, path)
        if plugin is None:
            return None
        chosen = tuple(part for part in filters or () if part)
        return Component(name, plugin, self.registry.offer(kind, name).distribution, path, chosen)

    def _with_part(self, value: Any, inner: tuple[str, ...], kind: str, path: Path_) -> Any:
        """The options with what is at `inner`, a path in which * is every item of a list, validated as a plugin."""
        if not inner:
            return self._component(value, path, kind)
        head, *rest = inner
        if head == "*" and isinstance(value, list):
            return [self._with_part(item, tuple(rest), kind, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, Mapping) and head in value:
            return {**value, head: self._with_part(value[head], tuple(rest), kind, (*path, head))}
        return value  # of another form than the option has, which its own validation reports

    def _training(self, settings: Any, plugins: Collection[str]) -> Training:
        if not isinstance(settings, Mapping):
            self._problem(("training",), "must be a mapping: training: {num_train_epochs: 3, ...}")
            settings = {}
        for setting, strategy in MOVED.items():
            if settings.get(setting) and strategy not in plugins:
                self._problem(("training", setting), f"this is now memory: [{strategy}]; add that, and remove this")
        settings = {name: value for name, value in settings.items() if name not in MOVED}
        return self._model(Training, settings, ("training",)) or Training()

    def _model(self, model: type[Options], values: Mapping[str, Any], path: Path_) -> Options | None:
        try:
            return model.model_validate(values)
        except ValidationError as errors:
            also = [FILTERS] if issubclass(model, api.Dataset) else []
            for error in errors.errors(include_url=False):
                self._problem((*path, *error["loc"]), option_error(error, model, also=also))
        except OptionError as error:
            self._problem((*path, error.option) if error.option else path, error.message)
        return None

    def _problem(self, path: Path_, message: str) -> None:
        self.problems.append(Problem(self.document.place(path), dotted(path), message))


def plugin_paths(document: Document) -> tuple[str, ...]:
    """The plugin folders that a document names, needed before it can be validated.

    Raises:
        RecipeError: `plugin_paths` is not a list of strings.
    """
    paths = document.data.get("plugin_paths", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        place = document.place(("plugin_paths",))
        raise RecipeError([Problem(place, "plugin_paths", "must be a list of folders: plugin_paths: [./my_plugins]")])
    return tuple(paths)
