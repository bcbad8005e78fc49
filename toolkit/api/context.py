"""What a plugin is told about the run, and what it may tell in return."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from toolkit.system.device import Device

Task = Literal["causal-lm", "masked-lm"]
"""The head that a model needs: `AutoModelForCausalLM` or `AutoModelForMaskedLM`."""

Precision = Literal["fp32", "bf16", "fp16"]
"""Number format of the matrix multiplications; the weights and the optimizer state stay in float32."""


class Progress(Protocol):
    """Callable that reports the progress of a phase of work to the user."""

    def __call__(
        self, phase: str, done: int = 0, total: int | None = None, *, unit: str = "", detail: str = ""
    ) -> None:
        """Report progress; call it as often as you like, it is shown a few times a second.

        With the phase alone, it announces work that cannot be counted.

        Args:
            phase: what is going on, in one or two words: "reading", "tokenizing".
            done: how many units are done.
            total: how many there are, if known.
            unit: what is counted, in the plural: "documents", "bytes".
            detail: what else is worth knowing: "12,000 documents, 3.2M tokens".
        """


def nobody_watches(phase: str, done: int = 0, total: int | None = None, *, unit: str = "", detail: str = "") -> None:
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
    precision: Precision = "fp32"
    rehearsal: bool = False
    """Whether this is a rehearsal: everything scaled down, no network, no uploads."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("toolkit"))
    """INFO messages are shown to whoever watches the run; one sentence each."""
    progress: Progress = nobody_watches
    """Call it in work that may take more than a few seconds, such as reading files."""
    held_out: Path | None = None
    """For a filter that `needs_held_out`, in `judge` and `fingerprint`: the dataset's held-out documents, as the key
    `text` of the lines of a JSONL file. None before they are known, as when a recipe is validated."""
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
    """At least `steps` and `tokens_seen`; `eval_loss` and `perplexity` if data was held out and evaluated;
    `averaged_checkpoints`, if the weights are the mean of so many."""
    licenses: tuple[str, ...] = ()
    """Of the documents, if the dataset declares them; of a mixture, if all of its sources do."""
    languages: tuple[str, ...] = ()
    """Likewise, of any source."""
    source_licenses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a mixture: the licences that each source declares, by its name."""
