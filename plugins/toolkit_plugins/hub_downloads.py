"""Shows how much has come from the Hub. The bars of its libraries are off: they would break the lines of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.api import Progress, meanwhile
from toolkit_plugins.hub_errors import Kind


@contextmanager
def shown(
    path: str,
    progress: Progress,
    *,
    kind: Kind,
    total: Callable[[], int | None] = lambda: None,
    then: tuple[str, Path] | None = None,
) -> Iterator[None]:
    """Tell, for as long as this lasts, how the cache of a repository grows.

    Args:
        path: the repository, OWNER/NAME.
        progress: is told.
        kind: of the repository.
        total: bytes that will come, if that can be known; asked once something comes, in another thread.
        then: a phase after the download and the folder that grows in it.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=path, repo_type=kind), "blobs")
    before, expected, here = _size(blobs), None, 0

    def tell() -> None:
        nonlocal expected, here
        if (grown := _size(blobs) - before) > here:
            expected = expected or total()
            here = grown
            progress(f"downloading {path}", here, expected if expected and expected >= here else None, unit="bytes")
        elif then and (written := _size(then[1])):
            progress(then[0], written, unit="bytes")

    with meanwhile(tell, name="download-progress"):
        yield


def size_on_the_hub(path: str, names: Collection[str], *, revision: str | None) -> int | None:
    """Bytes of these files of a model; None where the Hub does not tell."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # only for a percentage
        found = HfApi().get_paths_info(path, list(names), revision=revision)
        return sum(getattr(entry, "size", 0) for entry in found) or None
    return None


def _size(folder: Path) -> int:
    """Bytes of the files of a folder, finished or not; 0 without one."""
    size = 0
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):  # renamed meanwhile
                size += file.stat().st_size
    return size
