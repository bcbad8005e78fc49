"""The public contracts of plugins: everything that a plugin may import from toolkit.

A plugin is a frozen Pydantic model. Its fields are its options, each with a description; its one or two
methods do the work and import heavy libraries inside them, so that listing and validating stay fast.
What a plugin knows of the run reaches it as a `RunContext`; it sees neither the recipe nor other plugins.

A method tells a person that something is wrong by raising `OptionError` (an option has to change; the
toolkit adds the file, line and column) or `UnavailableError` (the machine or the network lacks something).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from toolkit.cache import entry_made
from toolkit.errors import OptionError, ToolkitError, UnavailableError

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
"""What a memory strategy does to the numbers: nothing; lower precision; another model or training."""

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
"""A resource that one memory strategy manages alone."""


@dataclass(frozen=True)
class Device:
    """The accelerator of this process, or the processor; found without importing torch."""

    kind: Literal["cpu", "cuda", "mps"]
    name: str
    memory_bytes: int
    count: int = 1
    bf16: bool = False
    """Whether the hardware multiplies bfloat16 matrices itself."""
    compute_capability: tuple[int, int] | None = None
    """CUDA's (major, minor), or None elsewhere."""


class Progress(Protocol):
    """Takes how far a phase of work has come, and shows it to the person who waits."""

    def __call__(self, phase: str, done: int = 0, total: int | None = None, *, unit: str = "") -> None:
        """Report progress; call it as often as you like, it is shown a few times a second.

        With the phase alone it names what begins now, where nothing can be counted.

        Args:
            phase: what is going on, in one or two words: "reading", "tokenizing".
            done: how many units are done.
            total: how many there are, if that is known.
            unit: what is counted, in the plural: "documents", "bytes".
        """


def nobody_watches(phase: str, done: int = 0, total: int | None = None, *, unit: str = "") -> None:
    """Take progress that nobody wants to see."""


def _learn_now(learn: Callable[[], str]) -> str:
    """Learn, where nothing is kept for later."""
    return learn()


@dataclass(frozen=True)
class RunContext:
    """What a plugin may know of the run."""

    name: str
    """The name of the run, which is also the name of its folder."""
    folder: Path
    """The run directory. A plugin adds files of its own under names of its own, and changes no other."""
    cache: Path
    """A folder that runs share; what lies there can be made again."""
    seed: int
    device: Device
    task: Task
    block_size: int
    """Tokens per training sequence."""
    rehearsal: bool = False
    """Whether this is a rehearsal: everything small, nothing from the network, nothing uploaded."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("toolkit"))
    """Messages of level INFO reach the person who watches the run; one sentence each."""
    progress: Progress = nobody_watches
    """Call it in work that may take more than some seconds, such as reading files."""
    learned: Callable[[Callable[[], str]], str] = _learn_now
    """For a tokenizer that learns from the corpus, in `build`: `run.learned(learn)` returns what `learn()` returns, a
    text that says all that was learned, or, without calling it, what it returned to an earlier run with the same
    documents and options. The toolkit keeps the text in the cache."""


@dataclass(frozen=True)
class Peek:
    """What the first rows of a dataset show, before a run."""

    source: str
    """What there is, in a few words: "3 files for train"."""
    document: str
    """The first document, or its beginning."""


@dataclass(frozen=True)
class Results:
    """What a finished run has to say about itself, for exporters."""

    recipe: str
    """The resolved recipe, as YAML."""
    data: Mapping[str, Any]
    """The account of the data: documents, tokens and where each of them went."""
    metrics: Mapping[str, float]
    """At least `steps` and `tokens_seen`; `eval_loss` and `perplexity` where something was held out."""
    licenses: tuple[str, ...] = ()
    """Of the documents, where the dataset names them."""
    languages: tuple[str, ...] = ()
    """Likewise."""


class Plugin(BaseModel):
    """Base of all plugins: immutable, unknown options refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
    kind: ClassVar[str]

    def rehearse(self) -> Self:
        """Return the same component, made small enough to run in seconds and with no network."""
        return self


class Dataset(Plugin):
    """Where the text comes from.

    The options here are applied by the toolkit after `load`, so that they mean the same for every dataset.
    """

    kind: ClassVar[str] = "dataset"
    licenses: ClassVar[tuple[str, ...]] = ()
    """Licences of the documents, for the model's card; none where the person brings them. As the Hub names them
    (cc-by-sa-3.0), or by their SPDX name where it has none (PSF-2.0)."""
    languages: ClassVar[tuple[str, ...]] = ()
    """Languages of the documents, by ISO 639-1 code, likewise."""

    max_samples: int | None = Field(default=None, ge=1)
    """Use at most this many documents of the training split, drawn at random with `seed`; all if not given."""
    eval_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Hold this share of the training documents out for evaluation, in place of the dataset's own validation."""
    seed: int = 42
    """Seed of the draw of `max_samples` and of the split of `eval_fraction`."""
    cut_at_end_token: bool | None = None
    """Whether a text is cut into documents at the tokenizer's end token (`<|endoftext|>`, `</s>`) where it contains
    one. If not given, the dataset decides: text-files cuts where there are txt or md files, the others do not."""

    @abstractmethod
    def load(self, run: RunContext) -> DatasetDict:
        """Return the documents: `train`, and `validation` where the source has one.

        One row, one document; its text is a string in the column `text`.
        """

    def peek(self, run: RunContext) -> Peek | None:
        """Look at the first rows, in seconds, and refuse what `load` would refuse of them; None for no way to do so.

        `recipe validate --data` and `recipe plan` ask for it. It shares its code with `load`, and imports no torch.
        """
        return None

    def holds_end_tokens(self) -> bool:
        """Whether end tokens are expected to separate documents within a text, as in plain text files; by default not.

        Asked where the recipe does not set `cut_at_end_token`.
        """
        return False


class Tokenizer(Plugin):
    """How text becomes numbers."""

    kind: ClassVar[str] = "tokenizer"

    @abstractmethod
    def build(self, corpus: Iterable[str], run: RunContext) -> PreTrainedTokenizerBase:
        """Return the tokenizer. `corpus` yields the training documents, for tokenizers that learn from them."""

    def skeleton(self, run: RunContext) -> PreTrainedTokenizerBase:
        """Return a tokenizer with the size and the special tokens of the one that `build` would return.

        A plan asks for it, and loads no documents. Override it in a tokenizer that learns from them.
        """
        return self.build(iter(()), run)


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest token id of the vocabulary, added and special tokens included.

    It decides the rows of an embedding and the width of a stored token. `len(tokenizer)` does not: it counts tokens,
    and ids may have holes.
    """
    return max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder], default=0)


class Model(Plugin):
    """What is trained."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Return the model on the CPU in float32, with the head of `run.task` and room for `run.block_size`."""

    def skeleton(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Return the model that `build` would return, with any weights; nothing large is downloaded or read.

        A plan asks for it under torch's fake tensors, which have a shape and take no memory: no value can be read.
        Override it in a model that loads weights, or that looks at their values.
        """
        return self.build(tokenizer, run)


class Block(TypedDict):
    """One training sequence, as a collator receives it."""

    input_ids: numpy.ndarray[Any, Any]
    """int64, shape (block_size,)."""
    seed: int
    """The only source of random numbers that a collator may use: it depends on the run's seed, the epoch and
    the block, so that a resumed run draws what the run that never stopped would have drawn."""


class Objective(Plugin):
    """What the model learns from the tokens.

    The toolkit tokenizes the documents, closes each with `document_end`, packs them into blocks between the
    two halves of `block_frame`, caches and counts them. The objective says what goes where, and turns blocks
    into a batch.
    """

    kind: ClassVar[str] = "objective"
    task: ClassVar[Task]

    block_size: int = Field(default=1024, ge=8)
    """Tokens per training sequence."""

    @abstractmethod
    def document_end(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Return the token ids that close every document."""

    def block_frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids before and after the documents of every block; none, unless overridden."""
        return (), ()

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Block]], dict[str, torch.Tensor]]:
        """Return the function that makes a batch of blocks: `input_ids` and `labels`, shape (batch, block_size)."""


class Optimizer(Plugin):
    """How gradients become steps."""

    kind: ClassVar[str] = "optimizer"

    @abstractmethod
    def build(
        self, model: torch.nn.Module, *, learning_rate: float, weight_decay: float, run: RunContext
    ) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters that require a gradient."""


@dataclass(frozen=True)
class Change:
    """A training setting that a memory strategy sets, and the reason to show."""

    value: Any
    why: str = ""


class Memory(Plugin):
    """A strategy that trades something for memory, or for safety.

    It declares what it does, before torch is imported, so that conflicts can be derived and shown.
    """

    kind: ClassVar[str] = "memory"
    claims: ClassVar[frozenset[Claim]] = frozenset()
    """The resources that this strategy manages; no two strategies may claim the same one."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What must be there: a claim of another strategy, `cuda`, or `package:NAME`."""
    fidelity: ClassVar[Fidelity]
    instead: ClassVar[str] = ""
    """What to use where the needs are not met: `another strategy, which needs none`, say."""
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "activations"
    """When `apply` runs, so that the order in the recipe never matters."""

    @classmethod
    def candidates(cls, settings: Mapping[str, Any], device: Device) -> Iterable[Self]:
        """Return the variants that `auto` may try on this device; none, unless overridden.

        Few: each is planned, alone and together with other strategies. What it costs in time is no declaration
        but a reckoning, made from the operations that the step then has.
        """
        return ()

    def needed(self) -> frozenset[str]:
        """Return what must be there with these options: `needs`, unless overridden."""
        return self.needs

    def changes(self, settings: Mapping[str, Any], device: Device) -> Mapping[str, Change]:
        """Return the training settings that this strategy sets; `settings` are those of the recipe."""
        return {}

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with the strategy applied; the model itself, unless overridden."""
        return model


class Chooser(Memory):
    """Stands among the memory strategies for those that the toolkit chooses when it knows the device.

    It says what may be chosen. The toolkit plans the candidates and puts the chosen ones in its place.
    """

    @abstractmethod
    def limit(self, device: Device) -> int:
        """Return the bytes that the run may take on this device."""

    @abstractmethod
    def lowest_fidelity(self) -> Fidelity:
        """Return the fidelity that no chosen strategy may be below."""


class Callback(Plugin):
    """Something that happens while the model trains."""

    kind: ClassVar[str] = "callback"

    @abstractmethod
    def callbacks(self, run: RunContext) -> list[TrainerCallback]:
        """Return the callbacks for the Trainer. They may draw random numbers: training will not notice."""


class Exporter(Plugin):
    """What becomes of the finished model."""

    kind: ClassVar[str] = "exporter"

    @property
    def folder(self) -> str | None:
        """The folder in the run directory that `export` fills; None for an exporter that writes no folder."""
        return None

    def export_bytes(self, *, weights: int, saved: int) -> int:
        """Return the memory that `export` takes beside the model, for a plan; by default, what it wrote loaded again.

        Args:
            weights: bytes of all of the model's weights.
            saved: bytes of those that a checkpoint holds, which are an adapter's alone where there is one.
        """
        return saved

    def check(self, model: PreTrainedModel, run: RunContext) -> None:
        """Refuse now, before the first step, what `export` would refuse after the last; refuses nothing by default."""

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

        An exporter that writes no folder gets the newest exported one, to read. Called once before the first step
        too, to see that it works: with a copy of the model or a small one, and `run.rehearsal`.
        """


KINDS: Mapping[str, type[Plugin]] = {
    contract.kind: contract
    for contract in (Dataset, Tokenizer, Model, Objective, Optimizer, Memory, Callback, Exporter)
}
"""The kinds of plugin. The entry-point group of kind K is `toolkit.K`."""
