"""Whether a run's documents and tokens are still those that it was trained on: all are read and hashed again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.api import Progress
from toolkit.data.documents import contents_of
from toolkit.data.kept_contents import SourceFacts, known_facts
from toolkit.data.mixture import joint_key
from toolkit.data.packing import DIGESTS_FILE, content_key
from toolkit.data.stream_state import StreamState, state_of
from toolkit.data.stream_writer import TOKENS_FILE, are_intact
from toolkit.events import Listener, ProgressReporter
from toolkit.recipe.mix import Mix
from toolkit.recipe.resolve import resolve
from toolkit.recipe.streams import is_stream
from toolkit.storage.run_directory import DATA_FILE, RunDirectory
from toolkit.system import environment_variables
from toolkit.system.cache import staging_folder
from toolkit.system.device import detect
from toolkit.system.files import read_json
from toolkit.training.components import context_of
from toolkit.training.known_source import Source
from toolkit.training.loading import documents_of
from toolkit.training.refusals import refusals_placed
from toolkit.training.sources import known_sources, tokenizer_for
from toolkit.training.streams import streamed_source

OTHER_DOCUMENTS = (
    "they are not those that the run was trained on. What is edited with its size and time left as they were is "
    "noticed here alone: touch the file, and a new run (--fresh) reads it"
)
BYTES_AT_ONCE = 1 << 24


@environment_variables.set_aside()
def data_faults(run: RunDirectory, listener: Listener) -> dict[str, str | None]:
    """What is wrong with a run's `documents` and with its `tokens` in the cache; None where nothing is.

    Nothing is said of what there is not: a run that has not got to its data, tokens that have been removed.

    Raises:
        RecipeError, UnavailableError: the documents cannot be loaded.
    """
    key, progress = run.record.get("data_key"), ProgressReporter(listener)
    if key is None:
        return {}
    faults = {"documents": None if _key_now(run, progress) == key else OTHER_DOCUMENTS}
    account = read_json(run.folder / DATA_FILE)
    cache = context_of(resolve(run.recipe(), detect()), run.folder).cache
    changed, looked_at = list[Path](), False
    for of_source in account["sources"].values() or (account,):
        if of_source.get("stream"):
            entry = cache / "streams" / of_source["key"]
            if (state := state_of(entry)).blocks:  # it has not been removed
                changed += _changed_of_stream(entry, state, of_source)
                looked_at = True
            continue
        entry = cache / "tokens" / of_source["key"]
        with contextlib.suppress(OSError, ValueError):  # removed, or written by an earlier version
            digests = read_json(entry / DIGESTS_FILE).items()
            changed += [entry / name for name, digest in digests if digest_of(entry / name) != digest]
            looked_at = True
    if not looked_at:
        return faults
    names = ", ".join(dict.fromkeys(map(str, changed)))
    fault = f"{names} differs from what was written" if changed else None
    return faults | {"tokens": fault}


def _changed_of_stream(entry: Path, state: StreamState, account: Mapping[str, Any]) -> list[Path]:
    """The files of a stream that are not what was written, as far as it is prepared."""
    bytes_each = account["block_size"] * (2 if account["token_type"] == "uint16" else 4)
    changed = list[Path]()
    for name, digest in state.held_out_digests.items():
        if not (entry / name).exists() or digest_of(entry / name) != digest:
            changed.append(entry / name)
    if not (entry / TOKENS_FILE).exists() or not are_intact(entry, state, bytes_each):
        changed.append(entry / TOKENS_FILE)
    return changed


def _key_now(run: RunDirectory, progress: Progress) -> str | None:
    """The key of the run's data as it is now; None if the documents are known to be others."""
    resolved = resolve(run.recipe(), detect())
    recipe, sources = resolved.recipe, list[Source]()
    context = context_of(resolved, run.folder, rehearsal=bool(run.record.get("rehearsal")), progress=progress)
    with staging_folder(context.cache / "verification") as nothing_read:
        for key in known_sources(resolved, context):
            if is_stream(key.part.plugin):  # its files are what their commit says
                sources.append(streamed_source(key, context))
                continue
            data, _ = documents_of(key.part, recipe, replace(context, cache=nothing_read))
            with refusals_placed(recipe, key.part.path):
                contents = contents_of(data, progress)
            known = known_facts(key.file) if key.file else None
            if known and known.contents != contents:
                return None
            sources.append(Source(key.source, key.part.path, data, SourceFacts(contents)))
        tokenizer = tokenizer_for(resolved, sources, context)
        keys = {
            source.name: content_key(source.facts.contents, tokenizer, recipe.objective.plugin) for source in sources
        }
        return joint_key(keys) if isinstance(recipe.dataset.plugin, Mix) else keys[""]


def digest_of(file: Path) -> str:
    """XXH3 of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    with file.open("rb") as content:
        while some := content.read(BYTES_AT_ONCE):
            digest.update(some)
    return digest.hexdigest()
