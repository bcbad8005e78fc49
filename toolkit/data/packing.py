"""Documents -> blocks of tokens on disk, counted and cached by content.

Every document is tokenized, ended with the objective's `document_end`, and concatenated; the stream is cut into
blocks of equal length. Nothing is padded, and nothing but the last partial block is dropped, which is counted.
The blocks of a split are one flat memory-mapped file, so a run of any size starts at once and resumes at a block
index. (An `IterableDataset` is re-read from its start on a resume, and is not exact in its second epoch:
transformers 5.23.)
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import Objective, Progress, RunContext
from toolkit.data.block_writer import BlockWriter, Packer
from toolkit.data.documents import SPLITS, Contents
from toolkit.data.encoding import encoded
from toolkit.data.packed_dataset import PackedBlocks, open_blocks
from toolkit.data.stats import DataAccount, SplitAccount
from toolkit.errors import OptionError
from toolkit.system.cache import entry_made
from toolkit.system.files import read_json, write_json

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

BLOCK_FORMAT = 3
"""Raise this when the same input should give other blocks: old cache entries are then never found."""
BLOCKS_READ_BACK = 8
"""Blocks of each split that are checked against the tokenizer before training."""


@dataclass(frozen=True)
class PackedData:
    """The training blocks, the held-out blocks, and the data account."""

    train: PackedBlocks
    validation: PackedBlocks | None
    account: DataAccount
    from_cache: bool


def prepare(
    data: DatasetDict,
    contents: Mapping[str, Contents],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    run: RunContext,
) -> PackedData:
    """Tokenize and pack the documents, or find the blocks that an earlier run packed.

    `contents` identifies the documents of each split.

    Raises:
        OptionError: a split has no document, or fewer tokens than one block; the tokenizer (option "tokenizer") rejects
            a text, or gives different ids the second time.
        UnavailableError: the cache cannot be written.
    """
    key = content_key(contents, tokenizer, objective)
    entry = run.cache / "tokens" / key
    found = _opened(entry, run.seed, from_cache=True)
    if found and not _differs(found, data, tokenizer, objective):
        return found
    shutil.rmtree(entry, ignore_errors=True)  # damaged, if it is there
    with entry_made(entry) as folder:
        folder.mkdir()
        _write(folder, data, contents, tokenizer, objective, key, run.progress)
    made = _opened(entry, run.seed, from_cache=False)
    assert made, entry
    if split := _differs(made, data, tokenizer, objective):
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
    rules = [objective.block_size, before, after, objective.document_end(tokenizer)]
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
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _differs(
    packed: PackedData, data: DatasetDict, tokenizer: PreTrainedTokenizerBase, objective: Objective
) -> str | None:
    """The split whose first blocks, read as in training, differ from what the tokenizer gives now; None if neither."""
    import numpy

    for split in packed.account.splits:
        blocks: PackedBlocks = getattr(packed, split)
        first = _first_blocks(data[split], tokenizer, objective)[: len(blocks)]
        if any(not numpy.array_equal(block, blocks[row]["input_ids"]) for row, block in enumerate(first)):
            return split
    return None


def _first_blocks(split: Dataset, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> numpy.ndarray[Any, Any]:
    """Pack the first `BLOCKS_READ_BACK` blocks of a split, or as many as there are; shape (blocks, block_size)."""
    import numpy

    packer = Packer(tokenizer, objective)
    lines = [packer.rest]
    for batch in encoded(split, tokenizer, characters_per_batch=BLOCKS_READ_BACK * objective.block_size):
        lines.append(packer.add(batch))
        if packer.tokens >= BLOCKS_READ_BACK * objective.block_size:
            break
    return packer.blocks(numpy.concatenate(lines))[:BLOCKS_READ_BACK]


def _write(
    folder: Path,
    data: DatasetDict,
    contents: Mapping[str, Contents],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    key: str,
    progress: Progress,
) -> None:
    accounts: dict[str, SplitAccount] = {}
    splits = [split for split in SPLITS if split in data]
    total, done = sum(contents[split].characters for split in splits), 0
    for split in splits:
        with BlockWriter(folder / split, tokenizer, objective) as writer:
            for batch in encoded(data[split], tokenizer):
                writer.write(batch)
                progress("tokenizing", done + writer.characters, total, unit="characters")
        done += writer.characters
        accounts[split] = writer.account(cut=contents[split].cut)
        _check_enough(accounts[split], SPLITS[split], objective)
    account = DataAccount(
        train=accounts["train"],
        validation=accounts.get("validation"),
        block_size=objective.block_size,
        vocabulary_size=len(tokenizer),
        token_type=writer.token_type,
        excerpt=_excerpt(folder / "train.tokens", writer.token_type, tokenizer, objective),
        key=key,
    )
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


def _excerpt(file: Path, token_type: str, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> str:
    """The first document boundary in the training blocks, with some text around it; else the beginning."""
    import numpy

    block_size = objective.block_size
    rows = numpy.memmap(file, dtype=token_type, mode="r").reshape(-1, block_size)
    end = objective.document_end(tokenizer)[-1:]
    for row in rows[:1000]:
        borders: list[int] = numpy.flatnonzero(row == end[0]).tolist() if end else []
        inner = [at for at in borders if 8 <= at < block_size - 8]
        if inner:
            around = row[max(0, inner[0] - 40) : inner[0] + 41]
            return str(tokenizer.decode([int(token) for token in around]))
    return str(tokenizer.decode([int(token) for token in rows[0][:80]]))
