"""Asks the Hugging Face Hub about a repository once, before a library does.

The answer pins the commit, and without a network nobody waits for a library's retries. One small file at most is
downloaded, to note the commit in the cache; nothing is decided about a repository's content.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit_plugins.hub_errors import Kind, explained, is_unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PATIENCE_SECONDS = 10.0
"""How long the Hub may take to say whether a repository exists."""
FIRST_FILE = {"dataset": "README.md", "model": "config.json"}
"""What the libraries fetch first, so that fetching it here costs nothing extra."""


@dataclass(frozen=True)
class Repo:
    """A repository as it is on the Hub now; `commit` is None where the Hub is unreachable and the cache has to do."""

    path: str
    commit: str | None
    files: frozenset[str] | None = None
    """The names of its files; None where the Hub does not list them."""


def look_up(path: str, *, kind: Kind, revision: str | None) -> Repo:
    """Ask the Hub which commit a revision points to, and whether we may read it.

    Raises:
        OptionError: there is no such repository or revision.
        UnavailableError: it is gated, or the Hub refuses to answer.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with explained(path, kind=kind, revision=revision):
        try:
            info = api.repo_info(
                path,
                repo_type=kind,
                revision=revision,
                timeout=PATIENCE_SECONDS,
                expand=["sha", "gated", "siblings"],  # type: ignore[arg-type] # a list is documented, and one literal declared
            )
        except Exception as error:
            if is_unreachable(error):
                return Repo(path, None)
            raise
        if info.gated:
            _knock(api, path, kind)
        _remember(api, path, kind, revision, info.sha)
    siblings = getattr(info, "siblings", None)  # a mirror may leave them out
    return Repo(path, info.sha, frozenset(file.rfilename for file in siblings) if siblings else None)


def _remember(api: HfApi, path: str, kind: Kind, revision: str | None, commit: str | None) -> None:
    """Record in the cache which commit the revision points to now, unless it says so already.

    Otherwise a run without a network would not find under `main` what was fetched by its commit alone.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    known = try_to_load_from_cache(path, FIRST_FILE[kind], repo_type=kind, revision=revision)
    if isinstance(known, str) and Path(known).parent.name == commit:
        return
    with suppress(EntryNotFoundError):
        api.hf_hub_download(path, FIRST_FILE[kind], repo_type=kind, revision=revision)


def _knock(api: HfApi, path: str, kind: Kind) -> None:
    """Check access to a gated repository; with a mirror that lacks this endpoint, the download decides."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        api.auth_check(path, repo_type=kind)
    except GatedRepoError:
        raise
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
