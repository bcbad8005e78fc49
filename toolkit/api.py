"""The public plugin API: everything that a plugin may import from toolkit.

A plugin is a frozen Pydantic model. Its fields are its options, each with a description; its methods do the
work and import heavy libraries in their bodies, so that listing and validation stay fast. What a plugin may
know about the run is passed as a `RunContext`; it sees no other plugins, and the recipe only as an exporter.

A method reports a user's error by raising `OptionError` (an option has to change; the toolkit adds the file,
line and column) or `UnavailableError` (the machine or the network lacks something).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from toolkit.errors import OptionError, ToolkitError, UnavailableError
from toolkit.system.cache import entry_made
from toolkit.system.device import Device

if TYPE_CHECKING:
    import numpy
    import torch
    from datasets import DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

__all__ = [
    "KINDS",
    "Block",
    "Callback",
    "Change",
    "Chooser",
    "Claim",
    "Dataset",
    "Device",
    "Exporter",
    "Fidelity",
    "Memory",
    "Model",
    "Objective",
    "Optimizer",
    "OptionError",
    "Peek",
    "Plugin",
    "Progress",
    "Results",
    "RunContext",
    "Task",
    "Tokenizer",
    "ToolkitError",
    "UnavailableError",
    "entry_made",
    "highest_id",
]

Task = Literal["causal-lm", "masked-lm"]
"""The head that a model needs: `AutoModelForCausalLM` or `AutoModelForMaskedLM`."""

Fidelity = Literal["exact", "approximate", "different"]
"""A memory strategy's effect on the numbers: none; lower precision; a different model or training."""

Claim = Literal[
    "activations",
    "activation-placement",
    "optimizer",
    "logits",
    "gradients",
    "precision",
    "weights",
    "trainable-parameters",
    "batch",
    "saves",
]
"""A resource that a single memory strategy manages exclusively."""


class Progress(Protocol):
    """Callable that reports the progress of a phase of work to the user."""

    def __call__(self, phase: str, done: int = 0, total: int | None = None, *, unit: str = "") -> None:
        """Report progress; call it as often as you like, it is shown a few times a second.

        With the phase alone, it announces work that cannot be counted.

        Args:
            phase: what is going on, in one or two words: "reading", "tokenizing".
            done: how many units are done.
            total: how many there are, if known.
            unit: what is counted, in the plural: "documents", "bytes".
        """


def nobody_watches(phase: str, done: int = 0, total: int | None = None, *, unit: str = "") -> None:
    """Discard progress reports."""


def _learn_now(learn: Callable[[], str]) -> str:
    """Learn without caching."""
    return learn()


@dataclass(frozen=True)
class RunContext:
    """What a plugin may know about the run."""

    name: str
    """Name of the run, and of its folder."""
    folder: Path
    """The run directory. A plugin may add files under names of its own, and must not touch the others."""
    cache: Path
    """Cache folder, shared between runs; everything in it can be regenerated."""
    seed: int
    device: Device
    task: Task
    block_size: int
    """Tokens per training sequence."""
    rehearsal: bool = False
    """Whether this is a rehearsal: everything scaled down, no network, no uploads."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("toolkit"))
    """INFO messages are shown to whoever watches the run; one sentence each."""
    progress: Progress = nobody_watches
    """Call it in work that may take more than a few seconds, such as reading files."""
    learned: Callable[[Callable[[], str]], str] = _learn_now
    """For a tokenizer that learns from the corpus, in `build`: `run.learned(learn)` returns what `learn()` returns, a
    text that holds everything learned, or, without calling it, what it returned in an earlier run with the same
    documents and options. The toolkit caches the text."""


@dataclass(frozen=True)
class Peek:
    """Preview of a dataset from its first rows, before a run."""

    source: str
    """The source in a few words: "3 files for train"."""
    document: str
    """The first document, or its beginning."""


@dataclass(frozen=True)
class Results:
    """What a run has reached, for exporters."""

    recipe: str
    """The resolved recipe, as YAML."""
    data: Mapping[str, Any]
    """The data account: documents, tokens, and where each of them went."""
    metrics: Mapping[str, float]
    """At least `steps` and `tokens_seen`; `eval_loss` and `perplexity` if data was held out and evaluated."""
    licenses: tuple[str, ...] = ()
    """Of the documents, if the dataset declares them."""
    languages: tuple[str, ...] = ()
    """Likewise."""


class Plugin(BaseModel):
    """Base class of all plugins: immutable, unknown options rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
    kind: ClassVar[str]

    def rehearse(self) -> Self:
        """Return the same component, scaled down to run in seconds without a network."""
        return self


class Dataset(Plugin):
    """Where the text comes from.

    The toolkit applies the options defined here after `load`, so that they mean the same for every dataset.
    """

    kind: ClassVar[str] = "dataset"
    licenses: ClassVar[tuple[str, ...]] = ()
    """Licences of the documents, for the model card; none if the user supplies the documents. Hub identifiers
    (cc-by-sa-3.0), or SPDX ones where the Hub has none (PSF-2.0)."""
    languages: ClassVar[tuple[str, ...]] = ()
    """Languages of the documents as ISO 639-1 codes, likewise."""

    max_samples: int | None = Field(default=None, ge=1)
    """Use at most this many training documents, sampled at random with `seed`; all if not given."""
    eval_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Hold out this fraction of the training documents for evaluation, in place of the dataset's own validation."""
    seed: int = 42
    """Seed for sampling `max_samples` and for the `eval_fraction` split."""
    cut_at_end_token: bool | None = None
    """Whether to cut a text into documents wherever it contains the tokenizer's end token (`<|endoftext|>`, `</s>`).
    If not given, the dataset decides: text-files cuts if there are txt or md files, the others do not."""

    @abstractmethod
    def load(self, run: RunContext) -> DatasetDict:
        """Return the documents: `train`, and `validation` if the source has one.

        One document per row; its text is a string in the column `text`.
        """

    def peek(self, run: RunContext) -> Peek | None:
        """Inspect the first rows, in seconds, and reject what `load` would reject in them; None if that cannot be done.

        Called by `recipe validate --data` and `recipe plan`. Share its code with `load`, and import no torch.
        """
        return None

    def holds_end_tokens(self) -> bool:
        """Whether end tokens are expected to separate documents inside a text, as in plain text files; by default not.

        Called if the recipe does not set `cut_at_end_token`.
        """
        return False


class Tokenizer(Plugin):
    """How text becomes token ids."""

    kind: ClassVar[str] = "tokenizer"

    @abstractmethod
    def build(self, corpus: Iterable[str], run: RunContext) -> PreTrainedTokenizerBase:
        """Return the tokenizer. `corpus` yields the training documents, for tokenizers that learn from them."""

    def skeleton(self, run: RunContext) -> PreTrainedTokenizerBase:
        """Return a tokenizer with the vocabulary size and special tokens of the one that `build` would return.

        Called by a plan, which loads no documents. Override it in a tokenizer that learns from them.
        """
        return self.build(iter(()), run)


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest token id in the vocabulary, added and special tokens included.

    It determines the number of embedding rows and the dtype of stored tokens. `len(tokenizer)` does not: it counts
    tokens, and ids may have gaps.
    """
    return max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder], default=0)


class Model(Plugin):
    """What is trained."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Return the model on the CPU in float32, with the head of `run.task` and room for `run.block_size`."""

    def skeleton(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Return the model that `build` would return, with arbitrary weights; nothing large is downloaded or read.

        Called by a plan under torch's fake tensors, which have a shape but no storage: no value can be read.
        Override it in a model that loads weights, or that inspects their values.
        """
        return self.build(tokenizer, run)


class Block(TypedDict):
    """One training sequence, as a collator receives it."""

    input_ids: numpy.ndarray[Any, Any]
    """int64, shape (block_size,)."""
    seed: int
    """The only source of randomness that a collator may use: derived from the run's seed, the epoch and the
    block, so that a resumed run draws what an uninterrupted one would have drawn."""


class Objective(Plugin):
    """What the model learns from the tokens.

    The toolkit tokenizes the documents, ends each with `document_end`, packs them into blocks between the two
    halves of `block_frame`, caches and counts them. The objective supplies those tokens and collates blocks into
    a batch.
    """

    kind: ClassVar[str] = "objective"
    task: ClassVar[Task]

    block_size: int = Field(default=1024, ge=8)
    """Tokens per training sequence."""

    @abstractmethod
    def document_end(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Return the token ids that end every document."""

    def block_frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids before and after the documents in every block; none, unless overridden."""
        return (), ()

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Block]], dict[str, torch.Tensor]]:
        """Return the function that collates blocks into `input_ids` and `labels`, shape (batch, block_size)."""


class Optimizer(Plugin):
    """How gradients become steps."""

    kind: ClassVar[str] = "optimizer"

    @abstractmethod
    def build(
        self, model: torch.nn.Module, *, learning_rate: float, weight_decay: float, run: RunContext
    ) -> torch.optim.Optimizer:
        """Return the optimizer over the parameters that require gradients."""


@dataclass(frozen=True)
class Change:
    """The value that a memory strategy gives a training setting, and the reason to show."""

    value: Any
    why: str = ""


class Memory(Plugin):
    """A strategy that trades something for memory, or for safety.

    It declares its effects before torch is imported, so that conflicts can be derived and shown.
    """

    kind: ClassVar[str] = "memory"
    claims: ClassVar[frozenset[Claim]] = frozenset()
    """Resources that this strategy manages; no two strategies may claim the same one."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Requirements: a claim of another strategy, `cuda`, `mps`, or `package:NAME`."""
    fidelity: ClassVar[Fidelity]
    instead: ClassVar[str] = ""
    """What to use if the needs are not met, such as `another strategy, which needs none`."""
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "activations"
    """When `apply` runs; because of it, the order in the recipe never matters."""

    @classmethod
    def candidates(cls, settings: Mapping[str, Any], device: Device) -> Iterable[Self]:
        """Return the variants that `auto` may try on this device; none, unless overridden.

        Keep them few: each is planned, alone and combined with other strategies. The time a variant costs is not
        declared but estimated from the operations of the resulting step.
        """
        return ()

    def needed(self) -> frozenset[str]:
        """Return the requirements with these options: `needs`, unless overridden."""
        return self.needs

    def changes(self, settings: Mapping[str, Any], device: Device) -> Mapping[str, Change]:
        """Return the training settings that this strategy sets; `settings` are the recipe's."""
        return {}

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with the strategy applied; the model itself, unless overridden."""
        return model


class Chooser(Memory):
    """Placeholder among the memory strategies for those that the toolkit chooses once it knows the device.

    It bounds the choice. The toolkit plans the candidates and replaces the placeholder with those chosen.
    """

    @abstractmethod
    def limit(self, device: Device) -> int:
        """Return the number of bytes that the run may use on this device."""

    @abstractmethod
    def lowest_fidelity(self) -> Fidelity:
        """Return the lowest fidelity that a chosen strategy may have."""


class Callback(Plugin):
    """Something that happens during training."""

    kind: ClassVar[str] = "callback"

    @abstractmethod
    def callbacks(self, run: RunContext) -> list[TrainerCallback]:
        """Return the callbacks for the Trainer. They may draw random numbers: the RNG state is restored afterwards."""


class Exporter(Plugin):
    """What becomes of the finished model."""

    kind: ClassVar[str] = "exporter"

    @property
    def folder(self) -> str | None:
        """The folder in the run directory that `export` fills; None if it writes no folder."""
        return None

    def export_bytes(self, *, weights: int, saved: int) -> int:
        """Return the memory that `export` takes beside the model, for a plan; by default, that of reloading its output.

        Args:
            weights: bytes of all of the model's weights.
            saved: bytes of the weights in a checkpoint, which are the adapter's alone if there is one.
        """
        return saved

    def check(self, model: PreTrainedModel, run: RunContext) -> None:
        """Reject before the first step what `export` would reject after the last; by default, nothing."""

    @abstractmethod
    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        results: Results,
        run: RunContext,
    ) -> None:
        """Write the model into `folder`, which is empty and becomes visible only when this returns.

        An exporter that writes no folder gets the newest exported one, to read. Also called once before the first
        step, to check that it works: with a copy of the model or a small one, and `run.rehearsal` set.
        """


KINDS: Mapping[str, type[Plugin]] = {
    contract.kind: contract
    for contract in (Dataset, Tokenizer, Model, Objective, Optimizer, Memory, Callback, Exporter)
}
"""The kinds of plugin. The entry-point group of kind K is `toolkit.K`."""
