"""Training that begins while its data is prepared is the training that begins afterwards, bit for bit."""

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
from toolkit.storage.run_directory import RunDirectory

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
