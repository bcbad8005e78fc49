"""Documents -> blocks of tokens on disk, counted and cached by content.

Every document is tokenized, closed with the objective's `document_end`, and laid end to end; the line is cut
into blocks of equal length. Nothing is padded and nothing is dropped but the last partial block, which is
counted. The blocks lie in one flat memory-mapped file, so a run of any size starts at once and resumes at a
block's number. (An `IterableDataset` is read again from its start on a resume, and is not exact in its second
pass: transformers 5.23.)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import documents
from toolkit.account import DataAccount, SplitAccount
from toolkit.api import Block, Objective
from toolkit.blocks import PackedBlocks, open_blocks, token_type
from toolkit.errors import OptionError, UnavailableError
from toolkit.files import read_json, write_json

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
"""Raise this when the same input should give other blocks: old cache entries are then never met."""
CHARACTERS_PER_PIECE = 200_000
"""Longer documents are tokenized in pieces, so that one huge line costs time and not memory."""


@dataclass(frozen=True)
class PackedData:
    """The training blocks, the held-out blocks, and where everything went."""

    train: PackedBlocks
    validation: PackedBlocks | None
    account: DataAccount
    from_cache: bool


def prepare(
    data: DatasetDict, tokenizer: PreTrainedTokenizerBase, objective: Objective, *, cache: Path, seed: int
) -> PackedData:
    """Tokenize and pack the documents, or find the blocks that an earlier run has made of them.

    Raises:
        OptionError: a split has no document, or fewer tokens than one block.
        UnavailableError: the cache cannot be written.
    """
    key = content_key(data, tokenizer, objective)
    entry = cache / "tokens" / key
    from_cache = _is_whole(entry)
    if not from_cache:
        try:
            _write_entry(entry, data, tokenizer, objective, key)
        except OSError as error:
            raise UnavailableError(
                f"cannot write prepared tokens to {entry.parent}: {error.strerror}; "
                f"free some space, or set TOOLKIT_CACHE to another folder"
            ) from error
    account = DataAccount.from_dict(read_json(entry / "account.json"))
    return PackedData(
        train=open_blocks(entry, "train", account, seed),
        validation=open_blocks(entry, "validation", account, seed) if account.validation else None,
        account=account,
        from_cache=from_cache,
    )


def content_key(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> str:
    """Digest of everything that decides the blocks: each document's text, the tokenizer, the objective's cut."""
    import xxhash

    digest = xxhash.xxh3_128()
    before, after = objective.block_frame(tokenizer)
    rules = [FORMAT, objective.block_size, before, after, objective.document_end(tokenizer), sorted(data)]
    digest.update(json.dumps(rules))
    digest.update(_tokenizer_content(tokenizer))
    for split in sorted(data):
        for texts in documents.texts(data[split]):
            for text in texts:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(b"\1")
        if cut := documents.cut_count(data[split]):  # the account has it
            digest.update(str(cut))
    return digest.hexdigest()


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer in pure Python is what its files are
        tokenizer.save_pretrained(folder)
        return "".join(file.read_text(encoding="utf-8") for file in sorted(Path(folder).iterdir()))


def _is_whole(entry: Path) -> bool:
    """Whether a cache entry is there and has the size that its account says."""
    try:
        account = DataAccount.from_dict(read_json(entry / "account.json"))
        width = int(token_type(account.vocabulary_size).removeprefix("uint")) // 8
        splits = {"train": account.train, "validation": account.validation}
        return all(
            (entry / f"{name}.tokens").stat().st_size == split.blocks * account.block_size * width
            and (entry / f"{name}.documents").stat().st_size == split.documents * 16
            for name, split in splits.items()
            if split
        )
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _write_entry(
    entry: Path, data: DatasetDict, tokenizer: PreTrainedTokenizerBase, objective: Objective, key: str
) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{key}."))
    try:
        accounts = {
            split: _write_split(staging / f"{split}.tokens", data[split], split, tokenizer, objective)
            for split in ("train", "validation")
            if split in data
        }
        account = DataAccount(
            train=accounts["train"],
            validation=accounts.get("validation"),
            block_size=objective.block_size,
            vocabulary_size=len(tokenizer),
            excerpt=_excerpt(staging / "train.tokens", tokenizer, objective),
            key=key,
        )
        write_json(staging / "account.json", account.as_dict())
        if entry.exists():  # a damaged one, or another process was faster with the same
            shutil.rmtree(entry, ignore_errors=True)
        staging.replace(entry)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if not _is_whole(entry):
            raise


def _write_split(
    file: Path, split: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, objective: Objective
) -> SplitAccount:
    """Write the blocks of one split and count everything on the way."""
    import numpy

    before, after = (numpy.array(part, dtype="int64") for part in objective.block_frame(tokenizer))
    room = objective.block_size - len(before) - len(after)
    if room < 1:
        raise OptionError(f"a block of {objective.block_size} has no room for text", option="block_size")
    learned = _EndsLearned(tokenizer, objective)
    special = _SpecialTokens(tokenizer)
    count = empty = characters = tokens = blocks = written = 0
    rest = numpy.empty(0, dtype="int64")
    row = -1
    with file.open("wb") as out, file.with_suffix(".documents").open("wb") as starts:
        for batch in documents.texts(split):
            pieces = [rest]
            begun: list[tuple[int, int]] = []
            for text, ids in zip(batch, _encoded(batch, tokenizer), strict=True):
                row += 1
                characters += len(text)
                if not ids:
                    empty += 1
                    continue
                count += 1
                begun.append((row, tokens))
                pieces.append(numpy.array([*ids, *objective.document_end(tokenizer)], dtype="int64"))
                tokens += len(pieces[-1])
            line = numpy.concatenate(pieces)
            special.count(line[len(rest) :])
            whole = len(line) // room
            body, rest = line[: whole * room].reshape(whole, room), line[whole * room :]
            packed = numpy.hstack([numpy.tile(before, (whole, 1)), body, numpy.tile(after, (whole, 1))])
            learned.count(packed)
            written += packed.size
            out.write(packed.astype(token_type(len(tokenizer))).tobytes())
            starts.write(numpy.array(begun, dtype="int64").tobytes())
            blocks += whole
        for written_file in (out, starts):
            written_file.flush()
            os.fsync(written_file.fileno())
    what = {"train": "training", "validation": "held-out"}[name]
    if not count:
        raise OptionError(
            f"there is no text in the {what} documents ({empty} empty ones); look at the dataset's options"
        )
    if not blocks:
        raise OptionError(
            f"the {what} documents have {tokens} tokens together, fewer than one block of {objective.block_size}; "
            f"take a smaller block_size, or more {what} text",
            option="block_size",
        )
    return SplitAccount(
        documents=count,
        empty_documents=empty,
        characters=characters,
        tokens=tokens,
        blocks=blocks,
        tokens_in_blocks=tokens - len(rest),
        tokens_dropped=len(rest),
        frame_tokens=blocks * (len(before) + len(after)),
        ends_learned=learned.total,
        padding_tokens=written - (tokens - len(rest)) - blocks * (len(before) + len(after)),
        documents_cut=documents.cut_count(split),
        special_tokens=special.in_texts(closed=count, end=objective.document_end(tokenizer)),
    )


class _EndsLearned:
    """Counts document ends that are labels, by asking the objective's own collator."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        self.end = objective.document_end(tokenizer)[-1:]
        self.collate = objective.collator(tokenizer)
        self.shifted = objective.task == "causal-lm"
        self.total = 0

    def count(self, packed: numpy.ndarray[Any, Any]) -> None:
        """Add the ends in these blocks; packed has shape (blocks, block_size)."""
        for start in range(0, len(packed) if self.end else 0, 256):
            blocks: list[Block] = [{"input_ids": row, "seed": 0} for row in packed[start : start + 256]]
            batch = self.collate(blocks)
            # A causal model shifts: the label at a block's first place is nobody's target.
            labels = batch["labels"][:, 1:] if self.shifted else batch["labels"]
            self.total += int((labels == self.end[0]).sum())


class _SpecialTokens:
    """Counts the special tokens that the tokenizer finds in the texts; unknown ones are another matter."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder
        named = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.sep_token_id}
        self.ids = sorted(named - unknown)
        self.tokenizer = tokenizer
        self.found: Counter[int] = Counter()

    def count(self, tokens: numpy.ndarray[Any, Any]) -> None:
        """Add those in these tokens, shape (tokens,)."""
        import numpy

        self.found.update(tokens[numpy.isin(tokens, self.ids)].tolist())

    def in_texts(self, *, closed: int, end: tuple[int, ...]) -> dict[str, int]:
        """How often each stands in the texts, without the ends that have closed so many documents."""
        self.found.subtract(dict.fromkeys(end, closed))
        return {
            str(self.tokenizer.convert_ids_to_tokens(token)): times for token, times in self.found.items() if times > 0
        }


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if all(len(text) <= CHARACTERS_PER_PIECE for text in texts):
        return _ids(texts, tokenizer)
    return [[token for part in pieces(text) for token in _ids([part], tokenizer)[0]] for text in texts]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose=False: transformers warns of texts longer than the model, and these are about to be cut into blocks.
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return encoded


def pieces(text: str, size: int = CHARACTERS_PER_PIECE) -> Iterable[str]:
    """Cut a long text before a space between two letters: where every word tokenizer cuts as well."""
    start = 0
    while len(text) - start > size:
        stop = start + size
        cut = next(
            (
                at
                for at in range(stop, start + size // 2, -1)
                if text[at] == " " and text[at - 1].isalnum() and text[at + 1 : at + 2].isalnum()
            ),
            stop,
        )
        yield text[start:cut]
        start = cut
    yield text[start:]


def _excerpt(file: Path, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> str:
    """The first document border of the training blocks with some text around it."""
    import numpy

    block_size = objective.block_size
    rows = numpy.memmap(file, dtype=token_type(len(tokenizer)), mode="r").reshape(-1, block_size)
    end = objective.document_end(tokenizer)[-1:]
    for row in rows[:1000]:
        borders: list[int] = numpy.flatnonzero(row == end[0]).tolist() if end else []
        inner = [at for at in borders if 8 <= at < block_size - 8]
        if inner:
            around = row[max(0, inner[0] - 40) : inner[0] + 41]
            return str(tokenizer.decode([int(token) for token in around]))
    return str(tokenizer.decode([int(token) for token in rows[0][:80]]))
