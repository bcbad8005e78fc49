"""Training that begins while its data is prepared is the training that begins afterwards, bit for bit.

In a mixture a stream is prepared before the first step, to the same blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer

from tests.hub_server import HubServer
from tests.streams import BATCH, BLOCK, NAME, TOKENS, held_from, in_order, publish, sentences, stream_recipe
from tests.tiny import assert_same_run, resolved, steps_of
from toolkit.api import UnavailableError
from toolkit.errors import InterruptedRun, RecipeError
from toolkit.events import DataPrepared, Event, Message, RunResult, StepDone
from toolkit.lifecycle import preparation
from toolkit.lifecycle.data_verification import data_faults
from toolkit.lifecycle.launch import run
from toolkit.recipe.resolve import load, resolve
from toolkit.report.lines import stream as stream_words
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.device import detect

BLOCKS = TOKENS // BLOCK
STEPS = BLOCKS // BATCH


class Place:
    """A folder with a recipe, a cache and runs of its own."""

    def __init__(self, folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.hub = folder, hub
        self.recipe = stream_recipe(folder)
        monkeypatch.setenv("TOOLKIT_CACHE", str(folder / "cache"))

    def there(self) -> int:
        """Blocks that are prepared."""
        states = list((self.folder / "cache").glob("streams/*/state.json"))
        return int(json.loads(states[0].read_text())["blocks"]) if states else 0

    def run(self, *overrides: str, listener: Callable[[Event], Any] = lambda _: None, **options: Any) -> RunResult:
        return run(
            resolved(self.recipe, *overrides), runs=self.folder / "runs", name="run", listener=listener, **options
        )

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.folder / "runs" / "run")


@pytest.fixture
def place(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Place:
    publish(hub)
    return Place(tmp_path, hub, monkeypatch)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Place:
    """A run that found everything prepared."""
    publish(hub)
    with pytest.MonkeyPatch.context() as patch:
        place = Place(tmp_path_factory.mktemp("before"), hub, patch)
        told: list[Event] = []
        prepared = preparation.prepare(str(place.recipe))
        assert prepared.account.stream
        assert prepared.account.stream.is_complete
        asked = len(hub.requests)
        place.run(listener=told.append)
        (found,) = [event for event in told if isinstance(event, DataPrepared)]
        assert found.from_cache
        assert not [one.path for one in hub.requests[asked:] if one.path.endswith(".parquet")]
    return place


@pytest.mark.slow
def test_beside_the_training_it_is_the_same_run(place: Place, before: Place) -> None:
    there: dict[int, int] = {}

    def note(event: Event) -> None:
        if isinstance(event, StepDone):
            there[event.step] = place.there()
            place.hub.held = set()

    with held_from(place.hub, place.recipe, 2):
        place.run(listener=note)
    assert_same_run(place.directory.folder, before.directory.folder)
    assert there[1] < BLOCKS / 2
    assert list(there) == list(range(1, STEPS + 1))
    one, other = (json.loads((each.directory.folder / "data.json").read_text()) for each in (place, before))
    assert one == other
    assert one["stream"]["tokens"] == one["train"]["tokens_in_blocks"] == TOKENS
    assert one["train"]["tokens"] == TOKENS + one["train"]["tokens_dropped"]
    assert one["validation"]["documents"] == 20


def test_no_text_is_left_on_the_disk(before: Place) -> None:
    words = sentences(5)[0].encode()
    files = [file for file in before.folder.rglob("*") if file.is_file()]
    assert not [file for file in files if words in file.read_bytes()]
    home = Path(os.environ["HF_HOME"])
    assert not [file for file in home.rglob("*.parquet") if NAME.partition("/")[2] in str(file)]


def test_20_steps_are_10_and_10_while_it_is_prepared(place: Place, before: Place) -> None:
    with held_from(place.hub, place.recipe, 4), pytest.raises(InterruptedRun):
        place.run(stop_after=STEPS // 2)
    assert place.there() < BLOCKS
    assert not _preparing()
    place.run()
    assert_same_run(place.directory.folder, before.directory.folder)


def _preparing() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a ZombieProcess is one: it has ended
            if "preparing_process" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
def test_when_the_preparation_is_killed_the_run_is_saved_and_ends(place: Place, before: Place) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            for process in _preparing():
                process.send_signal(signal.SIGKILL)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its status is for the run

    told: list[Event] = []
    killed = pytest.raises(UnavailableError, match=r"killed by SIGKILL.*the same command goes on")
    with held_from(place.hub, place.recipe, 4), killed:
        place.run(listener=lambda event: (told.append(event), kill(event)))
    (step,) = steps_of(place.directory.folder)
    assert step in (4, 5)
    assert f"step {step} is saved" in [event.text for event in told if isinstance(event, Message)]
    place.run()
    assert_same_run(place.directory.folder, before.directory.folder)


def test_a_stream_that_ends_too_early_is_refused_with_the_number_it_has(place: Place) -> None:
    with pytest.raises(RecipeError) as refused:
        place.run("dataset.max_tokens=1M")
    (problem,) = refused.value.problems
    assert problem.path == "dataset.max_tokens"
    tokens = int(problem.message.partition("set max_tokens: ")[2].split()[0])
    order = [text for file in in_order(place.recipe) for text in sentences(int(file[-10:-8]))]
    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    of_all = sum(len(tokenizer(text)["input_ids"]) + 1 for text in order[20:])  # 1: the end token; 20 are held out
    assert tokens == of_all // BLOCK * BLOCK
    place.run(f"dataset.max_tokens={tokens}", fresh=True)
    assert json.loads((place.folder / "runs/run-2/data.json").read_text())["stream"]["tokens"] == tokens


def test_that_workers_have_no_effect_is_told(place: Place) -> None:
    told: list[Event] = []
    recipe = str(place.recipe)
    preparation.prepare(recipe, overrides={"dataset.max_tokens": BLOCK}, workers=2, listener=told.append)
    (words,) = [event.text for event in told if isinstance(event, Message) and "workers" in event.text]
    assert "no effect on a stream" in words


def test_what_is_changed_in_the_prepared_tokens_is_found(place: Place) -> None:
    place.run()
    assert data_faults(place.directory, lambda _: None) == {"documents": None, "tokens": None}
    (file,) = (place.folder / "cache").glob("streams/*/train.tokens")
    with file.open("r+b") as out:
        out.seek(-3, os.SEEK_END)
        out.write(b"\x07")
    faults = data_faults(place.directory, lambda _: None)
    assert faults["documents"] is None
    assert faults["tokens"] == f"{file} differs from what was written"


SHORTER = '''"""Made for a test."""

from toolkit.api import Dropped, Filter


class Shorter(Filter):
    """Keep the first ten words, of documents that have as many."""

    def judge(self, run):
        def judged(document):
            words = document.split()
            return " ".join(words[:10]) if len(words) >= 10 else Dropped("too short", f"{len(words)} words")

        return judged
'''


def test_a_filter_of_ones_own_cleans_a_stream_beside_the_training(place: Place) -> None:
    plugins = place.folder / "plugins"
    (plugins / "filter").mkdir(parents=True)
    (plugins / "filter" / "shorter.py").write_text(SHORTER)
    tokens = TOKENS // 2
    changes = {"dataset.filters": ["shorter"], "dataset.max_tokens": tokens, "dataset.eval_samples": 60}
    loaded = load(str(place.recipe), overrides=changes, plugin_folders=[plugins])
    told: list[Event] = []
    run(resolve(loaded, detect()), runs=place.folder / "runs", name="run", listener=told.append)
    (prepared,) = [event for event in told if isinstance(event, DataPrepared)]
    assert not prepared.from_cache
    account = json.loads((place.directory.folder / "data.json").read_text())
    (shorter,) = account["filters"]
    assert shorter["documents"] - shorter["dropped_documents"] == account["train"]["documents"]
    assert shorter["changed_documents"] > shorter["dropped_documents"] > 0
    assert account["train"]["empty_documents"] == 0
    read = [text.split() for file in in_order(place.recipe) for text in sentences(int(file[-10:-8]))]
    read = read[60 : 60 + shorter["documents"]]
    assert shorter["dropped_documents"] == sum(len(words) < 10 for words in read)
    assert account["train"]["characters"] == sum(len(" ".join(words[:10])) for words in read if len(words) >= 10)
    assert "too short" in shorter["reasons"]
    again = preparation.prepare(str(place.recipe), overrides=changes, plugin_folders=[plugins])
    assert again.from_cache
    assert not preparation.prepare(str(place.recipe), overrides=changes | {"dataset.filters": []}).from_cache


RAISING = '''"""Made for a test."""

from toolkit.api import Filter, UnavailableError


class Two(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


class Raising(Filter):
    """Raise an error at the first document."""

    full: bool = False
    """Whether the disk is."""

    def judge(self, run):
        def judged(document):
            raise UnavailableError("no disk") if self.full else Two("bad", "luck")

        return judged
'''


def test_what_a_filter_raises_beside_the_training_is_told_with_its_place(place: Place) -> None:
    plugins = place.folder / "plugins"
    (plugins / "filter").mkdir(parents=True)
    (plugins / "filter" / "raising.py").write_text(RAISING)

    def start(*, full: bool) -> None:
        filters = [{"plugin": "length", "min_words": 1}, {"plugin": "raising", "full": full}]
        loaded = load(str(place.recipe), overrides={"dataset.filters": filters}, plugin_folders=[plugins])
        run(resolve(loaded, detect()), runs=place.folder / "runs", name="run", listener=lambda _: None, fresh=True)

    with pytest.raises(RuntimeError, match=r"(?s)raising\.py.*Two: bad and luck.*in the filter raising"):
        start(full=False)
    with pytest.raises(UnavailableError, match=r"dataset\.filters\[1\]: raising: no disk$") as unavailable:
        start(full=True)
    assert ": dataset: " not in str(unavailable.value)


def mixed_with_notes(place: Place) -> Path:
    """A recipe whose dataset is a mixture of the stream and a file of sentences."""
    notes = place.folder / "notes.txt"
    notes.write_text("\n".join(sentences(99, 200)) + "\n", encoding="utf-8")
    dataset = resolved(place.recipe).recipe.dataset.data()
    of_notes = {"plugin": "text-files", "files": str(notes), "sample_by": "line", "eval_fraction": 0.2}
    sources = [
        {"name": "web", "weight": 3, "dataset": dataset},
        {"name": "notes", "weight": 1, "dataset": of_notes},
    ]
    return stream_recipe(place.folder, "mixed", dataset={"plugin": "mix", "sources": sources}, max_steps=20)


def test_a_stream_in_a_mixture_has_the_blocks_that_it_has_alone(place: Place) -> None:
    alone, told = place.recipe, list[Event]()
    place.recipe = mixed_with_notes(place)
    with pytest.raises(InterruptedRun):
        place.run(stop_after=10, listener=told.append)
    place.run()
    place.run("training.dataloader_num_workers=2", fresh=True)
    assert_same_run(place.directory.folder, place.folder / "runs/run-2")
    assert preparation.prepare(str(alone)).from_cache
    account = json.loads((place.directory.folder / "data.json").read_text())
    assert account["stream"] is None
    assert account["sources"]["web"]["stream"]["tokens"] == TOKENS
    assert account["mixture"]["sources"]["web"]["tokens"] == 20 * BATCH * BLOCK * 3 // 4
    (prepared,) = [event for event in told if isinstance(event, DataPrepared)]
    assert stream_words(prepared.account.as_dict()).startswith("web: 10,240 of 10,240 tokens, from 6 of 12 files")
    assert {"web", "notes"} == set(json.loads(metrics_of(place)[-1])["by_source"])


def test_what_is_changed_in_the_tokens_of_a_mixed_stream_is_found(place: Place) -> None:
    place.recipe = mixed_with_notes(place)
    place.run("training.max_steps=2")
    assert data_faults(place.directory, lambda _: None) == {"documents": None, "tokens": None}
    (file,) = (place.folder / "cache").glob("streams/*/train.tokens")
    with file.open("r+b") as out:
        out.write(b"\x07")
    assert data_faults(place.directory, lambda _: None)["tokens"] == f"{file} differs from what was written"


def metrics_of(place: Place) -> list[str]:
    lines = (place.directory.folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if "by_source" in line]
