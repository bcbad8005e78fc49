"""Turns a library's error about the user's model or tokenizer into a sentence with a fix.

What the files themselves show is caught earlier, by `repository_files`; this handles everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.api import OptionError, ToolkitError, UnavailableError
from toolkit_plugins.hub_errors import explained
from toolkit_plugins.repository_files import Repository


@contextmanager
def reading(
    repository: Repository, *, revision: str | None, what: str, errors: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Explain what a library finds wrong with the files that it reads; errors from the Hub take precedence.

    Put it around the library's call alone: whatever that raises is about the files, except for running out of memory.

    Args:
        repository: whose files they are.
        revision: as in the recipe.
        what: what is being read, for the message: "the tokenizer".
        errors: the errors to explain; fewer where the call may fail for reasons of our own.
    """
    try:
        with explained(repository.path, kind="model", revision=revision):
            yield
    except (ToolkitError, MemoryError):
        raise
    except errors as error:
        if "can't allocate memory" in str(error):
            raise
        reason = _reason(error)
        if reason is None and (isinstance(error, ImportError) or "pip install" in str(error)):
            message = f"{what} of {repository.path} needs a package that is not installed: {_package(error)}"
            raise UnavailableError(message, option="path") from error
        reason = reason or (
            f"{type(error).__name__}: {_first_line(error)}; its files are damaged, or do not belong together: fetch "
            f"them again"
        )
        raise OptionError(f"{what} of {repository.path} cannot be used: {reason}", option="path") from error


def _package(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "`tiktoken`" in text:  # the library tries it last, and so names it for the others' files too
        return (
            "it is not a tokenizer.json but a model of sentencepiece or tiktoken; pip install sentencepiece protobuf "
            "tiktoken, or take a repository that has tokenizer.json"
        )
    return text


def _reason(error: Exception) -> str | None:
    """What a library's message means, if it is a known one."""
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return "it comes with code of its own, which the toolkit does not run"
    if "Unrecognized configuration class" in text:
        return "its architecture has no head for this objective"
    if "does not recognize this architecture" in text:
        return f"{_first_line(error)}; pip install -U transformers may know it"
    if "untagged enum" in text or "Unknown tokenizer version" in text:
        return (
            f"tokenizer.json is damaged, or of a newer format than the installed tokenizers reads; "
            f"pip install -U tokenizers transformers ({_first_line(error)})"
        )
    if "Missing [UNK]" in text:
        return "it has no token for what it does not know; name one as unk_token in the model of its tokenizer.json"
    if "backend tokenizer" in text:
        return "there are no tokenizer files that can be read; a model that has tokenizer.json works"
    return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # huggingface_hub names the failed check in the first line, and what it found in the last.
    line = lines[-1] if lines and "alidation error" in lines[0] else next(iter(lines), type(error).__name__)
    return line.partition(". ")[0].rstrip(".")
