"""Files of a person's own: all formats that are read, and a sentence with the place for all that is wrong with one."""

from __future__ import annotations

import bz2
import codecs
import dataclasses
import gzip
import io
import json
import logging
import lzma
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from pydantic import ValidationError

from tests.hub_contents import parquet
from tests.plugins.refusals import refused
from toolkit.api import OptionError, RunContext, UnavailableError
from toolkit_plugins.dataset.text_files import TextFiles


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def zstd(data: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(data, codec="zstd", asbytes=True)


class TestTextFiles:
    def test_files_of_all_kinds_in_the_order_of_their_names(self, here: Path, run_context: RunContext) -> None:
        rows = [{"text": "one\nline"}, {"text": None, "other": 3}, {"text": "zwei é"}]
        (here / "a.txt").write_bytes(b"\xef\xbb\xbfa text\r\nin two lines\r\n")
        (here / "b.MD").write_text("# a heading\n")
        (here / "c.jsonl").write_text(jsonl(*rows) + "\n")
        (here / "d.json").write_text(json.dumps(rows, indent=2))
        (here / "e.json").write_text(jsonl(*rows))
        (here / "f.csv").write_text('id,text\n1,"one\nline"\n2,\n3,zwei é\n')
        (here / "g.tsv").write_text("text\tid\nzwei é\t3\n")
        (here / "h.parquet").write_bytes(parquet({"text": [row["text"] for row in rows], "id": [1, 2, 3]}))
        data = TextFiles(files=["[e-h].*", "[a-d].*"]).load(run_context)
        both = ["one\nline", "zwei é"]
        assert list(data) == ["train"]
        assert data["train"].column_names == ["text"]
        assert data["train"]["text"][:] == [
            "a text\nin two lines\n", "# a heading\n", *both, *both, *both, *both, "zwei é", *both
        ]  # fmt: skip

    def test_a_run_goes_on_without_a_damaged_file_if_it_is_named(self, here: Path, run_context: RunContext) -> None:
        for name in "abc":
            (here / f"{name}.jsonl").write_text(jsonl({"text": f"document {name}"}))
        (here / "b.jsonl").write_text('{"text": "cut o')
        with pytest.raises(OptionError, match=r'or go on without it: leave_out: \["b.jsonl"\]$') as refusal:
            TextFiles(files="*.jsonl").load(run_context)
        assert refusal.value.option == "files"
        without = TextFiles(files="*.jsonl", leave_out=["b.jsonl"])
        assert without.load(run_context)["train"]["text"][:] == ["document a", "document c"]
        peek = without.peek(run_context)
        assert peek.source == "2 files for train, 1 left out"
        held_out = TextFiles(files="a.jsonl", validation_files="[bc].jsonl", leave_out="b.jsonl").load(run_context)
        assert held_out["validation"]["text"][:] == ["document c"]
        with pytest.raises(OptionError, match=r"no file matches 'd\.jsonl'"):
            TextFiles(files="*.jsonl", leave_out="d.jsonl").load(run_context)
        with pytest.raises(OptionError, match="nothing is left to train on"):
            TextFiles(files="a.jsonl", leave_out="a.jsonl").load(run_context)
        with pytest.raises(OptionError) as alone:
            TextFiles(files="b.jsonl").load(run_context)
        assert "leave_out" not in str(alone.value), "nothing would be left"

    @pytest.mark.parametrize(
        ("ending", "compress"),
        [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
    )
    def test_compressed(
        self, here: Path, run_context: RunContext, ending: str, compress: Callable[[bytes], bytes]
    ) -> None:
        (here / f"a.txt{ending}").write_bytes(compress("é\n".encode() * 100_000))
        (here / f"b.jsonl{ending}").write_bytes(compress(jsonl({"text": "b"}).encode()))
        data = TextFiles(files="*").load(run_context)
        assert data["train"]["text"][:] == ["é\n" * 100_000, "b"]

    @pytest.mark.parametrize(
        ("sample_by", "samples"),
        [
            ("line", ["one", "two", "three"]),
            ("paragraph", ["one\ntwo", "three"]),
            ("document", ["one\ntwo\n \n\nthree"]),
        ],
    )
    def test_what_a_document_is(self, here: Path, run_context: RunContext, sample_by: str, samples: list[str]) -> None:
        (here / "a.txt").write_text("one\ntwo\n \n\nthree")
        assert TextFiles(files="a.txt", sample_by=sample_by).load(run_context)["train"]["text"][:] == samples

    def test_home_subfolders_and_names_with_brackets(
        self, here: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(here))
        (here / "deep" / "er").mkdir(parents=True)
        (here / "deep" / "er" / "a.txt").write_text("a")
        (here / "deep" / "b [1].txt").write_text("b")
        assert TextFiles(files="~/deep/**/*.txt").load(run_context)["train"]["text"][:] == ["b", "a"]
        assert TextFiles(files="deep/b [1].txt").load(run_context)["train"]["text"][:] == ["b"]

    def test_validation_files_are_kept_out_of_training(self, here: Path, run_context: RunContext) -> None:
        for name in "abc":
            (here / f"{name}.txt").write_text(name)
        data = TextFiles(files="*.txt", validation_files="b.txt").load(run_context)
        assert {split: rows["text"][:] for split, rows in data.items()} == {"train": ["a", "c"], "validation": ["b"]}
        elsewhere = TextFiles(files=["*.txt", str(here / "a.txt")], validation_files=str(here / "b.txt"))
        assert elsewhere.load(run_context)["train"]["text"][:] == ["a", "c"]
        option, message = refused(TextFiles(files="b.txt", validation_files="*.txt"), run_context)
        assert option == "files"
        assert "nothing is left to train on" in message

    def test_a_changed_file_is_read_again(self, here: Path, run_context: RunContext) -> None:
        file = here / "a.txt"
        file.write_text("old")
        assert TextFiles(files="a.txt").load(run_context)["train"]["text"][:] == ["old"]
        stat = file.stat()
        file.write_text("new")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert TextFiles(files="a.txt").load(run_context)["train"]["text"][:] == ["new"]

    def test_another_encoding(self, here: Path, run_context: RunContext) -> None:
        (here / "a.txt").write_text("naïve", encoding="utf-16")
        assert TextFiles(files="a.txt", encoding="utf-16").load(run_context)["train"]["text"][:] == ["naïve"]
        (here / "b.txt").write_text("no byte order mark!!")
        _, message = refused(TextFiles(files="b.txt", encoding="utf-16"), run_context)
        assert "b.txt: line 1: byte 0 is not utf-16; it has no byte order mark, so try encoding: utf-16-le" in message
        for name in ("utf-17", "base64"):
            with pytest.raises(ValidationError, match=f"'{name}' is not a text encoding"):
                TextFiles(files="a.txt", encoding=name)

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
    def test_a_line_of_20_megabytes(self, here: Path, run_context: RunContext, name: str) -> None:
        line = "word " * 4_000_000
        content = {"a.txt": line, "a.jsonl": jsonl({"text": line}), "a.csv": f"text\n{line}\n"}[name]
        (here / name).write_text(content)
        (document,) = TextFiles(files=name, sample_by="line").load(run_context)["train"]["text"]
        assert document == line

    def test_half_a_surrogate_pair_is_replaced(self, here: Path, run_context: RunContext) -> None:
        (here / "a.jsonl").write_text('{"text": "cut \\ud83d"}\n{"text": "whole \\ud83e\\udd8a"}\n')
        first, second = TextFiles(files="a.jsonl").load(run_context)["train"]["text"]
        assert (first.rstrip("\ufffd"), second) == ("cut ", "whole 🦊")

    @pytest.mark.parametrize(
        ("name", "content", "option", "parts"),
        [
            ("a.txt", b"fine \xe9t\xe9", "encoding", ["a.txt: line 1: byte 5 is not utf-8", "encoding: cp1252"]),
            ("a.txt", "é".encode() * 1_000_000 + b"\xff", "encoding", ["byte 2,000,000 is not utf-8"]),
            ("a.txt.gz", gzip.compress(b"abc\xff", mtime=0), "encoding", ["byte 3 is not utf-8"]),
            ("a.txt", b"cut \xc3", "encoding", ["byte 4 is not utf-8"]),
            ("a.jsonl", b'{"text": "\xe9"}', "encoding", ["byte 10 is not utf-8"]),
            (
                "a.txt",
                "text".encode("utf-16-le"),
                "encoding",
                ["UTF-16 without a byte order mark", "encoding: utf-16-le"],
            ),
            ("a.txt", b" \n\n", "files", ["there is no text in a.txt"]),
            ("a.txt.gz", b"no gzip", "files", ["a.txt.gz: damaged"]),
            ("a.txt.gz", gzip.compress(random.Random(0).randbytes(999), mtime=0)[:-40], "files", ["damaged"]),
            ("a.txt.bz2", b"no bzip2", "files", ["a.txt.bz2: "]),
            ("a.txt.xz", b"no xz", "files", ["a.txt.xz: damaged"]),
            ("a.txt.zst", b"no zstd", "files", ["a.txt.zst: "]),
            ("a.docx", b"x", "format", ["a.docx: .docx does not say how to read it", ".txt, .md, .jsonl"]),
            ("README", b"x", "format", ["a name without an ending", "set format"]),
            ("a.parquet.gz", b"x", "files", [".gz around Parquet is not read"]),
            ("a.jsonl", jsonl({"text": "a"}) + "{nope\n", "files", ["a.jsonl: line 2 is not JSON: Expecting"]),
            ("a.jsonl", "[" * 100_000, "files", ["line 1 is not JSON"]),
            ("a.jsonl", jsonl([1]), "files", ["line 1 is a list where an object with the key 'text'"]),
            ("a.jsonl", jsonl({"text": "a"}, {"txt": "b"}), "column", ["line 2 has no key 'text'", "'txt'?"]),
            ("a.jsonl", jsonl({"text": 3}), "column", ["'text' of line 1 is a number, not a string"]),
            ("a.json", '[{"text": "a"},\n {]', "files", ["it is not JSON: ", "in line 2"]),
            ("a.json", '[{"text": "a"}, {"content": "b"}]', "column", ["item 2 (line 1) has no key 'text'"]),
            ("a.csv", "id,content\n1,a\n", "column", ["names no column 'text'", "known: content, id"]),
            ("a.csv", "id,text\n1,a,b\n", "files", ["line 2 has 3 cells where the first row has 2"]),
            ("a.csv", 'text\n"open\n', "quoting", ["line 2: unexpected end of data", "opens in line 2"]),
            ("a.csv", "", "column", ["names no column 'text'", "there are none"]),
            ("a.parquet", b"no parquet", "files", ["a.parquet: damaged"]),
            ("a.parquet", parquet({"content": ["a"]}), "column", ["has no column 'text'", "known: content"]),
            ("a.parquet", parquet({"text": [1]}), "column", ["'text' holds int64, not strings"]),
        ],
    )
    def test_what_is_wrong_with_a_file(
        self, here: Path, run_context: RunContext, name: str, content: bytes | str, option: str, parts: list[str]
    ) -> None:
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        told, message = refused(TextFiles(files=name), run_context)
        assert [part for part in parts if part not in message] == [], message
        assert told == option
        assert not list(run_context.cache.rglob("*.*")), "half a dataset stayed behind"

    @pytest.mark.parametrize(
        ("options", "option", "parts"),
        [
            ({"files": "*.txt"}, "files", ["no file matches '*.txt'", "looked in"]),
            ({"files": ["a.md", "b.md"]}, "files", ["no file matches 'b.md'"]),
            ({"files": "sub"}, "files", ["sub is a folder", "sub/**/*.txt"]),
            ({"files": "a.md", "validation_files": "*.txt"}, "validation_files", ["no file matches '*.txt'"]),
            ({"files": "a.md", "validation_files": "empty.md"}, "validation_files", ["no text in empty.md"]),
        ],
    )
    def test_what_is_not_there(
        self, here: Path, run_context: RunContext, options: dict[str, object], option: str, parts: list[str]
    ) -> None:
        (here / "sub").mkdir()
        (here / "a.md").write_text("a")
        (here / "empty.md").write_text("")
        told, message = refused(TextFiles(**options), run_context)
        assert told == option
        assert [part for part in parts if part not in message] == [], message

    def test_a_file_that_may_not_be_read(
        self, here: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "loop.txt").symlink_to(here / "loop.txt")
        assert refused(TextFiles(files="loop.txt"), run_context)[0] == "files"

    def test_a_cache_that_cannot_be_written(self, here: Path, run_context: RunContext) -> None:
        (here / "a.txt").write_text("a")
        (here / "cache").write_text("a file where a folder should be")
        run = dataclasses.replace(run_context, cache=here / "cache")
        _, message = refused(TextFiles(files="a.txt"), run, UnavailableError)
        assert message.startswith(f"cannot write to the cache {here / 'cache'}")
        assert "TOOLKIT_CACHE" in message


def texts(run: RunContext, files: str, **options: object) -> list[str]:
    return TextFiles(files=files, **options).load(run)["train"]["text"][:]


ROWS = [f"row number {number}" for number in range(1, 41)]


class TestTables:
    """CSV and TSV: what separates cells, what quotes them, and how they are encoded."""

    def test_a_tsv_has_no_quoting_unless_asked_for(self, here: Path, run_context: RunContext) -> None:
        cells = list(ROWS)
        cells[10], cells[20], cells[30] = f'"{cells[10]}', f'{cells[20]}"', f'"No", {cells[30]}'
        (here / "a.tsv").write_text("id\ttext\n" + "".join(f"{i}\t{cell}\n" for i, cell in enumerate(cells)))
        assert texts(run_context, "a.tsv") == cells
        (here / "b.tsv").write_text('id\ttext\n1\t"a\tb"\n')
        assert texts(run_context, "b.tsv", quoting=True) == ["a\tb"]

    def test_a_cell_that_swallows_rows_is_told(
        self, here: Path, run_context: RunContext, caplog: pytest.LogCaptureFixture
    ) -> None:
        cells = list(ROWS)
        cells[9], cells[29] = f'"{cells[9]}', f'{cells[29]}"'
        (here / "a.csv").write_text("id,text\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
        (here / "b.csv").write_text('text\n"two\nlines"\n')
        caplog.set_level(logging.INFO, logger="toolkit")
        assert len(texts(run_context, "*.csv")) == 21
        (message,) = caplog.messages
        assert message.startswith("a.csv: the row that begins in line 11 spans 21 lines, more than any other.")
        assert message.endswith("set quoting: false.")
        assert len(texts(run_context, "a.csv", quoting=False)) == 40

    @pytest.mark.parametrize(
        ("content", "line", "opens"),
        [
            ('id,text\n1,a\n2,"b\n3,c\n4,d\n', 5, 3),
            ('id,text\n1,"a\nb",\n', 0, 0),
            ('id,text\n1,"a\nb"\n2,"c\nd\n', 5, 4),
            ('text,more\n"a\nb","c\nd\ne\n', 5, 3),
            ('text,more\n"a ""quoted""\nb","c\n""d\ne\n', 5, 3),
            ('id,text\n1,"a\n2,"b",c\n', 3, 2),
            ('id,text\n1,a\n2,"b" c\n', 3, 3),
            ('text,more\n"a\nb","c" d\n', 3, 3),
            ('text,more\n"","c\n","d\n', 3, 3),
        ],
    )
    def test_the_line_where_a_quote_opens_is_named(
        self, here: Path, run_context: RunContext, content: str, line: int, opens: int
    ) -> None:
        (here / "a.csv").write_text(content)
        option, message = refused(TextFiles(files="a.csv"), run_context)
        if not line:
            assert "line 2 has 3 cells where the first row has 2; a cell that holds ',' has to stand in" in message
            return
        assert option == "quoting"
        assert f"a.csv: line {line}: " in message
        assert f"the quoted cell there opens in line {opens}." in message
        assert "set quoting: false" in message

    @pytest.mark.parametrize(
        ("name", "header", "delimiter", "parts"),
        [
            ("a.csv", "id;text", ";", ["separated by ';' and not by ','", 'delimiter: ";"']),
            ("a.csv", '"id";"text"', ";", ['delimiter: ";"']),
            ("a.csv", "id\ttext", "\t", ["separated by a tab", 'delimiter: "\\t"']),
            ("a.csv", "id|text", "|", ['delimiter: "|"']),
            ("a.tsv", "id,text", ",", ["separated by ',' and not by a tab", 'delimiter: ","']),
        ],
    )
    def test_the_header_gives_another_delimiter_away(
        self, here: Path, run_context: RunContext, name: str, header: str, delimiter: str, parts: list[str]
    ) -> None:
        (here / name).write_bytes(codecs.BOM_UTF8 + f"{header}\r\n1{delimiter}one\r\n2{delimiter}two\r\n".encode())
        for column in ("text", header):  # the second is what the hint once led to
            option, message = refused(TextFiles(files=name, column=column), run_context)
            assert option == "delimiter"
            assert [part for part in parts if part not in message] == [], message
        assert "column to one of id, text" in refused(TextFiles(files=name, column="content"), run_context)[1]
        assert texts(run_context, name, delimiter=delimiter) == ["one", "two"]

    def test_a_note_to_excel_names_the_delimiter_and_is_no_header(self, here: Path, run_context: RunContext) -> None:
        (here / "a.csv").write_text("sep=;\r\nid;text\r\n1;one, two\r\n")
        assert texts(run_context, "a.csv") == ["one, two"]
        (here / "a.csv").write_text("sep=;\r\nid;text\r\n1;one\r\n2\r\n")
        assert "line 4 has 1 cell" in refused(TextFiles(files="a.csv"), run_context)[1]

    @pytest.mark.parametrize("delimiter", ["^", "~", ":", "\x01"])
    def test_a_rare_delimiter_is_named_where_the_column_stands_beside_it(
        self, here: Path, run_context: RunContext, delimiter: str
    ) -> None:
        (here / "a.csv").write_text(f"id{delimiter}text\n1{delimiter}one\n")
        option, message = refused(TextFiles(files="a.csv"), run_context)
        assert (option, json.dumps(delimiter) in message) == ("delimiter", True), message
        assert texts(run_context, "a.csv", delimiter=delimiter) == ["one"]

    def test_a_word_beside_the_column_s_name_is_no_delimiter(self, here: Path, run_context: RunContext) -> None:
        (here / "a.csv").write_text("full-text\none\n")
        assert "did you mean 'full-text'" in refused(TextFiles(files="a.csv"), run_context)[1]

    def test_a_delimiter_is_one_character(self) -> None:
        for wrong in ("", "::", '"', "\n"):
            with pytest.raises(ValidationError, match="is not a single character"):
                TextFiles(files="a.csv", delimiter=wrong)
        with pytest.raises(OptionError) as caught:
            list(TextFiles(files="a.csv", delimiter="~")._parts())
        assert "no file matches" in str(caught.value)

    def test_a_name_with_a_delimiter_in_it_can_be_insisted_on(self, here: Path, run_context: RunContext) -> None:
        (here / "a.csv").write_text("id;text\n1;one\n")
        assert texts(run_context, "a.csv", column="id;text", delimiter=",") == ["1;one"]

    @pytest.mark.parametrize(("name", "content"), [("a.csv", "text,text\na,b\n"), ("a.parquet", None)])
    def test_two_columns_of_one_name(self, here: Path, run_context: RunContext, name: str, content: str | None) -> None:
        if content:
            (here / name).write_text(content)
        else:
            pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), here / name)
        option, message = refused(TextFiles(files=name), run_context)
        assert option == "column"
        assert "2 columns 'text'" in message

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
    @pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl.gz"])
    def test_a_byte_order_mark_is_seen(self, here: Path, run_context: RunContext, name: str, encoding: str) -> None:
        mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
        contents = {"a.csv": "id,text\r\n1,naïve 石\r\n", "a.txt": "naïve 石", "a.jsonl.gz": '{"text": "naïve 石"}\n'}
        data = mark + contents[name].encode(encoding)
        (here / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        assert texts(run_context, name) == ["naïve 石"]
        assert texts(run_context, name, encoding="cp1252") == ["naïve 石"]


class TestOtherFiles:
    """What is in a file, whatever its name says."""

    @pytest.mark.parametrize(
        ("name", "content", "part"),
        [
            ("a.txt", gzip.compress(b"text", mtime=0), "compressed with gzip, and its name has to end in .gz"),
            ("a.jsonl", bz2.compress(b"text"), "compressed with bzip2"),
            ("a.csv", lzma.compress(b"text"), "compressed with xz"),
            ("a.txt", zstd(b"text"), "compressed with zstd"),
            ("a.txt.gz", gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "compressed with gzip"),
            ("a.txt", parquet({"text": ["a"]}), "is a Parquet file; rename it"),
            ("a.txt", b"%PDF-1.7 ...", "PDF"),
            ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
            ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
            ("a.csv", b"\0\x01\x02text", "NUL"),
            ("a.txt", "no mark".encode("utf-16-be"), "set encoding: utf-16-be"),
            ("a.csv", "id,text\n1,b".encode("utf-16-le"), "set encoding: utf-16-le"),
            ("a.txt.zst", zstd(random.Random(0).randbytes(50_000).hex().encode())[:-9], "damaged, cut off"),
            ("a.txt.bz2", bz2.compress(b"text" * 99)[:-9], "damaged, cut off"),
            ("a.txt.xz", lzma.compress(b"text" * 99)[:-9], "damaged, cut off"),
            ("a.parquet", parquet({"text": ["a" * 99]})[:-9], "damaged, cut off"),
            ("a.parquet", b"", "damaged, cut off"),
            ("a.txt", codecs.BOM_UTF16_LE + b"a\0b", "its byte order mark says that it is, so the file is damaged"),
            ("a.txt", b"fine \n\n \xff", "a.txt: line 3: byte 8 is not utf-8"),
        ],
    )
    def test_what_a_file_is(self, here: Path, run_context: RunContext, name: str, content: bytes, part: str) -> None:
        (here / name).write_bytes(content)
        for look in (TextFiles(files=name).load, TextFiles(files=name).peek):
            with pytest.raises(OptionError) as caught:
                look(run_context)
            assert part in str(caught.value)

    def test_archives(self, here: Path, run_context: RunContext) -> None:
        with zipfile.ZipFile(here / "a.txt", "w") as archive:
            archive.writestr("b.txt", "text")
        assert "a.txt: it is a zip archive" in refused(TextFiles(files="a.txt"), run_context)[1]
        with tarfile.open(here / "b.txt.gz", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("b.txt"), io.BytesIO())
        assert "it is a tar archive; unpack it" in refused(TextFiles(files="b.txt.gz"), run_context)[1]

    def test_a_name_without_an_ending_is_read_as_told(self, here: Path, run_context: RunContext) -> None:
        (here / "enwik8").write_text("one\ntwo")
        (here / "part-00000.gz").write_bytes(gzip.compress(b'{"text": "three"}'))
        assert texts(run_context, "enwik8", format="text", sample_by="line") == ["one", "two"]
        assert texts(run_context, "part-*", format="jsonl") == ["three"]
        assert "set format" in refused(TextFiles(files="enwik8"), run_context)[1]

    def test_zstd_of_several_frames_and_of_a_long_window(self, here: Path, run_context: RunContext) -> None:
        (here / "a.txt.zst").write_bytes(zstd(b"one\n") + zstd(b"two\n"))
        assert texts(run_context, "a.txt.zst", sample_by="line") == ["one", "two"]
        # The header of a frame with a window of 2 GB, as `zstd --long=31` writes it for a stream.
        (here / "b.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8\x21\x00\x00text")
        assert "zstd -d --long=31" in refused(TextFiles(files="b.txt.zst"), run_context)[1]

    @pytest.mark.parametrize(
        "column",
        [
            pa.array(["a", None, "b", "a"]).dictionary_encode(),
            pa.array(["a", None, "b", "a"], pa.large_string()).dictionary_encode(),
            pa.array(["a", None, "b", "a"], pa.string_view()),
            pa.array(["a", None, "b", "a"], pa.large_string()),
        ],
        ids=lambda column: str(column.type),
    )
    def test_all_kinds_of_strings_in_parquet(self, here: Path, run_context: RunContext, column: pa.Array) -> None:
        other = pa.array([{"text": "no"}] * 4)
        pq.write_table(pa.table({"x.text": column, "x": other}), here / "a.parquet")
        assert texts(run_context, "a.parquet", column="x.text") == ["a", "b", "a"]

    def test_text_in_parquet_that_is_not_utf8_is_told_with_its_row(self, here: Path, run_context: RunContext) -> None:
        binary = pa.array([b"fine"] * 1500 + [b"caf\xe9"])
        column = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
        pq.write_table(pa.table({"text": column}), here / "a.parquet")
        option, message = refused(TextFiles(files="a.parquet"), run_context)
        assert option == "files"
        assert "a.parquet: 'text' of row 1,501 is not UTF-8" in message
        assert "encoding" not in message

    def test_brackets_are_those_of_a_name_where_there_is_one(self, here: Path, run_context: RunContext) -> None:
        folder = here / "corpus [v1] (final)" / "part [a]"
        folder.mkdir(parents=True)
        for name in ("a [1].txt", "b.txt", ".hidden.txt"):
            (folder / name).write_text(name)
        (here / "corpus v").mkdir()
        both = ["a [1].txt", "b.txt"]
        for pattern in ("corpus [v1] (final)/**/*.txt", "corpus [v1]*/part [a]/*", f"{here}/corpus*/part [[]a]/*.txt"):
            assert texts(run_context, pattern) == both, pattern
        assert texts(run_context, "corpus [v1] (final)/part [a]/[b-z].txt") == ["b.txt"]
        assert texts(run_context, "*/*/a [1].*") == ["a [1].txt"]

    @pytest.mark.parametrize(
        ("files", "parts"),
        [
            ("x" * 300 + ".txt", ["cannot be looked for: File name too long"]),
            ("a\0.txt", ["'a\\x00.txt'"]),
            ("~nobody-of-this-name/a.txt", ["cannot be looked for"]),
            ("sub", ["sub is a folder; name its files, as in sub/**/*.jsonl"]),
            ("pipe.txt", ["pipe.txt is not a regular file"]),
            ("gone.txt", ["no file matches 'gone.txt'"]),
            ("", ["names no file"]),
            ([], ["names no file"]),
            (["gone.txt", ""], ["gone.txt"]),
        ],
    )
    def test_what_cannot_be_found(self, here: Path, run_context: RunContext, files: Any, parts: list[str]) -> None:
        (here / "sub" / "sub").mkdir(parents=True)
        (here / "sub" / "sub" / "a.jsonl.gz").touch()
        (here / "gone.txt").symlink_to("nowhere")
        os.mkfifo(here / "pipe.txt")
        option, message = refused(TextFiles(files=files), run_context)
        assert option == "files"
        assert [part for part in parts if part not in message] == [], message

    def test_reading_reports_how_far_it_has_come(self, here: Path, run_context: RunContext) -> None:
        (here / "a.txt").write_text("line\n" * 300_000)
        (here / "b.txt.gz").write_bytes(gzip.compress(b"line\n" * 1000))
        told = []
        run = dataclasses.replace(run_context, progress=lambda *words, unit: told.append((*words, unit)))
        texts(run, "*", sample_by="line")
        total = 1_500_000 + (here / "b.txt.gz").stat().st_size
        assert {words[0::2] for words in told} == {("reading", total)}
        assert {unit for *_, unit in told} == {"bytes"}
        assert sorted(words[1] for words in told) == [words[1] for words in told]
        assert told[-1][1] == total


class TestJSON:
    """What JSON files look like, and what some of them lack."""

    def test_a_json_file_is_a_list_or_objects_one_after_the_other(self, here: Path, run_context: RunContext) -> None:
        rows = [{"text": row, "more": {"list": [1.5, None]}} for row in ROWS]
        (here / "list.json").write_text(json.dumps(rows, indent=2))
        (here / "pretty.json").write_text("\n".join(json.dumps(row, indent=2) for row in rows))
        (here / "commas.json").write_text(",\n".join(map(json.dumps, rows)))
        (here / "tight.json").write_text("".join(map(json.dumps, rows)))
        (here / "lines.ndjson").write_text(jsonl(*rows))
        for name in ("list.json", "pretty.json", "commas.json", "tight.json", "lines.ndjson"):
            assert texts(run_context, name) == ROWS, name

    def test_a_list_is_read_a_piece_at_a_time(
        self, here: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("toolkit_plugins.dataset.readers.CHARACTERS_PER_READ", 3)
        strange = ["long " * 100, '\\ " \u00e9 \U0001f98a', "石\n", ""]
        (here / "a.json").write_text(json.dumps([{"text": text, "n": 12345.5e3} for text in strange]))
        assert texts(run_context, "a.json") == strange[:3]

    @pytest.mark.parametrize(
        ("name", "content", "option", "parts"),
        [
            ("a.jsonl", '{"text": "a"},\n{"text": "b"}', "files", ["line 1 ends with a comma"]),
            ("a.jsonl", '{\n "text": "a"\n}', "files", ["line 1 is not a whole JSON value", "format: json"]),
            ("a.jsonl", '{"text": "a"}\n{"text": "b', "files", ["line 2 is not a whole JSON value: the file is cut"]),
            ("a.jsonl", '{"text": "a"} {"text": "b"}', "files", ["line 1 is not JSON: Extra data in column 15"]),
            ("a.jsonl", "{'text': 'a'}", "files", ["line 1 is not JSON: Expecting property name"]),
            ("a.jsonl", "null\n", "files", ["line 1 is null where an object"]),
            ("a.jsonl", '{"text": true}', "column", ["'text' of line 1 is true or false, not a string"]),
            (
                "a.json",
                '{"version": 1, "data": [{"text": "a"}]}',
                "column",
                ["item 1 (line 1) has no key 'text'", "known: data, version", "jq -c '.data[]' FILE > NEW.jsonl"],
            ),
            ("a.json", '{"text": ["a", "b"]}', "column", ["is a list", "jq -c '.text[] | {text: .}' FILE"]),
            ("a.json", '[\n{"text": "a"},\n{"text": 3}]', "column", ["'text' of item 2 (line 3) is a number"]),
            ("a.json", '[{"text": "a"}\n', "files", ["it is not JSON: ',' or ']' expected in line 2"]),
            ("a.json", '[{"text": "a"},\n', "files", ["the file ends within its list in line 2"]),
            ("a.json", '[{"text": "a"}]\n[1]', "files", ["something follows the end of the list in line 2"]),
            ("a.json", '[{"text": "a"}\n{"text": "b"}]', "files", ["',' or ']' expected in line 2"]),
            ("a.json", '["a"]', "files", ["item 1 (line 1) is a string where an object"]),
            ("a.json", "[]", "files", ["there is no text in a.json"]),
            ("a.json", "[" * 100_000, "files", ["it is not JSON: "]),
            ("a.json", '{"text": "a\nb"}', "files", ["Invalid control character", "in line 1"]),
        ],
    )
    def test_what_is_wrong(
        self, here: Path, run_context: RunContext, name: str, content: str, option: str, parts: list[str]
    ) -> None:
        (here / name).write_text(content)
        told, message = refused(TextFiles(files=name), run_context)
        assert [part for part in parts if part not in message] == [], message
        assert told == option


class TestPeek:
    """The first rows, before a run."""

    def test_it_says_what_there_is(self, here: Path, run_context: RunContext) -> None:
        (here / "a.txt").write_text("one\ntwo\n")
        (here / "b.csv").write_text("text\nthree\n")
        (here / "v.txt").write_text("held out")
        peek = TextFiles(files="*", validation_files="v.txt").peek(run_context)
        assert (peek.source, peek.document) == ("2 files for train, 1 file for validation", "one\ntwo\n")
        assert not run_context.cache.exists()

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.parquet"])
    def test_a_large_file_is_not_read(
        self, here: Path, run_context: RunContext, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        rows = ["word " * 200] * 20_000
        lines = {
            "a.txt": lambda: "\n".join(rows).encode(),
            "a.jsonl": lambda: jsonl(*({"text": row} for row in rows)).encode(),
            "a.json": lambda: json.dumps([{"text": row} for row in rows]).encode(),
            "a.csv": lambda: "\n".join(["text", *rows]).encode(),
            "a.txt.gz": lambda: gzip.compress("\n".join(rows).encode(), 1),
            "a.parquet": lambda: parquet({"text": rows}),
        }
        (here / name).write_bytes(lines[name]())
        read = []
        monkeypatch.setattr("toolkit_plugins.dataset.contents.gzip.GzipFile.read1", counting(gzip.GzipFile.read1, read))
        monkeypatch.setattr("toolkit_plugins.dataset.files._Watched.readinto", counting(io.FileIO.readinto, read))
        assert TextFiles(files=name).peek(run_context).document.startswith("word word")
        assert sum(read) <= 4 << 20

    def test_a_fault_in_any_file_is_found(self, here: Path, run_context: RunContext) -> None:
        (here / "a.csv").write_text("text\none\n")
        (here / "b.csv").write_text("content\ntwo\n")
        with pytest.raises(OptionError, match=r"b\.csv: its first row names no column 'text'"):
            TextFiles(files="*.csv").peek(run_context)
        (here / "c.txt").write_text(" \n")
        with pytest.raises(OptionError, match=r"there is no text in c\.txt"):
            TextFiles(files="c.txt").peek(run_context)


def counting(read: Callable[..., object], sizes: list[int]) -> Callable[..., object]:
    def counted(self: object, *words: object) -> object:
        got = read(self, *words)
        sizes.append(got if isinstance(got, int) else len(got))
        return got

    return counted
