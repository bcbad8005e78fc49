"""How far the preparation of a stream is: the only file that says which part of the others is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data.stats import SplitAccount
from toolkit.system.files import read_json, write_json

STATE_FILE = "state.json"


@dataclass
class StreamState:
    """What is prepared of a stream, and durable."""

    held_out: dict[str, Any] | None = None
    """The account of the held-out documents; {} if there are none, None if they are not prepared yet."""
    held_out_digests: dict[str, str] = field(default_factory=dict)
    """XXH3 of their files, by name."""
    file: int = 0
    """The number of the file to go on with, in the order of reading, ..."""
    row: int = 0
    """... of the document in it, ..."""
    character: int = 0
    """... and of the character of that."""
    document: int = 0
    """The number of that document among those to train on."""
    blocks: int = 0
    characters: int = 0
    ends_learned: int = 0
    special_tokens: dict[str, int] = field(default_factory=dict)
    """How often each special token is written in the texts."""
    packer: dict[str, Any] = field(default_factory=dict)
    """See `Packer.state_dict`."""
    window_blocks: int = 1
    """Blocks that are shuffled with one another."""
    digests: list[str] = field(default_factory=list)
    """XXH3 of the tokens of each whole window of blocks, ..."""
    last_digest: str = ""
    """... and of those of the blocks behind the last one."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """Files that could not be read, or not to their end, with the reason."""
    filters: list[dict[str, Any]] = field(default_factory=list)
    """The tally of each filter, as plain data."""

    def account(self, *, blocks: int, room: int, frame_tokens: int) -> SplitAccount:
        """Where the documents to train on went, as far as they are read.

        Args:
            blocks: of the whole stream.
            room: places for documents in a block.
            frame_tokens: tokens around them.
        """
        packer = self.packer or dict.fromkeys(("documents", "empty", "tokens", "documents_in_several_blocks"), 0)
        there, dropped = min(self.blocks, blocks), sum(sum(tally["reasons"].values()) for tally in self.filters)
        return SplitAccount(
            documents=packer["documents"],
            empty_documents=packer["empty"] - dropped,
            characters=self.characters,
            tokens=packer["tokens"],
            blocks=blocks,
            tokens_in_blocks=there * room,
            tokens_dropped=packer["tokens"] - there * room,
            frame_tokens=there * frame_tokens,
            ends_learned=self.ends_learned,
            special_tokens=self.special_tokens,
            documents_in_several_blocks=packer["documents_in_several_blocks"],
        )


def state_of(entry: Path, name: str = STATE_FILE) -> StreamState:
    """How far the preparation in this folder is; nowhere, if nobody has begun it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        known: Mapping[str, Any] = read_json(entry / name)
        return StreamState(**{name: value for name, value in known.items() if name in StreamState.__annotations__})
    return StreamState()


def keep_state(entry: Path, state: StreamState) -> None:
    """Note durably that everything up to here is durable.

    Raises:
        OSError: the disk refuses.
    """
    write_json(entry / STATE_FILE, asdict(state))
