"""A stream -> a growing file of blocks, of which each part is durable before it is announced.

The blocks are in the order of the files; training reads them shuffled within a window (`streamed_blocks`). The texts of
a batch are in memory until its blocks are on the disk, and nowhere else. Killed at any moment, the preparation goes on
behind the last batch that was announced, and its files end up the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import formatting
from toolkit.api import Objective, RunContext, Stream, StreamingDataset, UnreadableFileError
from toolkit.api.streams import held_out
from toolkit.data.block_writer import BlockWriter, Packer
from toolkit.data.documents import SPLITS
from toolkit.data.encoding import CHARACTERS_PER_BATCH, Batch, Encoder, cut, encoder_of, pieces
from toolkit.data.filter_pass import Tally
from toolkit.data.stream_filters import Filters, StreamFilters, added, check_left, refusals_of
from toolkit.data.stream_state import StreamState, keep_state, state_of
from toolkit.data.stream_writer import STARTS_FILE, TOKENS_FILE, StreamWriter
from toolkit.errors import OptionError, UnavailableError
from toolkit.system.cache import refusals_explained
from toolkit.system.disk import free_bytes
from toolkit.system.files import make_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS_BETWEEN_LOOKS = 0.5
"""How often the reading thread looks whether its parts are still wanted."""
DOCUMENTS_IN_VAIN = 50_000
"""After so many of which nothing is left, the filters are taken for a mistake, and the rest is not read."""


@dataclass(frozen=True)
class StreamToPrepare:
    """All that the preparation of a stream needs; it is pickled."""

    dataset: StreamingDataset
    stream: Stream
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    entry: Path
    """Where it is prepared."""
    lock: str
    """The name under which one process at a time works on it."""
    filters: Filters = ()
    """Which judge each document to train on by itself."""

    @property
    def blocks(self) -> int:
        """Blocks of `max_tokens`."""
        return blocks_of(self.dataset, self.objective)

    @property
    def window(self) -> int:
        """Blocks within which they are shuffled."""
        return max(1, self.dataset.shuffle_tokens // self.objective.block_size)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to prepare."""
        return (self.entry / account_file(self.blocks)).exists() and state_of(self.entry).blocks >= self.blocks

    def check_files(self) -> None:
        """Check that what was prepared is there.

        Raises:
            UnavailableError: somebody has removed a part of it.
        """
        state = state_of(self.entry)
        files = (TOKENS_FILE, STARTS_FILE) if state.blocks else ()
        if missing := [name for name in (*files, *state.held_out_digests) if not (self.entry / name).exists()]:
            raise UnavailableError(f"{self.entry / missing[0]} is missing; remove {self.entry} to prepare it again")


@dataclass(frozen=True)
class _Part:
    """A batch of a file, or the end of it."""

    file: int
    first_row: int
    """The row in the file of the document with the number `first_document`."""
    first_document: int
    batch: Batch | None
    filtered: list[Tally]
    """What each filter did to the documents that begin in it."""
    fault: UnreadableFileError | None = None


def blocks_of(dataset: StreamingDataset, objective: Objective) -> int:
    """Blocks of a stream's `max_tokens`.

    Raises:
        OptionError: there is none.
    """
    assert dataset.max_tokens is not None
    if dataset.max_tokens < objective.block_size:
        raise OptionError(
            f"{dataset.max_tokens:,} tokens are fewer than one block of {objective.block_size:,}", option="max_tokens"
        )
    return dataset.max_tokens // objective.block_size


def account_file(blocks: int) -> str:
    """The file with the state in which so many blocks were there first."""
    return f"state-{blocks}.json"


def prepare_stream(work: StreamToPrepare, run: RunContext) -> None:
    """Prepare what is missing, alone.

    Raises:
        OptionError: the stream ends before `max_tokens`, or holds something else than text; or a file cannot be read
            (option "unreadable_files"); or the tokenizer refuses a text (option "tokenizer").
        UnavailableError: the source cannot be reached, or the disk refuses.
    """
    with refusals_explained(work.entry):
        make_folder(work.entry)
        state = state_of(work.entry)
        work.check_files()
        _check_room(work, state)
        if state.held_out is None:
            _hold_out(work, state, run)
        if not work.is_complete:
            with contextlib.closing(_writer(work, state)) as writer, refusals_of(work.filters):
                _write(work, state, writer, run)


def _check_room(work: StreamToPrepare, state: StreamState) -> None:
    packer = Packer(work.tokenizer, work.objective)
    bytes_each = work.objective.block_size * (2 if packer.token_type == "uint16" else 4)
    needed, free = (work.blocks - state.blocks) * bytes_each, free_bytes(work.entry)
    if needed > free:
        raise UnavailableError(
            f"the tokens take {formatting.size(needed)} more, and the disk of {work.entry} has "
            f"{formatting.size(free)} free; free some space, set TOOLKIT_CACHE to a folder on another disk, or lower "
            f"max_tokens",
            option="max_tokens",
        )


def _hold_out(work: StreamToPrepare, state: StreamState, run: RunContext) -> None:
    encode, of_training = encoder_of(work.tokenizer), not work.stream.validation_files
    with BlockWriter(work.entry / "validation", work.tokenizer, work.objective) as writer:
        documents = _faults_named(held_out(work.dataset, work.stream))

        def texts() -> Iterator[str]:
            for file, row, text in documents:
                if of_training:
                    state.file, state.row = file, row + 1
                run.progress("tokenizing held-out documents", writer.packer.documents, unit="documents")
                yield text

        for batch in cut(texts(), (0, 0), CHARACTERS_PER_BATCH, pieces):
            writer.write(batch.shard(encode, writer.packer.highest_id))
    account = writer.account(cut=0)
    if account.documents and not account.blocks:
        raise OptionError(
            f"the {SPLITS['validation']} documents have {account.tokens} tokens in total, fewer than one block of "
            f"{work.objective.block_size}; hold out more documents, or use a smaller block_size",
            option="eval_samples",
        )
    state.held_out = asdict(account) if account.documents else {}
    state.held_out_digests = writer.digests if account.documents else {}
    keep_state(work.entry, state)


def _faults_named(documents: Iterator[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """The documents held out; those have no substitute, so a file that cannot be read is refused in any case."""
    try:
        yield from documents
    except UnreadableFileError as error:
        raise OptionError(f"a file with held-out documents cannot be read: {error}", option="eval_samples") from error


def _writer(work: StreamToPrepare, state: StreamState) -> StreamWriter:
    return StreamWriter(work.entry, state, work.tokenizer, work.objective, blocks=work.blocks, window=work.window)


def _write(work: StreamToPrepare, state: StreamState, writer: StreamWriter, run: RunContext) -> None:
    encode, total = encoder_of(work.tokenizer), work.blocks
    files = work.dataset.training_files(work.stream)
    if state.blocks >= total:  # for a run that wanted more
        write_json(work.entry / account_file(total), asdict(state))
        return
    with contextlib.closing(_one_ahead(_parts(work, files, state, StreamFilters(work.filters, run)))) as parts:
        for part in parts:
            state.filters = added(state.filters, part.filtered)
            if part.batch:
                _add(part, writer, encode, state)
            else:
                state.file, state.row, state.character = part.file + 1, 0, 0
                if part.fault:
                    _leave_out(files[part.file], part.fault, work, state, run)
            if state.document >= DOCUMENTS_IN_VAIN and not state.characters:
                check_left(work.filters, state.filters)
            if state.blocks >= total:
                write_json(work.entry / account_file(total), asdict(state))
                keep_state(work.entry, state)
                return
            keep_state(work.entry, state)
            tokens = state.packer["tokens"] if state.packer else 0
            detail = f"{state.packer.get('documents', 0):,} documents, file {state.file + 1:,} of {len(files):,}"
            run.progress("tokenizing", tokens, work.dataset.max_tokens, unit="tokens", detail=detail)
    if not state.characters:
        check_left(work.filters, state.filters)
    size = work.objective.block_size
    tokens = state.blocks * size or state.packer.get("tokens", 0)
    more = f"and no more; set max_tokens: {tokens} or less; what is prepared stays prepared"
    if not state.blocks:
        more = f"fewer than one block of {size:,}; `toolkit data inspect` shows the documents"
    count = formatting.counted(len(files), "file")
    left_out = f", {len(state.left_out)} of which could not be read to their end" if state.left_out else ""
    filtered = " after its filters" if work.filters else ""
    raise OptionError(
        f"the {count} of the dataset{left_out} give {tokens:,} tokens{filtered}, {more}", option="max_tokens"
    )


def _add(part: _Part, writer: StreamWriter, encode: Encoder, state: StreamState) -> None:
    assert part.batch
    writer.write(part.batch, encode)
    document, state.character = part.batch.end
    state.file, state.document = part.file, document
    state.row = part.first_row + document - part.first_document


def _leave_out(
    file: str, fault: UnreadableFileError, work: StreamToPrepare, state: StreamState, run: RunContext
) -> None:
    if work.dataset.unreadable_files == "stop":
        raise OptionError(
            f"{file} cannot be read: {fault}; to go on without it, set unreadable_files: skip",
            option="unreadable_files",
        )
    state.left_out.append({"file": file, "reason": str(fault)})
    run.log.info("%s cannot be read, and is left out from there on: %s", file, fault)


def _parts(work: StreamToPrepare, files: list[str], state: StreamState, filters: StreamFilters) -> Iterator[_Part]:
    """The batches of the files that are left; a batch never holds documents of two."""
    document, row, character = state.document, state.row, state.character
    for number in range(state.file, len(files)):
        first_row, first_document = row, document
        faults: list[UnreadableFileError] = []
        begun = row if character else None

        def readable(
            file: str = files[number], row: int = row, begun: int | None = begun, faults: list[Any] = faults
        ) -> Iterator[str]:
            try:
                for at, text in enumerate(work.stream.texts(file, row), row):
                    yield filters.left_of(text, is_counted=at == begun)
            except UnreadableFileError as error:  # what came before it is used
                faults.append(error)

        for batch in cut(readable(), (document, character), CHARACTERS_PER_BATCH, pieces):
            document = batch.end[0]
            yield _Part(number, first_row, first_document, batch, filters.counted())
        row = character = 0
        yield _Part(number, first_row, first_document, None, filters.counted(), faults[0] if faults else None)


def _one_ahead(parts: Iterator[_Part]) -> Generator[_Part, None, None]:
    """The same parts, the next of which is read while one is in work."""
    read: queue.Queue[_Part | BaseException | None] = queue.Queue(maxsize=1)
    unwanted = threading.Event()

    def put(part: _Part | BaseException | None) -> bool:
        while not unwanted.is_set():
            with contextlib.suppress(queue.Full):
                read.put(part, timeout=SECONDS_BETWEEN_LOOKS)
                return True
        return False

    def reading() -> None:
        try:
            if all(map(put, parts)):
                put(None)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the parts are used
            put(error)

    # A daemon, as it may be waiting for a lost connection when the process is told to end.
    threading.Thread(target=reading, name="reading-ahead", daemon=True).start()
    try:
        while (part := read.get()) is not None:
            if isinstance(part, BaseException):
                raise part
            yield part
    finally:
        unwanted.set()
