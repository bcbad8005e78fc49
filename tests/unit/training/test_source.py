"""A warm start reads no document, and takes no other documents for those that it knows."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest

from tests.tiny import SENTENCE, resolved, write_recipe
from toolkit.api import RunContext
from toolkit.data.packing import PackedData
from toolkit.errors import UnavailableError
from toolkit.training.components import context_of
from toolkit.training.sources import prepare
from toolkit_plugins.dataset.text_files import TextFiles


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def prepared(recipe: Path, *overrides: str) -> PackedData:
    chosen = resolved(recipe, *overrides)
    return prepare(chosen, replace(context_of(chosen, recipe.parent), cache=recipe.parent / "cache")).data


def refuse(self: TextFiles, run: RunContext) -> Never:
    raise AssertionError("the documents were loaded")


def test_what_is_prepared_is_not_loaded(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(recipe)
    monkeypatch.setattr(TextFiles, "load", refuse)
    again = prepared(recipe)
    assert not first.from_cache
    assert again.from_cache
    assert again.account == first.account
    for change in ("dataset.eval_fraction=0.2", "dataset.cut_at_end_token=false", "dataset.sample_by=paragraph"):
        with pytest.raises(AssertionError, match="were loaded"):
            prepared(recipe, change)


def test_a_file_costs_a_start_few_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    files = [tmp_path / "texts" / f"{number}.txt" for number in range(300)]
    for number, file in enumerate(files):
        file.write_text(f"{SENTENCE} {number}\n" * 3)
    recipe = write_recipe(tmp_path, dataset={"files": str(tmp_path / "texts" / "*.txt")})
    prepared(recipe)
    asked: list[str] = []

    def counted(call: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def counting(path: Any, *words: Any, **named: Any) -> os.stat_result:
            asked.append(str(path))
            return call(path, *words, **named)

        return counting

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    assert prepared(recipe).from_cache
    # The files are listed twice: for the fingerprint, and for whether texts may be cut.
    assert sum(path in set(map(str, files)) for path in asked) <= 5 * len(files)
    assert len(asked) < 6 * len(files)  # nor are the folders above asked for each file


@pytest.mark.skipif(sys.platform != "linux", reason="the bytes that a process has read are counted by Linux")
def test_a_start_reads_as_many_bytes_of_a_large_corpus_as_of_a_small_one(tmp_path: Path) -> None:
    read, sizes = [], []
    for name, lines in (("small", 2_000), ("large", 60_000)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_recipe(folder)
        (folder / "texts.txt").write_text("".join(f"{SENTENCE} {number}\n" for number in range(lines)))
        prepared(recipe)
        sizes.append(sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file()))
        before = bytes_read()
        assert prepared(recipe).from_cache
        read.append(bytes_read() - before)
    assert sizes[1] - sizes[0] > 5_000_000
    assert abs(read[1] - read[0]) < 100_000


def bytes_read() -> int:
    """So far, by this process, in calls of `read`."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"])


def test_best_fit_packing_is_not_loaded_again_and_is_still_read_back(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(recipe, "objective.packing=best-fit")
    with monkeypatch.context() as changed:
        changed.setattr(TextFiles, "load", refuse)
        again = prepared(recipe, "objective.packing=best-fit")
        assert (first.from_cache, again.from_cache) == (False, True)
        assert again.inspection == first.inspection is not None
    file = recipe.parent / "cache" / "tokens" / first.account.key / "train.tokens"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    assert not prepared(recipe, "objective.packing=best-fit").from_cache


def test_without_a_fingerprint_it_is_loaded_each_time(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: TextFiles, run: RunContext) -> None:
        return None

    monkeypatch.setattr(TextFiles, "fingerprint", unknown)
    prepared(recipe)
    assert prepared(recipe).from_cache
    monkeypatch.setattr(TextFiles, "load", refuse)
    with pytest.raises(AssertionError, match="were loaded"):
        prepared(recipe)


def test_a_change_that_shows_is_read(recipe: Path) -> None:
    first = prepared(recipe)
    with (recipe.parent / "texts.txt").open("a", encoding="utf-8") as file:
        file.write(f"{SENTENCE}\n")
    again = prepared(recipe)
    assert not again.from_cache
    assert again.account.key != first.account.key


def test_other_documents_never_get_the_key_of_those_that_were_read(recipe: Path) -> None:
    first = prepared(recipe)
    file, cache = recipe.parent / "texts.txt", recipe.parent / "cache"
    content, stat = file.read_bytes(), file.stat()
    file.write_bytes(content.replace(b"a", b"o", 1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for folder in ("tokens", "documents"):
        shutil.rmtree(cache / folder)
    with pytest.raises(UnavailableError, match="no longer those that an earlier run read"):
        prepared(recipe)
    again: Any = prepared(recipe)
    assert again.account.key != first.account.key


NOTES = '''
"""Made for a test."""

import sys
from pathlib import Path

from toolkit.api import Dataset


class Notes(Dataset):
    """Notes, as a module beside this one writes them."""

    def fingerprint(self, run):
        return "always the same"

    def load(self, run):
        from datasets import Dataset, DatasetDict

        sys.path.insert(0, str(Path(__file__).parent))
        sys.modules.pop("spelling_of_notes", None)
        from spelling_of_notes import spelled

        sys.path.pop(0)
        return DatasetDict(train=Dataset.from_dict({"text": [spelled(number) for number in range(200)]}))
'''


def test_an_edited_module_beside_a_local_plugin_leads_to_new_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "plugins" / "dataset"
    folder.mkdir(parents=True)
    (folder / "notes.py").write_text(NOTES)
    helper = folder / "spelling_of_notes.py"
    helper.write_text("def spelled(number):\n    return f'a note of many words, number {number}'\n")
    recipe = write_recipe(tmp_path, plugin_paths=["./plugins"], dataset={"plugin": "notes", "eval_fraction": 0.1})
    first = prepared(recipe)
    assert prepared(recipe).from_cache
    helper.write_text("def spelled(number):\n    return f'quite another note, and longer: number {number}'\n")
    again = prepared(recipe)
    assert not again.from_cache
    assert again.account.key != first.account.key


def test_validation_texts_of_the_datasets_own_are_compared_with_the_training_text(tmp_path: Path) -> None:
    pages = [" ".join(f"{number}x{word}" for word in range(40)) for number in range(12)]
    (tmp_path / "texts.txt").write_text("\n".join(pages))
    (tmp_path / "own.txt").write_text("\n".join([*pages[:2], *(page.replace("x", "y") for page in pages[2:6])]))
    own = {"eval_fraction": None, "validation_files": str(tmp_path / "own.txt")}
    shared = prepared(write_recipe(tmp_path, dataset=own)).account.shared_text
    assert shared
    assert (shared.documents, shared.checked, shared.copied) == (2, 6, 2)


def test_the_account_of_a_mixture_has_what_its_sources_share(tmp_path: Path) -> None:
    pages = [" ".join(f"{number}x{word}" for word in range(40)) for number in range(12)]
    for name, rows in {"web": pages[:6], "held-out": pages[6:8], "code": pages[6:]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(rows))
    options: dict[str, Any] = {"plugin": "text-files", "sample_by": "line"}
    web = {**options, "files": str(tmp_path / "web.txt"), "validation_files": str(tmp_path / "held-out.txt")}
    sources = [
        {"name": "web", "weight": 1, "dataset": web},
        {"name": "code", "weight": 1, "dataset": {**options, "files": str(tmp_path / "code.txt")}},
    ]
    recipe = write_recipe(tmp_path, dataset={"plugin": "mix", "sources": sources})
    first, again = prepared(recipe).as_dict(), prepared(recipe).as_dict()
    assert first["sources"]["web"]["shared_with"]["code"]["documents"] == 2
    assert first["sources"]["web"]["shared_text"]["documents"] == 0
    assert first["sources"]["code"]["shared_with"] == {}
    assert again["sources"] == first["sources"]
