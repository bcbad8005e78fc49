"""`mix`: several datasets in one, in shares that the recipe sets.

It is offered as a plugin, so that a recipe names it as it names other datasets, but the toolkit itself does the mixing:
each source is prepared by itself, and `toolkit.data.mixture` decides which block of which source comes when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from toolkit.api import Dataset, Filter, OptionError, Peek, RunContext
from toolkit.errors import nearest
from toolkit.recipe.document import Path_
from toolkit.recipe.schema import FILTERS, PLUGIN_KIND, Component, Recipe, component
from toolkit.registry import Registry

if TYPE_CHECKING:
    import datasets

WORTHWHILE_PASSES = 4.0
"""Up to so many passes over the same text teach about as much as new text would; after 16, next to nothing is left to
learn from it. Muennighoff et al. 2023, arXiv:2305.16264."""


def _dataset(given: Any) -> Any:
    """The dataset of a source: as a recipe's validation has made it (None if it has a problem), or as it is written."""
    if given is None or isinstance(given, Component):
        return given
    options: dict[str, Any] = {"plugin": given} if isinstance(given, str) else dict(given)
    try:
        registry, filters = Registry.discover(), options.pop(FILTERS, [])
        chosen = [component(registry, Filter.kind, (rest := dict(each)).pop("plugin"), rest) for each in filters]
        made = component(registry, Dataset.kind, options.pop("plugin"), options)
        return replace(made, filters=tuple(chosen))
    except KeyError:
        raise ValueError("name the plugin: {plugin: NAME, option: value}") from None
    except OptionError as error:
        raise ValueError(error.message) from None


def _share_of_run(given: Any) -> Any:
    """A share in percent, as in `80%`, as a fraction."""
    if isinstance(given, str) and given.strip().endswith("%"):
        try:
            return float(given.strip()[:-1]) / 100
        except ValueError:
            pass
    return given


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Passes = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Part(BaseModel):
    """A part of a mixture's options; immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MixSource(Part):
    """A dataset in a mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$")
    """The name under which it is counted and evaluated: letters, digits, and `.`, `_` or `-` between them."""
    weight: Weight
    """Its share of the tokens, in relation to the weights of the others: 0.7 and 0.3, or 7 and 3."""
    max_passes: Passes | None = None
    """The most passes over its tokens that a run may make; if not given, the mixture's."""
    dataset: Annotated[
        Component[Dataset],
        PlainValidator(_dataset),
        PlainSerializer(lambda part: part and part.data()),
        WithJsonSchema({PLUGIN_KIND: Dataset.kind}),
    ]
    """The dataset: {plugin: NAME, option: value}, with options of its own such as `eval_fraction`."""


class Stage(Part):
    """A part of the run with weights of its own."""

    until: Annotated[float, BeforeValidator(_share_of_run, json_schema_input_type=float | str)] | None = Field(
        default=None, gt=0, le=1
    )
    """Where in the run it ends: `80%`, or 0.8; the last one ends with the run."""
    weights: dict[str, Weight] = {}
    """Weights in this stage, by the name of the source; a source that is not named keeps its own."""


class Mix(Dataset):
    """Several datasets in one, in shares of tokens that you set, which may change in the course of the run.

    Each source has its own options, is prepared, counted and evaluated by itself, and is shuffled anew for each pass
    over it. docs/mixtures.md
    """

    nested_plugins: ClassVar[Mapping[tuple[str, ...], str]] = {("sources", "*", "dataset"): Dataset.kind}
    """Where its options are plugins themselves, whose options a recipe's validation checks at their own places."""

    sources: tuple[MixSource, ...]
    """The datasets: a list of {name: NAME, weight: 0.7, dataset: {plugin: ...}}."""
    stages: tuple[Stage, ...] = ()
    """Parts of the run with other weights: a list of {until: 80%, weights: {NAME: 0.5}}; if not given, one stage."""
    max_passes: Passes = WORTHWHILE_PASSES
    """The most passes over a source that a run may make; a longer run is refused before it begins. Up to 4 are about as
    good as new text (arXiv:2305.16264)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := list(self._problems()):
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(
                        type=PydanticCustomError("value_error", "{error}", {"error": message}), loc=path, input=None
                    )
                    for path, message in problems
                ],
            )
        return self

    def _problems(self) -> Iterator[tuple[Path_, str]]:
        names = [source.name for source in self.sources]
        if not self.sources:
            yield ("sources",), "there are none; a mixture has at least one: {name: web, weight: 1, dataset: ...}"
            return
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("sources", index, "name"), f"two sources are named {name!r}; give each a name of its own"
        for index, source in enumerate(self.sources):
            if source.dataset and isinstance(source.dataset.plugin, Mix):
                message = "a source cannot be a mixture itself; list its sources here"
                yield ("sources", index, "dataset", "plugin"), message
        for option in ("max_samples", "eval_fraction", "cut_at_end_token", "seed"):
            if option in self.model_fields_set and getattr(self, option) != type(self).model_fields[option].default:
                yield (option,), "a mixture has no documents of its own; set this on the datasets of its sources"
        yield from self._problems_of_stages(names)

    def _problems_of_stages(self, names: list[str]) -> Iterator[tuple[Path_, str]]:
        last, reached = len(self.stages) - 1, 0.0
        for index, stage in enumerate(self.stages):
            for name in stage.weights:
                if name not in names:
                    yield (
                        ("stages", index, "weights", name),
                        f"no source is called {name!r}; {nearest(name, names)}",
                    )
            if index == last and stage.until not in (None, 1):
                yield ("stages", index, "until"), "the last stage ends with the run; leave out its `until`"
            elif index < last and stage.until is None:
                yield ("stages", index), "say where this stage ends: until: 80%; only the last ends with the run"
            elif index < last and stage.until is not None and not reached < stage.until < 1:
                yield (
                    ("stages", index, "until"),
                    f"{stage.until:.4g} is not after the end of the stage before, {reached:.4g}, and before that of "
                    f"the run, 1",
                )
            reached = stage.until or reached
        weights = self.weights()
        for index, of_stage in enumerate(weights):
            if not any(of_stage.values()):
                place: Path_ = ("stages", index, "weights") if self.stages else ("sources",)
                yield place, "all weights are 0; give one of the sources a weight above 0"
        for index, source in enumerate(self.sources):
            if names.count(source.name) == 1 and not any(of_stage[source.name] for of_stage in weights):
                yield (
                    ("sources", index, "weight"),
                    f"{source.name} has a weight of 0 throughout the run; remove it, or give it a weight",
                )

    def weights(self) -> list[dict[str, float]]:
        """The weights of all sources in each stage, by name."""
        own = {source.name: source.weight for source in self.sources}
        return [
            {name: stage.weights.get(name, weight) for name, weight in own.items()}
            for stage in self.stages or (Stage(),)
        ]

    def ends(self) -> list[float]:
        """Where each stage ends, as a fraction of the run."""
        return [*(stage.until or 1.0 for stage in self.stages[:-1]), 1.0]

    def passes_allowed(self) -> dict[str, float]:
        """The most passes over each source, by name."""
        return {source.name: source.max_passes or self.max_passes for source in self.sources}

    def with_datasets(self, change: Callable[[Component[Dataset]], Component[Dataset]]) -> Self:
        """A copy in which each source's dataset, a Component, is what `change` makes of it."""
        changed = (source.model_copy(update={"dataset": change(source.dataset)}) for source in self.sources)
        return self.model_copy(update={"sources": tuple(changed)})

    def rehearse(self) -> Self:
        """The same mixture of small sources, however often they are repeated."""
        small = self.with_datasets(lambda part: replace(part, plugin=part.plugin.rehearse()))
        unlimited = tuple(source.model_copy(update={"max_passes": None}) for source in small.sources)
        return small.model_copy(update={"sources": unlimited, "max_passes": float(2**53)})

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """The documents of all sources, one source after the other."""
        from datasets import DatasetDict, concatenate_datasets

        loaded = [source.dataset.plugin.load(run) for source in self.sources]
        splits = Counter(split for data in loaded for split in data)
        return DatasetDict(
            {
                split: concatenate_datasets([data[split].select_columns("text") for data in loaded if split in data])
                for split in splits
            }
        )

    def peek(self, run: RunContext) -> Peek | None:
        """The first rows of each source, and the first document of the first."""
        peeks = {source.name: source.dataset.plugin.peek(run) for source in self.sources}
        return peeked(peeks)


def peeked(peeks: Mapping[str, Peek | None]) -> Peek | None:
    """What the first rows of several sources show; None if none of them can be looked at."""
    shown = {name: peek for name, peek in peeks.items() if peek}
    if not shown:
        return None
    source = "; ".join(f"{name}: {peek.source if peek else 'no preview'}" for name, peek in peeks.items())
    return Peek(source, next(iter(shown.values())).document)


def sources_of(recipe: Recipe) -> dict[str, Component[Dataset]]:
    """The datasets that a recipe's documents come from, by name: those of a mixture, or the only one, named ''."""
    dataset = recipe.dataset
    if not isinstance(dataset.plugin, Mix):
        return {"": dataset}
    return {source.name: source.dataset for source in dataset.plugin.sources}
