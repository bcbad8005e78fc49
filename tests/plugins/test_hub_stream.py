"""A dataset on the Hub as a stream: its files, their documents, and connections that are lost."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from functools import partial

import pytest

from tests.hub_server import HubServer
from tests.streams import NAME, publish, sentences
from toolkit.api import OptionError, RunContext, UnavailableError, UnreadableFileError
from toolkit.api.streams import beginning
from toolkit_plugins.dataset import hub_stream
from toolkit_plugins.dataset.hub import Hub
from toolkit_plugins.dataset.hub_stream import HubStream

CORPUS = {"path": NAME, "streaming": True, "max_tokens": "10K"}


def stream_of(run: RunContext, **options: object) -> HubStream:
    return Hub(**{**CORPUS, **options}).stream(run)


def test_files_and_documents(hub: HubServer, run_context: RunContext) -> None:
    publish(hub, files=3)
    stream = stream_of(run_context)
    assert stream.files == tuple(f"data/train-{number:02}.parquet" for number in range(3))
    assert stream.validation_files == ()
    assert [list(stream.texts(file)) for file in stream.files] == [sentences(number) for number in range(3)]
    again: HubStream = pickle.loads(pickle.dumps(stream))  # noqa: S301 - what was just pickled
    assert list(again.texts(stream.files[2], 50)) == sentences(2)[50:]
    assert again.identity == stream.identity


def test_the_identity_is_that_of_the_commit_and_the_options(hub: HubServer, run_context: RunContext) -> None:
    publish(hub, "example/changing", files=1)
    one = stream_of(run_context, path="example/changing").identity
    assert stream_of(run_context, path="example/changing").identity == one
    publish(hub, "example/changing", files=2)
    assert stream_of(run_context, path="example/changing").identity != one


def test_lines_of_json_and_a_validation_split(hub: HubServer, run_context: RunContext) -> None:
    lines = {split: "".join(json.dumps({"body": f"{split} {row}"}) + "\n" for row in range(3)) for split in "ab"}
    content = {"train/0.jsonl.gz": gzip.compress(lines["a"].encode()), "validation/0.jsonl": lines["b"].encode()}
    hub.publish("dataset", "example/lines", content)
    stream = stream_of(run_context, path="example/lines", column="body")
    assert stream.files == ("train/0.jsonl.gz",)
    assert list(stream.texts("train/0.jsonl.gz")) == ["a 0", "a 1", "a 2"]
    assert list(stream.texts("validation/0.jsonl")) == ["b 0", "b 1", "b 2"]
    data = beginning(Hub(**{**CORPUS, "path": "example/lines", "column": "body", "eval_samples": 2}), run_context)
    assert {split: rows["text"][:] for split, rows in data.items()} == {
        "train": ["a 0", "a 1", "a 2"],
        "validation": ["b 0", "b 1"],
    }


def test_what_is_held_out_of_the_training_files_is_not_trained_on(hub: HubServer, run_context: RunContext) -> None:
    publish(hub, files=2)
    dataset = Hub(**CORPUS, eval_samples=70)  # more than the first file has
    order = [sentences(int(file[-10:-8])) for file in dataset.training_files(dataset.stream(run_context))]
    data = dataset.load(run_context)
    assert data["validation"]["text"][:] == [*order[0], *order[1][:10]]
    assert data["train"]["text"][:] == order[1][10:]


def few_tries_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub try once, where it takes half a minute for six times."""
    from huggingface_hub import hf_file_system

    for name in ("http_backoff", "http_stream_backoff"):
        monkeypatch.setattr(hf_file_system, name, partial(getattr(hf_file_system, name), max_retries=0))


def test_a_lost_connection_is_waited_for(
    hub: HubServer, run_context: RunContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few_tries_of_the_library(monkeypatch)
    monkeypatch.setattr(hub_stream, "RETRY_SECONDS", (0.5,) * 20)
    losses = list[str]()

    class Back(logging.Handler):
        """Brings the connection back once its loss was told three times."""

        def emit(self, record: logging.LogRecord) -> None:
            losses.append(record.getMessage())
            if len(losses) == 3:
                hub.plugged_in = True

    publish(hub, files=2)
    stream = stream_of(run_context)
    caplog.set_level(logging.INFO, "toolkit")
    texts = stream.texts(stream.files[1])
    monkeypatch.setattr(hub, "plugged_in", False)
    back = Back()
    logging.getLogger("toolkit").addHandler(back)
    try:
        assert list(texts) == sentences(1)
    finally:
        logging.getLogger("toolkit").removeHandler(back)
    assert losses == ["lost the connection while reading data/train-01.parquet; next try in 0.5 s"] * 3


def test_a_hub_that_stays_away_is_told(
    hub: HubServer, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_tries_of_the_library(monkeypatch)
    monkeypatch.setattr(hub_stream, "RETRY_SECONDS", (0,))
    publish(hub, files=2)
    stream = stream_of(run_context)
    with hub.unplugged(), pytest.raises(UnavailableError, match=r"data/train-01\.parquet.*the same command goes on"):
        list(stream.texts(stream.files[1]))


def test_a_damaged_file_is_none_that_can_be_read(hub: HubServer, run_context: RunContext) -> None:
    publish(hub, "example/damaged", files=2, **{"train-99": b"PAR1 and nothing more"})
    stream = stream_of(run_context, path="example/damaged")
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        list(stream.texts("data/train-99.parquet"))
    with pytest.raises(OptionError, match="no column 'body'"):
        list(stream_of(run_context, path="example/damaged", column="body").texts("data/train-00.parquet"))


def test_without_a_network_the_files_are_known_and_not_read(hub: HubServer, run_context: RunContext) -> None:
    publish(hub, files=2)
    known = stream_of(run_context)
    with hub.unplugged():
        stream = stream_of(run_context)
        assert (stream.identity, stream.files) == (known.identity, known.files)
        with pytest.raises(UnavailableError, match="cannot be reached"):
            next(stream.texts(stream.files[0]))
        with pytest.raises(UnavailableError, match="cannot be reached"):
            stream_of(run_context, revision="v1")


def test_a_commit_that_is_known_is_looked_up_without_opening_a_file(
    hub: HubServer, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "example/known", files=2)
    first = stream_of(run_context, path="example/known")

    def opened_again() -> list[str]:
        hub.requests.clear()
        stream = stream_of(run_context, path="example/known")
        assert (stream.identity, stream.files) == (first.identity, first.files)
        asked = [request.path for request in hub.requests if request.path.endswith(".parquet")]
        assert list(stream.texts(stream.files[1], 58)) == sentences(1)[58:]
        return asked

    assert not opened_again()
    with monkeypatch.context() as other:  # which might order the files in another way
        other.setattr("datasets.__version__", "0")
        assert opened_again()
    for kept in (run_context.cache / "streams").iterdir():
        kept.write_text("{")
    assert opened_again()
    publish(hub, "example/known", files=3)
    assert len(stream_of(run_context, path="example/known").files) == 3
