"""The kinds of plugin and their methods; memory strategies are in `strategy`, the planner's hooks in `planner`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from toolkit.api.context import Peek, Results, RunContext, Task

if TYPE_CHECKING:
    import numpy
    import torch
    from datasets import DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

API_VERSION = 1
"""The version of the plugin contracts in this release."""


class Plugin(BaseModel):
    """Base class of all plugins: immutable, unknown options rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
    kind: ClassVar[str]
    api_version: ClassVar[int]
    """The `API_VERSION` that the plugin is written for, checked when it is loaded; 1 if the plugin does not say."""
    local_paths: ClassVar[tuple[str, ...]] = ()
    """Options that name files or folders from the current directory; a recipe that is launched elsewhere gets them as
    absolute paths. A value may be a pattern, a list, or a name on the Hub."""

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

        One document per row; its text is a string in the column `text`. Or, for documents that are tokenized already,
        a list of token ids in the column `input_ids`, without the tokens that end or begin a document.
        """

    def fingerprint(self, run: RunContext) -> str | None:
        """Identify what `load` would return without reading it, in a second at most; None if that cannot be done.

        Of files, their paths, sizes and times; of a repository, its commit. As long as this and the options stay the
        same, a run takes the tokens of an earlier one and does not call `load`. Reject what `load` would reject in it.
        """
        return None

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
    a batch. Where blocks are padded, the toolkit takes the labels of the padding out of it.
    """

    kind: ClassVar[str] = "objective"
    task: ClassVar[Task]

    block_size: int = Field(default=1024, ge=8)
    """Tokens per training sequence."""
    packing: Literal["concatenate", "best-fit"] = "concatenate"
    """How documents become blocks. `concatenate`: one after the other, cut wherever a block is full; no padding.
    `best-fit`: a document that fits into a block is never cut (Ding et al. 2024, https://arxiv.org/abs/2404.10830);
    what is left free is padded."""

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
