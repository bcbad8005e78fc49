"""What plugins are checked with: tiny real models, a tokenizer and texts, generated here and the same every time."""

from __future__ import annotations

import random
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from inspect import getsourcefile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.api import Block, Device, Plugin, RunContext, Task
from toolkit.errors import OptionError, ToolkitError
from toolkit.registry import Offer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

N = TypeVar("N", bound=str)
T = TypeVar("T")

BLOCK_SIZE = 48
POSITIONS = 64
SEED = 7
SENTENCE = "the cat sat on a mat and 12 dogs ran far from their old home while birds sang low over green hills"


@dataclass(frozen=True)
class Check:
    """One check, and its finding."""

    name: str
    passed: bool
    detail: str
    """What was seen; for a failure, what is wrong."""
    tried: bool = True
    """Whether the check ran; if not, `detail` says why."""


class Fault(Exception):  # noqa: N818 - it is a finding, which becomes a failed Check
    """A plugin does not do what its kind promises."""


class NotTriedHere(Exception):  # noqa: N818 - it is a finding: a Check that failed untried
    """The machine lacks what a check needs, so that the plugin does not pass here."""


@dataclass(frozen=True)
class Bench:
    """Everything needed to check one plugin."""

    folder: Path
    """Empty at first, and removed afterwards."""
    rehearsal: bool
    """Whether `run.rehearsal` is set for the plugin."""
    offer: Offer | None = None
    """Where the plugin comes from; needed for checks in another process."""

    def run(self, task: Task = "causal-lm", *, rehearsal: bool = False, device: Device | None = None) -> RunContext:
        """The context of a run, with a run folder and a cache of its own; both exist and are empty."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / "run").mkdir()
        (folder / "cache").mkdir()
        return RunContext(
            name="conformance",
            folder=folder / "run",
            cache=folder / "cache",
            seed=SEED,
            device=device or Device(kind="cpu", name="the processor", memory_bytes=4 << 30),
            task=task,
            block_size=BLOCK_SIZE,
            rehearsal=rehearsal or self.rehearsal,
        )

    @cached_property
    def texts(self) -> list[str]:
        """Sentences of a few words."""
        draw, words = random.Random(SEED), SENTENCE.split()
        return [" ".join(draw.choices(words, k=draw.randint(6, 30))).capitalize() + "." for _ in range(200)]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A byte-level BPE, trained on the texts, with every special token that an objective may look for."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        special = {"eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unk>"}
        special |= {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
        learned = Tokenizer(models.BPE())
        learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learned.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=list(special.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learned.train_from_iterator(self.texts, trainer)
        wrap: Any = PreTrainedTokenizerFast  # its constructor has no annotations
        tokenizer: PreTrainedTokenizerBase = wrap(tokenizer_object=learned, model_max_length=POSITIONS, **special)
        return tokenizer

    def model(self, family: str) -> PreTrainedModel:
        """A new model of about 30,000 parameters, the same every time; its family is gpt2, llama or bert."""
        import torch
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForMaskedLM,
            BertConfig,
            GPT2Config,
            LlamaConfig,
            PreTrainedConfig,
            set_seed,
        )

        common: dict[str, Any] = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": POSITIONS,
            "bos_token_id": self.tokenizer.eos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        # No dropout, so that two passes over the same batch agree.
        still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        configs: dict[str, Callable[[], PreTrainedConfig]] = {
            "gpt2": lambda: GPT2Config(**common, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
            "llama": lambda: LlamaConfig(**common, intermediate_size=64),
            "bert": lambda: BertConfig(**common, **still, intermediate_size=64),
        }
        head: Any = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
        set_seed(SEED)
        model: PreTrainedModel = head.from_config(configs[family](), dtype=torch.float32)
        model.loss_type = "ForMaskedLM" if family == "bert" else "ForCausalLM"  # GPT-2's class name does not show it
        return model

    def batch(self, size: int = 4) -> torch.Tensor:
        """Token ids of the texts, shape (size, BLOCK_SIZE)."""
        import torch

        return torch.stack([torch.from_numpy(block["input_ids"]) for block in self.blocks(size)])

    def blocks(
        self,
        count: int,
        block_size: int = BLOCK_SIZE,
        *,
        end: tuple[int, ...] | None = None,
        frame: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    ) -> list[Block]:
        """Blocks as the toolkit packs them: the texts in sequence, each closed by `end` (EOS), within a frame."""
        import numpy

        before, after = frame
        room = block_size - len(before) - len(after)
        documents = [[*text, *((self.tokenizer.eos_token_id,) if end is None else end)] for text in self._encoded]
        stream = [token for text in documents for token in text]
        ids = numpy.resize(numpy.array(stream, dtype="int64"), (count, room))
        # Seeds like those of a run: any 56-bit number.
        draw = random.Random(SEED)
        return [
            {"input_ids": numpy.array([*before, *row, *after], dtype="int64"), "seed": draw.getrandbits(56)}
            for row in ids
        ]

    @cached_property
    def _encoded(self) -> list[list[int]]:
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in self.texts]


def first_accepted(names: Iterable[N], attempt: Callable[[N], T]) -> tuple[N, T]:
    """The first name whose attempt the plugin does not refuse: not every plugin supports every model or task.

    Raises:
        Fault: it refuses all of them.
    """
    refusals = []
    for name in names:
        try:
            return name, attempt(name)
        except OptionError as error:
            refusals.append(f"{name}: {error.message}")
    raise Fault("it refuses everything that it was tried with; " + "; ".join(refusals))


def described(error: BaseException, plugin: type[Plugin] | None = None) -> str:
    """An exception in one line, with the line of the plugin's file that it came from."""
    if isinstance(error, ToolkitError):
        return f"it refuses: {error}"
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    file = getsourcefile(plugin) if plugin else None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{text} ({Path(file).name}, line {lines[-1]})" if file and lines else text


def require(condition: object, message: str) -> None:
    """Continue only if the condition holds.

    Raises:
        Fault: it does not.
    """
    if not condition:
        raise Fault(message)


def disturb_random_numbers(seed: int) -> None:
    """Move all global random generators to another state, as another run would have them."""
    from transformers import set_seed

    set_seed(seed)
