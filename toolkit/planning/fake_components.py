"""ResolvedRecipe -> Components that take no memory: the recipe's own plugins, under torch's fake tensors.

Nothing here depends on an architecture. The model comes from its plugin's `skeleton`, or its `build`
if it has none, and the strategies are applied as in a run. No documents are read and no weights are downloaded.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from toolkit.api import ModelSkeleton, RunContext, Tokenizer
from toolkit.data.packed_dataset import without_padding
from toolkit.errors import PluginError, ToolkitError
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.training.components import Components, check_exporters
from toolkit.training.loading import tokenizer_skeleton
from toolkit.training.refusals import refusals_placed
from toolkit.training.strategies import checked_loss, optimizer_wrapper, with_strategies

if TYPE_CHECKING:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import PreTrainedTokenizerBase

FAKE_DATASET_LENGTH = 1_000_000
"""Length of the dataset that the trainer is given; it asks for the length, and reads no block."""

MAX_REAL_BLOCK = 32_749
"""Longest block that a batch is really made of: 256 KB for each tensor and sequence. A prime, which no other dimension
is likely to equal."""


class NoBlocks:
    """A dataset that has a length but no contents."""

    def __len__(self) -> int:
        return FAKE_DATASET_LENGTH

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


@contextlib.contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Make every new tensor fake: with a shape, a dtype and a device, but no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    # The converter keeps a weak reference to every fake tensor, in case it meets the same real one again. Here it does
    # not, and `Module.to` swaps tensors in place, which torch refuses for a tensor that has weak references.
    mode.fake_tensor_converter.set_tensor_memo = lambda *_: None  # type: ignore[method-assign]  # torch offers no switch for it
    # It logs the traceback of every exception that passes through, though a plugin's failure or Ctrl-C is reported
    # elsewhere.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with mode:
            yield mode
    finally:
        log.disabled = before


def components(resolved: ResolvedRecipe, context: RunContext) -> tuple[Components, int]:
    """What `components.assemble` builds, without contents, and the bytes that its model had before any memory strategy.

    To be called under `fake_tensors`.

    Raises:
        RecipeError, UnavailableError: a plugin refuses, as it would in a run.
        PluginError: a plugin cannot work without values.
    """
    from toolkit.logs import libraries_quiet
    from toolkit.training.document_attention import attend_within_documents

    recipe = resolved.recipe
    with libraries_quiet():
        tokenizer_plugin = recipe.tokenizer.plugin
        with (
            needs_no_values("tokenizer", type(tokenizer_plugin)),
            refusals_placed(recipe, ("tokenizer",)),
            real_tensors(),
        ):
            tokenizer = _tokenizer(tokenizer_plugin, context)
        model_plugin = recipe.model.plugin
        with needs_no_values("model", type(model_plugin)), refusals_placed(recipe, ("model",)):
            skeleton = model_plugin.skeleton if isinstance(model_plugin, ModelSkeleton) else model_plugin.build
            model = skeleton(tokenizer, context)
        with refusals_placed(recipe, ("objective",)), real_tensors():
            attend_within_documents(model, recipe.objective.plugin, tokenizer, context)
        built_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
        with needs_no_values("memory strategy", None):
            model = with_strategies(resolved, model, context)
        with needs_no_values("exporter", None):
            check_exporters(recipe, model, context)
        with needs_no_values("model", type(model_plugin)):
            loss = checked_loss(recipe, model, context)
    wrap = optimizer_wrapper(recipe, model, context)
    return Components(tokenizer, model, cast(Any, _Data()), recipe.objective.plugin, loss, wrap), built_bytes


def batch(built: Components, context: RunContext, mode: FakeTensorMode, *, size: int) -> dict[str, torch.Tensor]:
    """A fake batch as the objective's own collator makes it of blocks that are each filled by a single document.

    Of blocks longer than `MAX_REAL_BLOCK` it is made of shorter ones, and then lengthened.
    """
    import numpy
    import torch

    length = min(context.block_size, MAX_REAL_BLOCK)
    blocks: list[Any] = [{"input_ids": numpy.zeros(length, dtype="int64"), "seed": seed} for seed in range(size)]
    with real_tensors():  # a collator may look at the values
        real = built.objective.collator(built.tokenizer)(blocks)
        if built.objective.packing == "best-fit":
            real = without_padding(real, numpy.full(size, length - 1), context.task)
    if length == context.block_size:
        return {name: mode.from_tensor(tensor) for name, tensor in real.items()}
    shapes = {name: [context.block_size if n == length else n for n in tensor.shape] for name, tensor in real.items()}
    return {name: torch.empty(shape, dtype=real[name].dtype) for name, shape in shapes.items()}


@contextlib.contextmanager
def real_tensors() -> Iterator[None]:
    """Make tensors real again, inside `fake_tensors`."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        yield


@contextlib.contextmanager
def needs_no_values(what: str, plugin: type[Any] | None) -> Iterator[None]:
    """Say what to do about a plugin whose code reads the values of a fake tensor.

    Raises:
        PluginError: it failed where it would not have with real tensors.
    """
    try:
        yield
    except ToolkitError:
        raise
    except Exception as error:  # whatever its own code raises
        name = f" {plugin.__module__}.{plugin.__qualname__}" if plugin else ""
        cure = (
            "its method skeleton can build the same without looking at them" if plugin else "it can be run all the same"
        )
        raise PluginError(
            f"no plan can be made: the {what}{name} fails on tensors that have a shape and no values, or without "
            f"documents ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); {cure}"
        ) from error


def _tokenizer(plugin: Tokenizer, context: RunContext) -> PreTrainedTokenizerBase:
    """The tokenizer's stand-in; cached, because a comparison asks for the same one many times."""
    key = (type(plugin), repr(plugin), context.task, context.block_size)
    if key not in _TOKENIZERS:
        _TOKENIZERS.clear()
        _TOKENIZERS[key] = tokenizer_skeleton(plugin, context)
    return _TOKENIZERS[key]


_TOKENIZERS: dict[Any, PreTrainedTokenizerBase] = {}


class _Data:
    """The datasets, as the trainer sees them."""

    train = validation = NoBlocks()
