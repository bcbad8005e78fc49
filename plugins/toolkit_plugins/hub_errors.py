"""Turns errors of the Hugging Face Hub and the connection to it into a sentence with a fix."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from toolkit.api import OptionError, ToolkitError, UnavailableError

Kind = Literal["dataset", "model"]

UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})

_INSTEAD = {
    "dataset": "read files of your own with the dataset text-files",
    "model": "train a tokenizer (byte-bpe) and a model (gpt2, llama) from scratch",
}


@contextmanager
def explained(path: str, *, kind: Kind, revision: str | None) -> Iterator[None]:
    """Translate the errors that libraries raise about the Hub; every other error passes through unchanged."""
    try:
        yield
    except ToolkitError:
        raise
    except Exception as error:
        if (explanation := _explanation(error, path, kind=kind, revision=revision)) is not None:
            raise explanation from error
        raise


def _explanation(error: Exception, path: str, *, kind: Kind, revision: str | None) -> ToolkitError | None:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for cause in _chain(error):
        if isinstance(cause, GatedRepoError):
            return gated(path, kind)
        if isinstance(cause, RevisionNotFoundError):
            return OptionError(
                f"the {kind} {path} has no revision {revision!r}; a revision is a branch, a tag or a commit of it",
                option="revision",
            )
        if isinstance(cause, RepositoryNotFoundError):
            return _missing(path, kind)
        if isinstance(cause, HFValidationError):
            return OptionError(
                f"{path!r} cannot be the name of a {kind} on the Hub, and there is no such folder", option="path"
            )
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause.response.status_code, path, kind)
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return UnavailableError(
                f"the disk is full, and {kind} {path} needs room; make some, or set HF_HOME to a folder on another disk"
            )
    if refusal := unwritable(error, path, kind):
        return refusal
    if is_unreachable(error):
        return unreachable(path, kind, error)
    return None


def unwritable(error: BaseException, path: str, kind: Kind) -> UnavailableError | None:
    """The refusal for an unwritable cache of the libraries, if that is what the error is about."""
    from huggingface_hub import constants

    datasets = sys.modules.get("datasets")
    variables = {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)} if datasets else {}
    for variable, cache in {**variables, "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HOME": constants.HF_HOME}.items():
        for cause in _chain(error):
            if isinstance(cause, OSError) and isinstance(cause.filename, str) and _refuses(Path(cache), cause):
                named = variable if variable in os.environ else "HF_HOME"
                return UnavailableError(
                    f"the {kind} {path} cannot be written to the cache {cache}: {cause.strerror}; set {named} to a "
                    f"folder that can be written"
                )
    return None


def _refuses(cache: Path, error: OSError) -> bool:
    place = Path(error.filename)
    # A missing file has nothing to do with writing, but a missing cache means that it could not be created.
    about_writing = error.errno in UNWRITABLE or not cache.exists()
    return about_writing and (place.is_relative_to(cache) or cache.is_relative_to(place))


def gated(path: str, kind: Kind) -> UnavailableError:
    """The error for a gated repository, which says how to get access."""
    page = f"{_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{path}"
    return UnavailableError(
        f"the {kind} {path} is gated: accept its terms on {page}, then set HF_TOKEN to a token of the same account",
        option="path",
    )


def unreachable(path: str, kind: Kind, error: BaseException | None = None) -> UnavailableError:
    """The error for a repository that neither the Hub nor the cache provides, and what can be done about it."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        state = "HF_HUB_OFFLINE is set"
    else:
        causes = [str(cause) for cause in _chain(error) if _is_transport_error(cause)] if error else []
        state = f"the Hub ({_endpoint()}) cannot be reached" + (f" ({causes[-1]})" if causes and causes[-1] else "")
    return UnavailableError(
        f"{state}, and the cache does not hold the {kind} {path}; the ways out: try the recipe with --rehearse, "
        f"which needs no network; fill the cache (HF_HOME) on a machine that has one and set HF_HUB_OFFLINE=1 here; "
        f"set HF_ENDPOINT to a mirror; or {_INSTEAD[kind]}",
        option="path",
    )


def _missing(path: str, kind: Kind) -> OptionError:
    return OptionError(
        f"the Hub has no {kind} {path!r}, or it is private and HF_TOKEN does not open it; a name is OWNER/NAME, as in "
        f"the address of its page",
        option="path",
    )


def _refused(status: int, path: str, kind: Kind) -> ToolkitError:
    from huggingface_hub import get_token

    if status == 401 and get_token() is None:
        return _missing(path, kind)  # without a token, the Hub answers so, lest it reveal which private names exist
    if status in (401, 403):
        return UnavailableError(
            f"the Hub refuses your token the {kind} {path} (status {status}); set HF_TOKEN to one that may read it",
            option="path",
        )
    return UnavailableError(
        f"the Hub ({_endpoint()}) answers with status {status} for the {kind} {path}; run the same command again later",
        option="path",
    )


def choice(word: str, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant, and list the known ones, up to twenty of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:20])
    shown += f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (f"did you mean {close[0]!r}? " if close else "") + (f"known: {shown}" if names else "there are none")


def is_unreachable(error: BaseException) -> bool:
    """Whether the error is about the connection to the Hub, and not the Hub's answer."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    chain = list(_chain(error))
    if any(isinstance(cause, HfHubHTTPError) for cause in chain):
        return False  # the Hub has answered
    return any(
        isinstance(cause, (ConnectionError, TimeoutError, LocalEntryNotFoundError)) or _is_transport_error(cause)
        for cause in chain
    )


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed later: the connection was lost, or the Hub has too much to do."""
    from huggingface_hub.errors import HfHubHTTPError

    statuses = [cause.response.status_code for cause in _chain(error) if isinstance(cause, HfHubHTTPError)]
    return any(status == 429 or status >= 500 for status in statuses) if statuses else is_unreachable(error)


def is_missing_file(error: BaseException) -> bool:
    """Whether a file that was listed is not there."""
    return any(isinstance(cause, FileNotFoundError) for cause in _chain(error))


def _is_transport_error(error: BaseException) -> bool:
    # huggingface_hub changed its HTTP library twice (requests, httpx, httpx2) and may again: the classes are matched
    # by name, so that this module depends on none of them.
    return any(
        base.__module__.partition(".")[0] in ("httpx", "httpx2") and base.__name__ == "TransportError"
        for base in type(error).__mro__
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its chain of causes and contexts, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Silence the progress bars and logging of a library, `datasets` or `transformers.utils`, and of huggingface_hub.

    Errors, the part that matters, are reported by us; and the bars would break the lines of the run's own progress.
    """
    import huggingface_hub.utils as hub

    libraries = (library, hub)
    levels = [each.logging.get_verbosity() for each in libraries]
    bars = [each for each in libraries if hasattr(each, "disable_progress_bars")]
    shown = [each for each in bars if not each.are_progress_bars_disabled()]
    try:
        for each in libraries:
            each.logging.set_verbosity(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both warn where the environment forces bars, and then show them
            for each in bars:
                each.disable_progress_bars()
        yield
    finally:
        for each, level in zip(libraries, levels, strict=True):
            each.logging.set_verbosity(level)
        for each in shown:
            each.enable_progress_bars()
