"""Datasets: what they return, and what they say to a person who asked for something that is not there."""

import gzip
import io
import logging
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from pydantic import ValidationError

from tests.hub_contents import ARTICLES, MEMBER, STRANGER, card, parquet, table
from tests.hub_server import HubServer
from tests.plugins.refusals import refused
from toolkit.api import Device, OptionError, RunContext, UnavailableError
from toolkit.data.documents import texts as documents_of
from toolkit_plugins.dataset.hub import Hub
from toolkit_plugins.dataset.python_docs import PythonDocs
from toolkit_plugins.dataset.wikitext import WikiText, articles

FINEWEB = {"path": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT"}
WIKITEXT = {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"}


def written(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


class TestHub:
    def test_a_row_is_a_document_and_validation_is_found(self, hub: HubServer, run_context: RunContext) -> None:
        data = Hub(**WIKITEXT).load(run_context)
        assert {split: (len(rows), rows.column_names) for split, rows in data.items()} == {
            "train": (1400, ["text"]),
            "validation": (140, ["text"]),
        }
        assert data["train"][1]["text"].startswith(" = ")

    def test_only_the_text_is_kept(self, hub: HubServer, run_context: RunContext) -> None:
        data = Hub(**FINEWEB).load(run_context)
        assert list(data) == ["train"]
        assert data["train"].column_names == ["text"]
        assert data["train"][399]["text"].endswith("Page 1-199.")

    def test_another_column_is_renamed_and_rows_without_text_are_left_out(
        self, hub: HubServer, run_context: RunContext
    ) -> None:
        columns = {"content": ["one", None, "three"], "text": [1, 2, 3]}
        hub.publish("dataset", "example/columns", table({"train": columns}))
        data = Hub(path="example/columns", column="content").load(run_context)
        assert data["train"].to_dict() == {"text": ["one", "three"]}

    def test_splits_may_be_sliced_and_named(self, hub: HubServer, run_context: RunContext) -> None:
        data = Hub(**WIKITEXT, split="train[:10]", validation_split="test").load(run_context)
        assert {split: len(rows) for split, rows in data.items()} == {"train": 10, "validation": 140}

    def test_training_on_the_validation_split_evaluates_on_nothing(
        self, hub: HubServer, run_context: RunContext
    ) -> None:
        assert list(Hub(**WIKITEXT, split="validation").load(run_context)) == ["train"]

    def test_a_revision_is_the_one_asked_for(self, hub: HubServer, run_context: RunContext) -> None:
        old = hub.publish("dataset", "example/moving", table({"train": {"text": ["old"]}}), revision="v1")
        hub.publish("dataset", "example/moving", table({"train": {"text": ["new"]}}))
        texts = [
            Hub(path="example/moving", revision=revision).load(run_context)["train"]["text"][:]
            for revision in (None, "v1", old, "main")
        ]
        assert texts == [["new"], ["old"], ["old"], ["new"]]

    def test_the_commit_is_the_fingerprint(self, hub: HubServer, run_context: RunContext) -> None:
        old = hub.publish("dataset", "example/seen", table({"train": {"text": ["old"]}}), revision="v1")
        new = hub.publish("dataset", "example/seen", table({"train": {"text": ["new"]}}))
        assert Hub(path="example/seen", revision="v1").fingerprint(run_context) == old
        assert Hub(path="example/seen").fingerprint(run_context) == new != old
        with hub.unplugged():
            assert Hub(path="example/seen").fingerprint(run_context) is None

    def test_streaming_reads_the_first_rows_and_leaves_the_rest(self, hub: HubServer, run_context: RunContext) -> None:
        before = len(hub.requests)
        data = Hub(**FINEWEB, streaming=True, max_samples=30).load(run_context)
        texts = data["train"]["text"][:]
        assert [text.rsplit(maxsplit=1)[1] for text in texts] == [f"0-{row}." for row in range(30)]
        read = {
            request.path.rpartition("/")[2] for request in hub.requests[before:] if request.path.endswith(".parquet")
        }
        assert read == {"000_00000.parquet"}

        before = len(hub.requests)
        again = Hub(**FINEWEB, streaming=True, max_samples=30).load(run_context)
        assert again["train"]["text"][:] == texts
        assert not any("parquet" in request.path for request in hub.requests[before:]), "it was read a second time"

    def test_streaming_needs_an_end(self) -> None:
        with pytest.raises(ValidationError, match="say how much to stream: max_tokens of a corpus"):
            Hub(**FINEWEB, streaming=True)

    def test_a_bare_name_is_refused_before_anything_is_loaded(self) -> None:
        with pytest.raises(ValidationError, match=r"'wikitext' is not the name .* OWNER/NAME"):
            Hub(path="wikitext")

    @pytest.mark.parametrize(
        ("options", "option", "parts"),
        [
            (
                {"path": "Salesforce/wikitxet"},
                "path",
                ["has no dataset 'Salesforce/wikitxet'", "HF_TOKEN", "OWNER/NAME"],
            ),
            ({**WIKITEXT, "name": "wikitext-2-raw"}, "name", ["did you mean 'wikitext-2-raw-v1'?", "wikitext-2-v1"]),
            ({"path": "Salesforce/wikitext"}, "name", ["several configurations", "wikitext-2-raw-v1, wikitext-2-v1"]),
            ({**WIKITEXT, "revision": "v9"}, "revision", ["no revision 'v9'", "a branch, a tag or a commit"]),
            ({**WIKITEXT, "split": "trian"}, "split", ["no split 'trian'", "did you mean 'train'?", "test, train"]),
            ({**WIKITEXT, "split": "train[:"}, "split", ["no split 'train[:'"]),
            ({**WIKITEXT, "validation_split": "dev"}, "validation_split", ["no split 'dev'", "validation"]),
            ({**WIKITEXT, "column": "txet"}, "column", ["no column 'txet'", "did you mean 'text'?"]),
            ({**FINEWEB, "column": "score"}, "column", ["'score' holds Value('float64'), not text"]),
            ({**FINEWEB, "split": "test", "streaming": True, "max_samples": 3}, "split", ["no split 'test'", "train"]),
            (
                {**FINEWEB, "column": "t", "streaming": True, "max_samples": 3},
                "column",
                ["no column 't'", "token_count"],
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_what_does_not_exist(
        self, hub: HubServer, run_context: RunContext, options: dict[str, object], option: str, parts: list[str]
    ) -> None:
        told, message = refused(Hub(**options), run_context)
        assert told == option
        assert [part for part in parts if part not in message] == [], message

    @pytest.mark.parametrize(
        ("name", "content", "option", "parts"),
        [
            (
                "scripted",
                {"README.md": "", "scripted.py": "exit()"},
                "path",
                ["script of its own", "refs/convert/parquet"],
            ),
            ("no-data", {"README.md": "", "notes.docx": "x"}, "path", ["no-data cannot be read", "data files"]),
            ("damaged", {"README.md": "", "train.parquet": "x"}, "path", ["damaged cannot be read", "Parquet"]),
            ("bad-card", {"README.md": "---\nconfigs: 3\n---\n", "train.csv": "text\na\n"}, "path", ["cannot be read"]),
            ("empty", {"README.md": "", "train.csv": "text\n"}, "split", ["the split train is empty"]),
        ],
    )
    def test_what_cannot_be_used(
        self,
        hub: HubServer,
        run_context: RunContext,
        capfd: pytest.CaptureFixture[str],
        name: str,
        content: dict[str, bytes | str],
        option: str,
        parts: list[str],
    ) -> None:
        hub.publish("dataset", f"example/{name}", content)
        told, message = refused(Hub(path=f"example/{name}"), run_context)
        assert [part for part in parts if part not in message] == [], message
        assert told == option
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("name", "content", "parts"),
        [
            ("cut.jsonl.gz", gzip.compress(b'{"text": "aaaa"}' * 999, mtime=0)[:-30], ["cannot be read", "text-files"]),
            ("page.parquet", parquet({"text": ["a"] * 99}).replace(b"\x15", b"\xff"), ["cannot be read"]),
            ("semicolons.csv", b"id;text\n1;a\n", ["separated by ';'", "text-files, which has a delimiter"]),
            ("numbers.csv", b"text\n1\n", ["not text"]),
            ("archive.txt", b"PK\x03\x04\x14\0\0\0\xff", ["cannot be read"]),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_wrong_with_its_files_ends_in_a_sentence(
        self, hub: HubServer, run_context: RunContext, name: str, content: bytes, parts: list[str]
    ) -> None:
        repository = name.partition(".")[0]
        hub.publish("dataset", f"example/{repository}", {"README.md": "", name: content})
        dataset = Hub(path=f"example/{repository}")
        for look in (dataset.peek, dataset.load):
            with pytest.raises(OptionError) as caught:
                look(run_context)
            assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)

    def test_strings_of_other_kinds_and_two_columns_of_one_name(self, hub: HubServer, run_context: RunContext) -> None:
        for column in (pa.array(["a", None, "b"]).dictionary_encode(), pa.array(["a", None, "b"], pa.string_view())):
            name = f"example/strings-{column.type.id}"
            hub.publish("dataset", name, {"README.md": "", "train.parquet": written(pa.table({"text": column}))})
            assert Hub(path=name).peek(run_context).document == "a"
            texts = documents_of(Hub(path=name).load(run_context)["train"])
            assert [text for batch in texts for text in batch] == ["a", "b"]
        twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
        hub.publish("dataset", "example/twice", {"README.md": "", "train.parquet": written(twice)})
        assert "it has two columns 'text'" in refused(Hub(path="example/twice"), run_context)[1]

    def test_the_first_rows_are_shown_from_the_network_and_from_the_cache(
        self, hub: HubServer, run_context: RunContext
    ) -> None:
        dataset = Hub(**FINEWEB, split="train[:10%]", revision="main")
        before = len(hub.requests)
        peek = dataset.peek(run_context)
        assert peek.source == "HuggingFaceFW/fineweb-edu, train[:10%] for train"
        first = peek.document
        assert sum(request.path.endswith("001_00000.parquet") for request in hub.requests[before:]) == 0
        assert dataset.load(run_context)["train"][0]["text"] == first
        with hub.unplugged():
            assert dataset.peek(run_context).document == first
            with pytest.raises(UnavailableError):
                Hub(path="example/never-seen").peek(run_context)
        with pytest.raises(OptionError, match="no split 'trian'"):
            Hub(**FINEWEB, split="trian").peek(run_context)

    @pytest.mark.parametrize("token", [None, STRANGER], ids=["no token", "a token without access"])
    def test_gated_says_where_the_terms_are(
        self, hub: HubServer, run_context: RunContext, monkeypatch: pytest.MonkeyPatch, token: str | None
    ) -> None:
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        option, message = refused(Hub(path="example/gated"), run_context, UnavailableError)
        assert option == "path"
        assert f"accept its terms on {hub.endpoint}/datasets/example/gated, then set HF_TOKEN" in message
        assert token is None or token not in message

    def test_gated_opens_to_a_member(
        self, hub: HubServer, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", MEMBER)
        assert len(Hub(path="example/gated").load(run_context)["train"]) == 5

    def test_a_token_that_is_not_valid(
        self, hub: HubServer, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
        _, message = refused(Hub(**WIKITEXT), run_context, UnavailableError)
        assert "refuses your token" in message
        assert "hf_mistyped" not in message

    def test_a_hub_that_fails(self, hub: HubServer, run_context: RunContext) -> None:
        with hub.failing(503):
            _, message = refused(Hub(**WIKITEXT), run_context, UnavailableError)
        assert "answers with status 503" in message

    def test_a_hub_out_of_reach_names_the_ways_out(self, hub: HubServer, run_context: RunContext) -> None:
        with hub.unplugged():
            option, message = refused(Hub(path="example/never-seen"), run_context, UnavailableError)
        assert option == "path"
        ways = ("--rehearse", "HF_HUB_OFFLINE=1", "HF_ENDPOINT", "text-files")
        assert [way for way in ways if way not in message] == []
        assert hub.endpoint in message

    def test_a_cached_dataset_needs_no_hub(
        self, hub: HubServer, run_context: RunContext, caplog: pytest.LogCaptureFixture
    ) -> None:
        online = Hub(**WIKITEXT).load(run_context)
        caplog.set_level(logging.INFO, logger="toolkit")
        with hub.unplugged():
            cached = Hub(**WIKITEXT).load(run_context)
        assert cached["train"]["text"][:] == online["train"]["text"][:]
        assert "The Hub cannot be reached; looking for Salesforce/wikitext in the cache." in caplog.messages

    def test_the_cache_does_not_pass_off_another_revision(self, hub: HubServer, run_context: RunContext) -> None:
        commits = {
            revision: hub.publish(
                "dataset", "example/pinned", table({"train": {"text": [revision]}}), revision=revision
            )
            for revision in ("main", "v1")
        }
        Hub(path="example/pinned").load(run_context)
        with hub.unplugged():
            for same in (None, "main", commits["main"]):
                assert Hub(path="example/pinned", revision=same).load(run_context)["train"]["text"][:] == ["main"]
            for other in ("v1", commits["v1"]):
                option, message = refused(Hub(path="example/pinned", revision=other), run_context, UnavailableError)
                assert option == "revision"
                assert f"at commit {commits['main']} where revision '{other}' is asked for" in message

    def test_a_folder_of_the_same_name_is_not_taken_for_it(
        self, hub: HubServer, run_context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "Salesforce" / "wikitext").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert "lies in the current directory" in refused(Hub(**WIKITEXT), run_context)[1]

    def test_nothing_is_printed(
        self, hub: HubServer, run_context: RunContext, capfd: pytest.CaptureFixture[str]
    ) -> None:
        hub.publish("dataset", "example/loud", table({"train": {"text": ["a"]}}))
        Hub(path="example/loud").load(run_context)
        assert capfd.readouterr() == ("", "")

    def test_the_libraries_talk_again_afterwards(self, hub: HubServer, run_context: RunContext) -> None:
        import datasets

        level = datasets.logging.get_verbosity()
        Hub(**WIKITEXT).load(run_context)
        assert datasets.logging.get_verbosity() == level
        assert not datasets.are_progress_bars_disabled()


OFFLINE = """
import dataclasses, sys
from pathlib import Path
from toolkit.api import Device, RunContext, ToolkitError
from toolkit_plugins.dataset.hub import Hub
from toolkit_plugins.dataset.wikitext import WikiText

run = RunContext("x", Path(sys.argv[1]), Path(sys.argv[1]), 1, Device("cpu", "c", 1), "causal-lm", 64)
print(len(WikiText().load(run)["train"]))
try:
    Hub(path="example/never-seen").load(run)
except ToolkitError as error:
    print(error)
"""


def test_offline_mode_reads_the_cache_and_asks_nobody(hub: HubServer, run_context: RunContext) -> None:
    WikiText().load(run_context)
    before = len(hub.requests)
    told = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(run_context.cache)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    length, message = told.stdout.splitlines()
    assert length == "100"
    assert message.startswith("HF_HUB_OFFLINE is set, and the cache does not hold the dataset example/never-seen")
    assert len(hub.requests) == before
    assert told.stderr == ""


class TestWikiText:
    def test_the_first_article_is_shown(self, hub: HubServer, run_context: RunContext) -> None:
        peek = WikiText().peek(run_context)
        assert peek.source == "wikitext-2-raw-v1, in articles"
        assert WikiText().load(run_context)["train"][0]["text"] == peek.document

    def test_articles_are_whole_again(self, hub: HubServer, run_context: RunContext) -> None:
        data = WikiText().load(run_context)
        assert {split: len(rows) for split, rows in data.items()} == {
            "train": ARTICLES["train"],
            "validation": ARTICLES["validation"],
        }
        first = data["train"][0]["text"]
        headings = [line for line in first.splitlines() if line.startswith(" = ")]
        assert len(headings) == 3
        assert headings[0].endswith("0 ( train ) = ")
        assert headings[1].startswith(" = = ")
        assert first.endswith(" . \n")

    def test_no_line_is_lost_or_doubled(self, hub: HubServer, run_context: RunContext) -> None:
        lines = [line for line in Hub(**WIKITEXT).load(run_context)["train"]["text"][:] if line.strip()]
        whole = "".join(WikiText().load(run_context)["train"]["text"][:])
        assert [line for line in whole.splitlines(keepends=True) if line.strip()] == lines

    def test_what_begins_an_article(self) -> None:
        lines = [
            "", " = First = \n", "", " Text . \n", " = 5 = \n", " More . \n",
            "", " = = Section = = \n", "", " Text . \n",
            "", " = = = Deeper = = = \n", "", " Text . \n",
            "", " = E = mc2 = \n", "", " Text . \n", "",
        ]  # fmt: skip
        assert list(articles(lines)) == [
            " = First = \n\n Text . \n = 5 = \n More . \n\n = = Section = = \n\n Text . \n\n"
            " = = = Deeper = = = \n\n Text . \n",
            " = E = mc2 = \n\n Text . \n",
        ]

    def test_text_before_the_first_title_is_a_document(self) -> None:
        assert list(articles([" End of something . \n", "", " = Title = \n", "", " Text . \n"])) == [
            " End of something . \n",
            " = Title = \n\n Text . \n",
        ]

    def test_the_lines_are_read_one_by_one(self) -> None:
        """WikiText-103 has 1.8 million lines; an article must leave before the next one is read."""
        read = 0

        def lines() -> object:
            nonlocal read
            for article in range(1000):
                for line in ("", f" = Title {article} = \n", "", " Text . \n"):
                    read += 1
                    yield line

        stream = articles(lines())
        next(stream)
        assert read <= 8

    def test_a_dataset_of_another_shape(self, hub: HubServer, run_context: RunContext) -> None:
        files = table({"train": {"line": ["a"]}})
        hub.publish(
            "dataset", "example/no-wikitext", files | {"README.md": card({"wikitext-2-raw-v1": {"train": "data/*"}})}
        )
        option, message = refused(WikiText(path="example/no-wikitext"), run_context)
        assert option == "path"
        assert "is not WikiText" in message


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The documents of python-docs, which take seconds to read the first time."""
    folder = tmp_path_factory.mktemp("python-docs")
    device = Device(kind="cpu", name="test CPU", memory_bytes=1 << 30)
    run = RunContext(
        name="docs", folder=folder, cache=folder, seed=0, device=device, task="causal-lm", block_size=8, rehearsal=False
    )
    before = set(sys.modules)
    data = PythonDocs().load(run)
    imported = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert imported.isdisjoint({"idlelib", "turtle", "antigravity", "this", "pydoc_data"}), "a source was imported"
    assert list(data) == ["train"]
    return data["train"]["text"][:]


class TestPythonDocs:
    def test_there_are_two_megabytes_of_it(self, documents: list[str]) -> None:
        assert len(documents) > 1000
        assert 1_500_000 < sum(map(len, documents)) < 5_000_000

    def test_what_a_document_is(self, documents: list[str]) -> None:
        assert any(document.startswith('The "assert" statement\n') for document in documents)
        (textwrap,) = [document for document in documents if document.startswith("module textwrap\n")]
        assert "wrap(text, width=70, **kwargs)\n\nWrap a single paragraph of text" in textwrap
        assert any(
            document.startswith("class textwrap.TextWrapper\n\nObject for wrapping/filling") for document in documents
        )

    def test_nothing_is_there_twice_and_no_tests_are(self, documents: list[str]) -> None:
        assert len(set(documents)) == len(documents)
        modules = [document.split()[1] for document in documents if document.startswith(("module ", "class "))]
        assert not [module for module in modules if {"test", "tests", "idlelib"} & set(module.split("."))]
        assert not [module for module in modules if module.split(".")[0] not in sys.stdlib_module_names]

    def test_a_rehearsal_takes_some(self) -> None:
        assert PythonDocs().rehearse().max_samples == 400
        assert PythonDocs(max_samples=10, seed=3).rehearse() == PythonDocs(max_samples=10, seed=3)

    def test_a_python_without_sources(
        self, run_context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(UnavailableError, match="comes without the sources of its library"):
            PythonDocs().load(run_context)
