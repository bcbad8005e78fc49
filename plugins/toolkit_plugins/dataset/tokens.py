"""Documents that somebody has tokenized already: the files of Megatron, llm.c, nanoGPT and datatrove."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from toolkit.api import Dataset, OptionError, Peek, RunContext
from toolkit_plugins.dataset.arrow import dataset_of_tokens
from toolkit_plugins.dataset.contents import FileError
from toolkit_plugins.dataset.patterns import found
from toolkit_plugins.dataset.token_files import TokenFile, TokenFormat, TokenType, opened

if TYPE_CHECKING:
    import datasets
    import numpy

SHOWN_IDS = 20


class Tokens(Dataset):
    """Files of token ids: Megatron's .bin with its .idx, llm.c's and nanoGPT's .bin, datatrove's .ds with its .index.

    Nothing is tokenized. The recipe's tokenizer has to be the one that the files were made with: the first documents
    are decoded and encoded again, and have to come out the same.
    """

    local_paths: ClassVar[tuple[str, ...]] = ("files", "validation_files")

    files: str | list[str]
    """A file, a pattern such as `tokens/*.bin`, or a list of these; the index of each lies beside it."""
    validation_files: str | list[str] | None = None
    """Files to evaluate on, in the same form; those that `files` matches too are kept out of training."""
    format: TokenFormat | None = None
    """Format of the files: megatron, llm.c, nanogpt (ids alone) or datatrove. If not given, each file shows it."""
    token_type: TokenType | None = None
    """Type of the ids in nanogpt's files, uint16 if not given; the other formats say it themselves."""
    end_token_id: int | None = Field(default=None, ge=0)
    """The id that ends each document in the files, or begins it: 50256 with GPT-2's tokenizer. It is taken out, because
    the objective ends documents itself. llm.c's and nanogpt's files have no other border between documents: without it
    each of their files is one document."""
    cut_at_end_token: Literal[False] | None = None
    """Not for tokens: `end_token_id` says where documents end."""

    @field_validator("files", "validation_files")
    @classmethod
    def _no_index(cls, files: str | list[str] | None) -> str | list[str] | None:
        for one in [files] if isinstance(files, str) else files or ():
            if one.endswith((".idx", ".index")):
                raise ValueError(f"{one!r} is an index; name the files of ids, .bin or .ds, beside it")
        return files

    def load(self, run: RunContext) -> datasets.DatasetDict:
        """Read the ids, or the cache if files of these paths, sizes and times have been read the same way before."""
        from datasets import DatasetDict

        return DatasetDict({part: self._read(files, option, run) for part, files, option in self._parts()})

    def fingerprint(self, run: RunContext) -> str:
        """The path, size and time of each file and of its index."""
        stats = [_stats(files, option) for _, files, option in self._parts()]
        return hashlib.sha256(repr(stats).encode("utf-8", "surrogatepass")).hexdigest()

    def peek(self, run: RunContext) -> Peek:
        """Open each file, and show the first ids."""
        sources, first = [], ""
        for part, files, option in self._parts():
            for file in files:
                with _faults_placed(file, option):
                    ids = next(self._opened(file).documents(self.end_token_id), None)
                if ids is not None and not first:
                    first = " ".join(map(str, ids[:SHOWN_IDS].tolist()))
            sources.append(f"{len(files):,} file{'s' * (len(files) != 1)} for {part}")
        return Peek(", ".join(sources), first)

    def _parts(self) -> list[tuple[str, list[Path], str]]:
        """The splits, each with its files and the option that names them."""
        held_out = found(self.validation_files, "validation_files") if self.validation_files is not None else {}
        files = [file for place, file in found(self.files, "files").items() if place not in held_out]
        files = [file for file in files if file.suffix not in (".idx", ".index")]
        if not files:
            raise OptionError("there is no file of ids to train on among them", option="files")
        others = [("validation", list(held_out.values()), "validation_files")] if held_out else []
        return [("train", files, "files"), *others]

    def _opened(self, file: Path) -> TokenFile:
        return opened(file, self.format, self.token_type)

    def _read(self, files: list[Path], option: str, run: RunContext) -> datasets.Dataset:
        key = ("tokens", 1, self.format, self.token_type, self.end_token_id, _stats(files, option))
        return dataset_of_tokens(self._documents(files, option, run), key=key, cache=run.cache)

    def _documents(self, files: list[Path], option: str, run: RunContext) -> Iterator[numpy.ndarray[Any, Any]]:
        before, total = 0, sum(file.stat().st_size for file in files)
        for file in files:
            with _faults_placed(file, option):
                opened_file = self._opened(file)
                for ids in opened_file.documents(self.end_token_id):
                    before += ids.nbytes
                    run.progress("reading", before, total, unit="bytes")
                    yield ids


@contextmanager
def _faults_placed(file: Path, option: str) -> Iterator[None]:
    """Turn a problem with a file into an error of the option that names it, or of the one that could fix it."""
    try:
        yield
    except FileError as fault:
        raise OptionError(f"{file}: {fault}", option=fault.option or option) from fault
    except OSError as error:
        raise OptionError(f"{file}: cannot be read: {error.strerror or error}", option=option) from error


def _stats(files: list[Path], option: str) -> list[tuple[str, int, int]]:
    """The path, size and time of each file, and of its index."""
    stats = []
    for file in files:
        indices = (file.with_suffix(".idx"), file.with_name(f"{file.name}.index"))
        with _faults_placed(file, option):
            for one in (file, *filter(Path.exists, indices)):
                stat = one.stat()
                stats.append((str(one.resolve()), stat.st_size, stat.st_mtime_ns))
    return stats
