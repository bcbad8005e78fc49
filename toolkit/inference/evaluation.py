"""Perplexity of a finished run's model on the documents that the run held out.

A window slides over each document; every token is scored once, with at least `context - stride` tokens before it
(fewer only at a document's beginning). A document is scored as in packed training: it is preceded by an end token,
and its own end token is predicted too. Perplexity per token depends on the tokenizer; perplexity per word and bits
per byte do not, so they compare models.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from toolkit.api import Progress, highest_id
from toolkit.data.encoding import pieces, texts_of
from toolkit.errors import UsageError
from toolkit.events import Listener, ProgressReporter
from toolkit.inference.generation import load_model
from toolkit.logs import libraries_quiet
from toolkit.recipe.resolve import resolve
from toolkit.storage.run_directory import MODEL_FOLDER, RunDirectory
from toolkit.system import environment_variables
from toolkit.system.device import detect
from toolkit.training.components import context_of
from toolkit.training.loading import documents_by_source

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOWS_PER_BATCH = 8
MAX_LOGITS_PER_BATCH = 2**26
"""Logits of a batch, 256 MB of them; with GPT-2's vocabulary that is one window of 1,024 tokens. Several windows would
be faster, but not by enough to be worth gigabytes."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on how much."""

    documents: int
    tokens: int
    """Scored tokens, the end of each document included."""
    words: int
    """Separated by whitespace."""
    bytes: int
    """Of the text in UTF-8."""
    negative_log_likelihood: float
    """Sum over the tokens, in nats."""
    token_perplexity: float
    word_perplexity: float
    bits_per_byte: float
    context: int
    """Tokens in a window."""
    stride: int
    """Tokens by which the window moves."""
    by_source: Mapping[str, Evaluation] = field(default_factory=dict)
    """Of a mixture: the same of each source that has documents held out."""


@dataclass(frozen=True)
class Window:
    """Input tokens, of which the last `scored` are scored."""

    tokens: Sequence[int]
    scored: int


@environment_variables.set_aside()
@libraries_quiet()
def evaluate(
    run: RunDirectory,
    *,
    model_folder: str = MODEL_FOLDER,
    stride: int | None = None,
    max_documents: int | None = None,
    listener: Listener,
) -> Evaluation:
    """Score the held-out documents with a model that the run has exported.

    Raises:
        UsageError: the run has no model, held no text out, or has a masked model, for which perplexity is undefined.
    """
    if run.record["task"] == "masked-lm":
        raise UsageError(f"{run.name} is a masked language model; perplexity needs a causal one")
    progress = ProgressReporter(listener)
    progress("loading")
    model, tokenizer = load_model(run, model_folder)
    documents = held_out_documents(run, tokenizer)
    chosen = {
        name: split.select(range(min(len(split), max_documents or len(split)))) for name, split in documents.items()
    }
    texts = {name: [text for text in texts_of(split, tokenizer) if text] for name, split in chosen.items()}
    if not any(texts.values()):
        raise UsageError(f"the {sum(map(len, chosen.values()))} held-out documents of {run.name} hold no text to score")
    context = _context(run, model)
    stride = min(stride or max(1, context // 2), context - 1)
    tokenized = {name: list(_tokenized(own, tokenizer, progress)) for name, own in texts.items() if own}
    done, to_score = 0, sum(len(document) - 1 for own in tokenized.values() for document in own)
    progress("evaluating", 0, to_score, unit="tokens")
    at_once = max(1, min(WINDOWS_PER_BATCH, MAX_LOGITS_PER_BATCH // (context * (highest_id(tokenizer) + 1))))
    by_source: dict[str, Evaluation] = {}
    for name, own in tokenized.items():
        nll, tokens = 0.0, 0
        for batch in _batches(_all_windows(own, context, stride), at_once):
            nll += _negative_log_likelihood(batch, model)
            tokens += sum(window.scored for window in batch)
            progress("evaluating", done + tokens, to_score, unit="tokens")
        done += tokens
        words, size = sum(len(text.split()) for text in texts[name]), sum(len(text.encode()) for text in texts[name])
        by_source[name] = _evaluation(len(texts[name]), tokens, words, size, nll, context, stride)
    if list(by_source) == [""]:
        return by_source[""]
    parts = list(by_source.values())
    documents_scored, tokens, words, size = (
        sum(getattr(part, count) for part in parts) for count in ("documents", "tokens", "words", "bytes")
    )
    nll = sum(part.negative_log_likelihood for part in parts)
    return replace(_evaluation(documents_scored, tokens, words, size, nll, context, stride), by_source=by_source)


def _evaluation(
    documents: int, tokens: int, words: int, size: int, nll: float, context: int, stride: int
) -> Evaluation:
    return Evaluation(
        documents=documents,
        tokens=tokens,
        words=words,
        bytes=size,
        negative_log_likelihood=nll,
        token_perplexity=_exp(nll / tokens),
        word_perplexity=_exp(nll / max(words, 1)),
        bits_per_byte=nll / math.log(2) / size,
        context=context,
        stride=stride,
    )


def held_out_documents(run: RunDirectory, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Dataset]:
    """Reload the documents that the run evaluated on; pass the run's tokenizer if it is at hand.

    By the name of their source in a mixture, and else under ''.

    Raises:
        UsageError: it held none out.
    """
    resolved = resolve(run.recipe(), detect())
    context = context_of(resolved, run.folder, rehearsal=bool(run.record.get("rehearsal")))
    sources = documents_by_source(resolved, context, tokenizer)
    held_out = {name: data["validation"] for name, data in sources.items() if "validation" in data}
    if not held_out:
        raise UsageError(f"{run.name} has no held-out documents; train with dataset.eval_fraction: 0.05, say")
    return held_out


def windows(tokens: Sequence[int], *, context: int, stride: int) -> Iterator[Window]:
    """Cut a document of at least two tokens into windows; its first token is not scored."""
    scored_up_to = 1
    while scored_up_to < len(tokens):
        end = min(len(tokens), max(scored_up_to + stride, context) if scored_up_to == 1 else scored_up_to + stride)
        yield Window(tokens[max(0, end - context) : end], end - scored_up_to)
        scored_up_to = end


def _tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Iterator[Sequence[int]]:
    """The ids of each document between two end tokens, 4 bytes each."""
    end = tokenizer.eos_token_id
    for done, text in enumerate(texts):
        progress("tokenizing", done, len(texts), unit="documents")
        parts = (tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in pieces(text))
        yield array("I", [end, *(token for part in parts for token in part), end])


def _all_windows(tokenized: Iterable[Sequence[int]], context: int, stride: int) -> Iterator[Window]:
    for tokens in tokenized:
        yield from windows(tokens, context=context, stride=stride)


def _batches(found: Iterable[Window], at_once: int) -> Iterator[list[Window]]:
    """Batch windows of similar length, to pad little; they are sorted a thousand at a time."""
    pool: list[Window] = []
    for window in found:
        pool.append(window)
        if len(pool) == 1000:
            yield from _split(pool, at_once)
            pool = []
    yield from _split(pool, at_once)


def _split(pool: list[Window], at_once: int) -> Iterator[list[Window]]:
    ordered = sorted(pool, key=lambda window: len(window.tokens))
    for start in range(0, len(ordered), at_once):
        yield ordered[start : start + at_once]


def _negative_log_likelihood(batch: list[Window], model: PreTrainedModel) -> float:
    """Sum over the scored tokens of a batch, in nats."""
    import torch
    from torch.nn.functional import cross_entropy

    length = max(len(window.tokens) for window in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    for row, window in enumerate(batch):
        # Padded on the right, where a causal model does not look, so no mask is needed.
        ids[row, : len(window.tokens)] = torch.tensor(list(window.tokens))
    ids = ids.to(model.device)
    total = 0.0
    with torch.no_grad():
        # use_cache=False: a KV cache is for generation.
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        for row, window in enumerate(batch):  # one by one, so that only one window's logits exist twice
            end = len(window.tokens)
            scored = logits[row, end - window.scored - 1 : end - 1].float()
            total += float(cross_entropy(scored, ids[row, end - window.scored : end], reduction="sum"))
    return total


def _context(run: RunDirectory, model: PreTrainedModel) -> int:
    """The window length: the block size of training, or the model's positions if those are fewer."""
    block_size = int(run.record["identity"]["objective.block_size"])
    return min(block_size, getattr(model.config, "max_position_embeddings", None) or block_size)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
