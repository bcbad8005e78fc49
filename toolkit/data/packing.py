"""Documents -> blocks of tokens on disk, counted and cached by content.

Every document is tokenized, ended with the objective's `document_end`, and concatenated; the stream is cut into
blocks of equal length. Nothing is padded, and nothing but the last partial block is dropped, which is counted. With
best-fit packing documents are placed whole instead, nothing is dropped, and blocks are padded: `best_fit`.
The blocks of a split are one flat memory-mapped file, so a run of any size starts at once and resumes at a block
index. (An `IterableDataset` is re-read from its start on a resume, and is not exact in its second epoch:
transformers 5.23.)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from toolkit.api import Objective, Progress, RunContext
from toolkit.data.best_fit import MIN_WINDOW_BLOCKS, WINDOW_TOKENS, padding_id
from toolkit.data.block_writer import BlockWriter
from toolkit.data.documents import SPLITS, Contents
from toolkit.data.encoding import check_given, encoder_of
from toolkit.data.inspection import inspect
from toolkit.data.packed_dataset import PackedBlocks, open_blocks
from toolkit.data.read_back import differs
from toolkit.data.stats import DataAccount, SplitAccount
from toolkit.data.suspicions import described
from toolkit.data.taking_turns import PATIENCE_SECONDS, taking_turns
from toolkit.data.tokenization import tokenized, workers_for
from toolkit.errors import OptionError
from toolkit.formatting import compact
from toolkit.system.cache import entry_made, unfinished_work
from toolkit.system.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BLOCK_FORMAT = 3
"""Raise this when the same input should give other blocks: old cache entries are then never found."""
INSPECTION = "inspection.json"
INSPECTED_DOCUMENTS = 2000
INSPECTED_CHARACTERS = 2_000_000
"""Looked at for the run's report, in two seconds; `toolkit data inspect` looks at more."""
DIGESTS_FILE = "digests.json"
"""XXH3 of the files of a cache entry, by name."""
EXCERPT_BLOCKS = 1000
"""Searched for a document boundary, at each start of a stream."""


@dataclass(frozen=True)
class PackedData:
    """The blocks of one dataset: for training, and held out; and the data account."""

    train: PackedBlocks
    validation: PackedBlocks | None
    account: DataAccount
    from_cache: bool
    inspection: dict[str, Any] | None = None
    """What a sample of the documents showed when they were packed, with what looks wrong, as plain data; None in a
    cache entry of an earlier version."""
    epochs: ClassVar[float] = 1.0
    """Passes over the data in what the Trainer takes for one epoch."""

    def as_dict(self) -> dict[str, Any]:
        """The account and the inspection, for data.json."""
        return self.account.as_dict() | {"inspections": {"": self.inspection}}


def prepare(
    data: Mapping[str, Dataset],
    contents: Mapping[str, Contents],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    run: RunContext,
    *,
    workers: int | None = None,
    patience: float = PATIENCE_SECONDS,
) -> PackedData:
    """Tokenize and pack the documents, or find the blocks that an earlier run packed.

    Args:
        data: the splits, which are read only if there are no such blocks.
        contents: identifies the documents of each split.
        tokenizer: turns them into tokens.
        objective: determines the blocks.
        run: with the cache.
        workers: processes that tokenize; if not given, as many as pay off.
        patience: seconds to wait for another process that prepares the same blocks and makes no progress.

    Raises:
        OptionError: a split has no document, or fewer tokens than one block; the tokenizer (option "tokenizer") rejects
            a text, or gives different ids the second time.
        UnavailableError: the cache cannot be written, or the process that prepares the same blocks makes no progress.
    """
    key = content_key(contents, tokenizer, objective)
    entry = run.cache / "tokens" / key
    if found := _intact(entry, data, tokenizer, objective, run.seed):
        return found
    with taking_turns(run, f"tokens-{key}", patience=patience) as alone:
        if found := _intact(entry, data, tokenizer, objective, run.seed):
            return found  # made by the process that this one has waited for
        shutil.rmtree(entry, ignore_errors=True)  # damaged, if it is there
        with unfinished_work(entry) as shards, entry_made(entry) as folder:
            folder.mkdir()
            _write(folder, shards, data, contents, tokenizer, objective, key, alone.progress, workers)
    made = _opened(entry, run.seed, from_cache=False)
    assert made, entry
    if split := _differs(made, entry, data, tokenizer, objective):
        raise OptionError(
            f"the tokenizer is not deterministic: a second encoding of the first {SPLITS[split]} documents gives other "
            f"ids, as with dropout in its tokenizer.json; use a tokenizer that gives the same ids each time",
            option="tokenizer",
        )
    return made


def content_key(contents: Mapping[str, Contents], tokenizer: PreTrainedTokenizerBase, objective: Objective) -> str:
    """Cache key of the blocks, FORMAT-DIGEST: the digest covers the texts, the tokenizer, and the block layout."""
    import xxhash

    before, after = objective.block_frame(tokenizer)
    rules: list[Any] = [objective.block_size, before, after, objective.document_end(tokenizer)]
    if objective.packing == "best-fit":
        rules += ["best-fit", WINDOW_TOKENS, MIN_WINDOW_BLOCKS, padding_id(tokenizer, objective)]
    digests = {split: contents[split].digest for split in sorted(contents)}
    digest = xxhash.xxh3_128(json.dumps([rules, digests]).encode())
    digest.update(_tokenizer_content(tokenizer).encode())
    return f"{BLOCK_FORMAT}-{digest.hexdigest()}"


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    with tempfile.TemporaryDirectory() as folder:  # a pure-Python tokenizer is defined by its files
        tokenizer.save_pretrained(folder)
        return "".join(file.read_text(encoding="utf-8") for file in sorted(Path(folder).iterdir()))


def _opened(entry: Path, seed: int, *, from_cache: bool) -> PackedData | None:
    """The blocks of a cache entry; None if it is missing, or does not match its account."""
    try:
        account = DataAccount.from_dict(read_json(entry / "account.json"))
        return PackedData(
            train=open_blocks(entry, "train", account, seed),
            validation=open_blocks(entry, "validation", account, seed) if account.validation else None,
            account=account,
            from_cache=from_cache,
            inspection=read_json(entry / INSPECTION) if (entry / INSPECTION).exists() else None,
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _intact(
    entry: Path, data: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase, objective: Objective, seed: int
) -> PackedData | None:
    """The blocks of a cache entry, if they are there and are what the tokenizer gives."""
    found = _opened(entry, seed, from_cache=True)
    return found if found and not _differs(found, entry, data, tokenizer, objective) else None


def _differs(
    packed: PackedData,
    entry: Path,
    data: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
) -> str | None:
    """The split whose first blocks, read as in training, differ from what the tokenizer gives now; None if neither."""
    for split in packed.account.splits:
        blocks: PackedBlocks = getattr(packed, split)
        if differs(blocks, entry / f"{split}.beginning.json", data, split, tokenizer, objective):
            return split
    return None


def _write(
    folder: Path,
    shards: Path,
    data: Mapping[str, Dataset],
    contents: Mapping[str, Contents],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    key: str,
    progress: Progress,
    workers: int | None,
) -> None:
    import xxhash

    accounts: dict[str, SplitAccount] = {}
    digests: dict[str, str] = {}
    splits = [split for split in SPLITS if split in contents]
    total, done = sum(contents[split].characters for split in splits), 0
    encode = encoder_of(tokenizer)
    documents = tokens = 0
    for split in splits:
        check_given(data[split], tokenizer)
        with BlockWriter(folder / split, tokenizer, objective) as writer:
            packer, count = writer.packer, workers_for(contents[split].characters, workers)
            made = tokenized(data[split], encode, packer.highest_id, shards / split, workers=count)
            with contextlib.closing(made):
                for shard in made:
                    writer.write(shard)
                    so_far = f"{documents + packer.documents:,} documents, {compact(tokens + packer.tokens)} tokens"
                    progress("tokenizing", done + writer.characters, total or None, unit="characters", detail=so_far)
                writer.finish()
        done, documents, tokens = done + writer.characters, documents + packer.documents, tokens + packer.tokens
        digests |= writer.digests
        accounts[split] = writer.account(cut=contents[split].cut)
        _check_enough(accounts[split], SPLITS[split], objective)
    account = DataAccount(
        train=accounts["train"],
        validation=accounts.get("validation"),
        block_size=objective.block_size,
        vocabulary_size=len(tokenizer),
        token_type=packer.token_type,
        excerpt=excerpt(folder / "train.tokens", packer.token_type, tokenizer, objective),
        key=key,
        packing=objective.packing,
    )
    seen = inspect(
        data, tokenizer, objective, documents=INSPECTED_DOCUMENTS, characters=INSPECTED_CHARACTERS, progress=progress
    )
    write_json(folder / INSPECTION, described(seen))
    digests[INSPECTION] = xxhash.xxh3_128_hexdigest((folder / INSPECTION).read_bytes())
    write_json(folder / DIGESTS_FILE, digests)
    write_json(folder / "account.json", account.as_dict())


def _check_enough(account: SplitAccount, what: str, objective: Objective) -> None:
    if not account.documents:
        raise OptionError(
            f"there is no text in the {what} documents ({account.empty_documents} empty ones); check the dataset's "
            f"options"
        )
    if not account.blocks:
        raise OptionError(
            f"the {what} documents have {account.tokens} tokens in total, fewer than one block of "
            f"{objective.block_size}; use a smaller block_size, or more {what} text",
            option="block_size",
        )


def excerpt(
    file: Path, token_type: str, tokenizer: PreTrainedTokenizerBase, objective: Objective, *, most: int = EXCERPT_BLOCKS
) -> str:
    """The first document boundary in so many training blocks, with some text around it; else the beginning."""
    import numpy

    block_size = objective.block_size
    rows = numpy.memmap(file, dtype=token_type, mode="r").reshape(-1, block_size)
    end = objective.document_end(tokenizer)[-1:]
    padded = file.with_suffix(".filled")
    filled = numpy.fromfile(padded, "uint32", most).tolist() if padded.exists() else itertools.repeat(block_size)
    for row, tokens in zip(rows[:most], filled, strict=False):
        borders: list[int] = numpy.flatnonzero(row == end[0]).tolist() if end else []
        inner = [at for at in borders if 8 <= at < tokens - 8]
        if inner:
            around = row[:tokens][max(0, inner[0] - 40) : inner[0] + 41]
            return str(tokenizer.decode([int(token) for token in around]))
    return str(tokenizer.decode([int(token) for token in rows[0][:80]]))
