"""Checks a model's files before a library reads them, and says in a sentence what is wrong with them.

It knows which files make up a model or a tokenizer, their sizes and headers, and what users often have in their place.
Of a repository on the Hub it checks only the file names; the download checks the contents.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.api import OptionError, UnavailableError
from toolkit_plugins.hub_repositories import look_up

TOKENIZER_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MODEL_JSON = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZER_FILE = re.compile(r"token|vocab|merges|spiece|sentencepiece|bpe|tekken|\.model$|\.tiktoken$")
"""File names that belong to a tokenizer."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"
LARGEST_HEADER = 100_000_000
"""In bytes; safetensors refuses larger headers."""


@dataclass(frozen=True)
class Repository:
    """A folder, or a repository on the Hub at one commit."""

    path: str
    """As in the recipe."""
    folder: Path | None
    """The local folder; None for a repository on the Hub."""
    names: Collection[str] | None
    """Names of its files; None where the Hub cannot be reached."""
    where: dict[str, Any]
    """Arguments with which `from_pretrained` reads exactly these files."""

    @property
    def is_remote(self) -> bool:
        """Whether it is on the Hub."""
        return self.folder is None

    def __contains__(self, name: str) -> bool:
        return self.names is not None and name in self.names

    def named(self, suffix: str) -> list[str]:
        """The files at its top level whose names end in the suffix."""
        return sorted(name for name in self.names or () if name.endswith(suffix) and "/" not in name)


def find(path: str, *, revision: str | None) -> Repository:
    """The folder of this name, or else the repository on the Hub.

    Raises:
        OptionError: there is neither, or the name is that of a file.
        UnavailableError: the Hub refuses, or the folder cannot be read.
    """
    folder = Path(path)
    if folder.is_dir():
        try:
            names = {file.name for file in folder.iterdir() if file.is_file()}
        except OSError as error:
            raise UnavailableError(f"cannot read {path}: {error.strerror}", option="path") from error
        return Repository(path, folder, names, {"local_files_only": True})
    if folder.is_file():
        raise OptionError(f"{path} is a file; give the folder that holds the model's files", option="path")
    if path.startswith((".", "/", "~")):
        raise OptionError(f"there is no folder {path}", option="path")
    found = look_up(path, kind="model", revision=revision)
    # Without a commit the Hub could not be reached, so only the cache is left.
    where = {"revision": found.commit or revision, "local_files_only": found.commit is None}
    return Repository(path, None, found.files, where)


def check_config(repository: Repository) -> None:
    """Refuse what does not have the config of a whole model: an adapter, other formats, a folder of folders.

    Raises:
        OptionError: it does not; the message has the fix.
        UnavailableError: a file cannot be read.
    """
    _check_json(repository, MODEL_JSON)
    if "adapter_config.json" in repository:
        raise _problem(repository, _adapter(repository))
    if repository.names is not None and "config.json" not in repository:
        raise _problem(repository, _instead_of_a_config(repository))


def check_weights(repository: Repository) -> None:
    """Refuse weights that are missing, truncated, or in an unsupported format.

    Raises:
        OptionError: they are; the message has the fix.
        UnavailableError: a file cannot be read.
    """
    if repository.names is None:
        return
    if WEIGHTS in repository:
        shards = [WEIGHTS]
    elif INDEX in repository:
        shards = _shards(repository)
    else:
        raise _problem(repository, _instead_of_weights(repository))
    if missing := [shard for shard in shards if shard not in repository]:
        raise _problem(
            repository,
            f"{missing[0]} is missing, one of {len(missing)} out of {len(shards)} files that {INDEX} names; "
            f"{_again(repository)}",
        )
    for shard in shards if repository.folder else ():
        _check_safetensors(repository, shard)


def check_tokenizer(repository: Repository) -> None:
    """Refuse a repository without a tokenizer, or with damaged tokenizer files.

    Raises:
        OptionError: it is one; the message has the fix.
        UnavailableError: a file cannot be read.
    """
    _check_json(repository, (*TOKENIZER_JSON, "config.json"))
    if repository.names is not None and not any(TOKENIZER_FILE.search(name) for name in repository.names):
        raise _problem(repository, _instead_of_a_tokenizer(repository))


def tokenizer_is_cached(repository: Repository) -> bool:
    """Whether the cache holds all that the tokenizer of a repository on the Hub may consist of, at its commit."""
    from huggingface_hub import try_to_load_from_cache

    names = [name for name in repository.names or () if _is_read_with_a_tokenizer(name)]
    commit = repository.where["revision"]
    return bool(names) and all(
        isinstance(try_to_load_from_cache(repository.path, n, revision=commit), str) for n in names
    )


def _is_read_with_a_tokenizer(name: str) -> bool:
    if "/" in name:
        return name.startswith("additional_chat_templates/")
    return name == "config.json" or name.startswith("chat_template") or bool(TOKENIZER_FILE.search(name))


def _check_json(repository: Repository, names: Collection[str]) -> None:
    for name in names:
        if repository.folder is None or name not in repository:
            continue
        content = _read(repository, name)
        try:
            value = json.loads(content.decode("utf-8"))
        except ValueError as error:
            found = f"{name} is not JSON: {error}"
            raise _problem(repository, f"{found}; {_again(repository)}") from error
        if not isinstance(value, dict):
            raise _problem(repository, f"{name} holds no JSON object; {_again(repository)}")


def _check_safetensors(repository: Repository, name: str) -> None:
    """Check the file's size against its header: https://huggingface.co/docs/safetensors/index#format."""
    start = _read(repository, name, limit=8)
    size = (_folder(repository) / name).stat().st_size
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER
    damaged = _problem(repository, f"{name} is damaged: it has no header of safetensors; {_again(repository)}")
    if length >= LARGEST_HEADER:
        raise damaged
    if 8 + length <= size:
        try:
            header = json.loads(_read(repository, name, limit=8 + length)[8:])
            ends = [entry["data_offsets"][1] for tensor, entry in header.items() if tensor != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise damaged from error
        length += max(ends, default=0)
    if size < 8 + length:
        raise _problem(
            repository, f"{name} is cut off: it has {size:,} bytes of at least {8 + length:,}; {_again(repository)}"
        )


def _read(repository: Repository, name: str, *, limit: int = -1) -> bytes:
    """The first `limit` bytes of a file that is neither empty nor a git-lfs pointer; all of it by default.

    Raises:
        OptionError: it is.
        UnavailableError: it cannot be read.
    """
    try:
        with (_folder(repository) / name).open("rb") as file:
            content = file.read(limit)
    except OSError as error:
        raise UnavailableError(f"cannot read {repository.path}/{name}: {error.strerror}", option="path") from error
    if not content:
        raise _problem(repository, f"{name} is empty; {_again(repository)}")
    if content.startswith(LFS_POINTER[: len(content)]):
        raise _problem(
            repository,
            f"{name} is a git-lfs pointer in place of the file; run git lfs install and git lfs pull in it, or give "
            f"the repository's name on the Hub as path",
        )
    return content


def _folder(repository: Repository) -> Path:
    assert repository.folder is not None, "only what lies here is read"
    return repository.folder


def _shards(repository: Repository) -> list[str]:
    if repository.folder is None:
        return []  # the library fetches those that the index names
    _check_json(repository, (INDEX,))
    index = json.loads(_read(repository, INDEX)).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise _problem(repository, f"{INDEX} names no weights; {_again(repository)}")
    return sorted(set(map(str, index.values())))


def _adapter(repository: Repository) -> str:
    if "config.json" in repository:
        return "it holds a model and an adapter of one; keep adapter_config.json elsewhere, to train the model"
    base = "the model that adapter_config.json names"
    if repository.folder:
        base = json.loads(_read(repository, "adapter_config.json")).get("base_model_name_or_path") or base
    return (
        f"it holds an adapter, not a model; path: {base} is its base model. To continue from both, merge them first: "
        f"peft's AutoPeftModelForCausalLM.from_pretrained({repository.path!r}).merge_and_unload() and save_pretrained"
    )


def _instead_of_a_config(repository: Repository) -> str:
    if repository.folder and (below := sorted(repository.folder.glob("*/config.json"))):
        return f"it has no config.json, and a folder in it has one; path: {below[-1].parent}"
    if repository.named(".gguf"):
        return f"it holds {repository.named('.gguf')[0]}, a format for inference; take the model it was made from"
    if "params.json" in repository or repository.named(".pth"):
        return "it holds weights as Meta publishes them; take the repository in the format of transformers (often -hf)"
    if "model_index.json" in repository:
        return "it holds a pipeline of diffusers and no language model"
    return "it has no config.json; a model is a folder as save_pretrained writes it"


def _instead_of_a_tokenizer(repository: Repository) -> str:
    where = "give the tokenizer the path of the model that it was made for"
    if "trainer_state.json" in repository or "optimizer.pt" in repository:
        return f"it is a checkpoint of a training, which was saved without its tokenizer; {where} (where it began)"
    if "adapter_config.json" in repository:
        return f"it holds an adapter and no tokenizer; {where}"
    if repository.named("processor_config.json"):
        return f"it holds the processor of a multimodal model and no tokenizer; {where}"
    return f"it holds no tokenizer; {where}, or train one with byte-bpe"


def _instead_of_weights(repository: Repository) -> str:
    if pickled := [*repository.named(".bin"), *repository.named(".pth"), *repository.named(".pt")]:
        copy = f"{repository.path.rstrip('/')}-safetensors"
        return (
            f"its weights are pickles ({pickled[0]}), which can carry code, and the toolkit reads safetensors alone. "
            f'Convert them once: python -c "from transformers import AutoModelForCausalLM as M; '
            f'M.from_pretrained({repository.path!r}).save_pretrained({copy!r})", and give that folder as path'
        )
    if repository.named(".gguf"):
        return f"it holds {repository.named('.gguf')[0]}, a format for inference; take the model it was made from"
    if named := [name for name in repository.named(".safetensors") if "adapter" not in name]:
        return f"it has neither {WEIGHTS} nor {INDEX}; it has {named[0]}, which no index names"
    return f"it has no weights in the safetensors format: neither {WEIGHTS} nor {INDEX}"


def _again(repository: Repository) -> str:
    return "fetch the file again" if repository.folder else "the repository itself is incomplete"


def _problem(repository: Repository, message: str) -> OptionError:
    return OptionError(f"{repository.path} cannot be used: {message}", option="path")
