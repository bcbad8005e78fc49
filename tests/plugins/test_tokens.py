"""Token files of other trainers: read, and written byte for byte as their own code documents."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Never

import numpy
import pytest
from datasets import DatasetDict

from tests.command_line import toolkit
from tests.tiny import train, write_recipe
from toolkit.api import OptionError, RunContext
from toolkit.data.token_files import TokenFileWriter
from toolkit.errors import RecipeError
from toolkit.lifecycle.preparation import prepare
from toolkit_plugins.dataset.tokens import Tokens

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [200, 3]]
END = 2
FORMATS = ("megatron", "llm.c", "nanogpt", "datatrove")


def write(folder: Path, format_: Any, *, highest: int = 300, documents: Any = DOCUMENTS) -> list[Path]:
    folder.mkdir(exist_ok=True)
    with TokenFileWriter(folder, "train", format_, highest, [END]) as writer:
        for ids in documents:
            writer.write(ids)
    return writer.files


def rows(data: DatasetDict) -> list[list[int]]:
    return [list(ids) for ids in data["train"]["input_ids"]]


def test_megatron_reads_what_is_written(tmp_path: Path) -> None:
    """Parsed as `_IndexReader` in megatron/core/datasets/indexed_dataset.py does it."""
    ids, index = write(tmp_path, "megatron")
    content = index.read_bytes()
    assert content[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<Q", content, 9) == (1,)
    assert content[17] == 8  # DType.uint16
    sequences, documents = struct.unpack_from("<QQ", content, 18)
    assert (sequences, documents) == (4, 5)
    assert numpy.frombuffer(content, "<i4", 4, 34).tolist() == [4, 2, 5, 3]
    assert numpy.frombuffer(content, "<i8", 4, 50).tolist() == [0, 8, 12, 22]
    assert numpy.frombuffer(content, "<i8", 5, 82).tolist() == [0, 1, 2, 3, 4]
    assert len(content) == 122
    assert numpy.fromfile(ids, "<u2").tolist() == [5, 6, 7, 2, 8, 2, 9, 10, 11, 12, 2, 200, 3, 2]
    large, index = write(tmp_path / "large", "megatron", highest=65_499)
    assert index.read_bytes()[17] == 4  # DType.int32, as DType.optimal_dtype chooses from 65,500 ids on
    assert numpy.fromfile(large, "<i4")[:4].tolist() == [5, 6, 7, 2]


@pytest.mark.parametrize(
    ("highest", "magic", "version", "kind"), [(300, 20240520, 1, "<u2"), (70_000, 20240801, 7, "<u4")]
)
def test_llm_c_reads_what_is_written(tmp_path: Path, highest: int, magic: int, version: int, kind: str) -> None:
    """Parsed as write_datafile in llm.c's dev/data/data_common.py writes it; documents begin with the end token."""
    (file,) = write(tmp_path, "llm.c", highest=highest)
    header = numpy.fromfile(file, "<i4", 256)
    assert file.name == "train_000000.bin"
    assert header[:3].tolist() == [magic, version, 14]
    assert not header[3:].any()
    assert numpy.fromfile(file, kind, offset=1024).tolist() == [2, 5, 6, 7, 2, 8, 2, 9, 10, 11, 12, 2, 200, 3]


def test_llm_c_gets_a_new_file_before_one_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.data.token_files.LLM_C_IDS_PER_FILE", 7)
    files = write(tmp_path, "llm.c")
    assert [int(numpy.fromfile(file, "<i4", 3)[2]) for file in files] == [6, 5, 3]


def test_nanogpt_and_datatrove_read_what_is_written(tmp_path: Path) -> None:
    (plain,) = write(tmp_path / "a", "nanogpt")
    line = [5, 6, 7, 2, 8, 2, 9, 10, 11, 12, 2, 200, 3, 2]
    assert plain.read_bytes() == struct.pack("<14H", *line)
    ids, index = write(tmp_path / "b", "datatrove")
    assert (ids.name, index.name) == ("train.ds", "train.ds.index")
    assert ids.read_bytes() == struct.pack("<14H", *line)
    assert index.read_bytes() == struct.pack("<4Q", 4, 6, 11, 14)
    wide, _ = write(tmp_path / "c", "datatrove", highest=2**16)
    assert wide.read_bytes() == struct.pack("<14I", *line)
    with pytest.raises(OptionError, match="nanoGPT stores tokens as uint16"):
        write(tmp_path / "d", "nanogpt", highest=2**16)


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_written_is_read(tmp_path: Path, run_context: RunContext, format_: str) -> None:
    files = write(tmp_path / "tokens", format_)
    plugin = Tokens(files=str(files[0]), end_token_id=END)
    assert rows(plugin.load(run_context)) == DOCUMENTS
    shown = plugin.peek(run_context)
    assert (shown.source, shown.document) == ("1 file for train", "5 6 7")


def test_a_document_of_several_sequences_is_one(tmp_path: Path, run_context: RunContext) -> None:
    ids, index = write(tmp_path / "tokens", "megatron")
    content = index.read_bytes()
    index.write_bytes(content[:26] + struct.pack("<Q", 3) + content[34:82] + struct.pack("<3q", 0, 3, 4))
    assert rows(Tokens(files=str(ids), end_token_id=END).load(run_context)) == [
        [5, 6, 7, 2, 8, 2, 9, 10, 11, 12],
        [200, 3],
    ]


def damaged(file: Path, content: bytes) -> None:
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("format_", "damage", "option", "message"),
    [
        ("megatron", lambda ids, index: index.unlink(), "end_token_id", ""),
        ("megatron", lambda ids, index: damaged(index, b"x" * 60), "files", "does not begin with MMIDIDX"),
        ("megatron", lambda ids, index: damaged(index, index.read_bytes()[:-3]), "files", "cut off or damaged"),
        ("megatron", lambda ids, index: damaged(ids, ids.read_bytes()[:-2]), "files", "it has not the 14 ids"),
        ("llm.c", lambda ids: damaged(ids, ids.read_bytes()[:-2]), "files", "its header says 14 ids"),
        ("llm.c", lambda ids: damaged(ids, struct.pack("<i", 20240522) + ids.read_bytes()[4:]), "files", "HellaSwag"),
        ("nanogpt", lambda ids: damaged(ids, ids.read_bytes()[:-1]), "token_type", "no whole number of uint16"),
        ("nanogpt", lambda ids: damaged(ids, b""), "files", "holds no ids"),
        ("nanogpt", lambda ids: damaged(ids, struct.pack("<99I", *range(99))), "token_type", "every second id is 0"),
        ("datatrove", lambda ids, index: index.unlink(), "files", "no train.ds.index"),
        ("datatrove", lambda ids, index: damaged(ids, ids.read_bytes()[:-2]), "files", "one of them is damaged"),
    ],
)
def test_a_damaged_file_is_told(
    tmp_path: Path, run_context: RunContext, format_: str, damage: Any, option: str, message: str
) -> None:
    files = write(tmp_path / "tokens", format_)
    damage(*files)
    plugin = Tokens(files=str(files[0]), end_token_id=END)
    if not message:  # without its index it looks like a file of nanoGPT's, and is one
        assert rows(plugin.load(run_context)) == DOCUMENTS
        return
    with pytest.raises(OptionError, match=message) as caught:
        plugin.load(run_context)
    assert caught.value.option == option
    with pytest.raises(OptionError, match=message):
        plugin.peek(run_context)


def exported(folder: Path, format_: str) -> Path:
    """Export the tokens of the tiny recipe; its file."""
    recipe = write_recipe(folder)
    output = folder / f"tokens-{format_}"
    words = ("--format", format_, "--output", str(output), "--json")
    written = toolkit("data", "export-tokens", str(recipe), *words).json
    assert written["train"]["documents"] == 180
    assert (output / "tokenizer" / "tokenizer.json").exists()
    return Path(written["train"]["files"][0])


def from_tokens(folder: Path, file: Path, **options: Any) -> Path:
    tokenizer = file.parent / "tokenizer"
    config = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    end = next(one["id"] for one in config["added_tokens"] if one["content"] == "<|endoftext|>")
    dataset = {"plugin": "tokens", "files": str(file), "end_token_id": end, **options}
    return write_recipe(folder, "tokens", dataset=dataset, tokenizer={"plugin": "pretrained", "path": str(tokenizer)})


def test_a_run_on_exported_tokens_has_the_blocks_of_the_texts(tmp_path: Path) -> None:
    texts, _ = train(write_recipe(tmp_path), "dataset.eval_fraction=0.1", name="texts")
    file = exported(tmp_path, "megatron")
    held_out = str(file.with_name("validation.bin"))
    tokens, _ = train(from_tokens(tmp_path, file, validation_files=held_out), name="tokens")
    one, other = (json.loads((run.folder / "data.json").read_text()) for run in (texts, tokens))
    for split in ("train", "validation"):
        for name in ("documents", "tokens", "blocks", "ends_learned", "tokens_dropped"):
            assert one[split][name] == other[split][name]
    assert one["excerpt"] == other["excerpt"]
    assert texts.eval_loss == tokens.eval_loss
    scored = [toolkit("evaluate", run.name, "--runs", str(tmp_path / "runs"), "--json").json for run in (texts, tokens)]
    assert scored[0]["bits_per_byte"] == scored[1]["bits_per_byte"]


def test_prepared_tokens_are_not_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = from_tokens(tmp_path, exported(tmp_path, "megatron"))
    first = prepare(recipe)

    def refuse(self: Tokens, run: RunContext) -> Never:
        raise AssertionError("the documents were loaded")

    monkeypatch.setattr(Tokens, "load", refuse)
    again = prepare(recipe)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert again.account == first.account


@pytest.mark.parametrize("packing", ["concatenate", "best-fit"])
def test_a_long_document_of_tokens_is_packed_in_parts_to_the_same_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    file, chosen = exported(tmp_path, "nanogpt"), {"objective.packing": packing}
    whole = prepare(from_tokens(tmp_path, file), overrides=chosen).account.train
    monkeypatch.setattr("toolkit.data.encoding.IDS_PER_BATCH", 7)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "other-cache"))
    parts = prepare(from_tokens(tmp_path, file), overrides=chosen)
    assert not parts.from_cache
    assert parts.account.train == whole
    assert whole.documents_in_several_blocks


def test_a_mixture_takes_tokens_as_a_source_and_filters_refuse_them_at_their_place(tmp_path: Path) -> None:
    file = exported(tmp_path, "megatron")
    recipe = from_tokens(tmp_path, file, eval_fraction=0.1)
    data = json.loads(recipe.read_text(encoding="utf-8"))
    texts = json.loads((tmp_path / "tiny.yaml").read_text(encoding="utf-8"))["dataset"]
    sources = [
        {"name": name, "weight": 1, "dataset": one} for name, one in (("made", data["dataset"]), ("texts", texts))
    ]
    mixed = write_recipe(tmp_path, "mixed", dataset={"plugin": "mix", "sources": sources}, tokenizer=data["tokenizer"])
    result, _ = train(mixed)
    account = json.loads((result.folder / "data.json").read_text())
    assert list(account["inspections"]) == list(account["sources"]) == ["made", "texts"]
    assert account["train"]["documents_in_several_blocks"] > 0
    inspected = toolkit("data", "inspect", str(mixed), "--json").json["sources"]
    assert {name: list(one["columns"]) for name, one in inspected.items()} == {
        "made": ["input_ids"],
        "texts": ["text"],
    }
    assert "Source texts" in toolkit("data", "inspect", str(mixed)).out
    output = tmp_path / "again"
    toolkit("data", "export-tokens", str(mixed), "--format", "megatron", "--output", str(output))
    assert {one.name for one in output.iterdir()} >= {"made-train.bin", "made-validation.idx", "texts-train.bin"}
    sources[0]["dataset"]["filters"] = ["exact-duplicates"]
    refused = write_recipe(
        tmp_path, "refused", dataset={"plugin": "mix", "sources": sources}, tokenizer=data["tokenizer"]
    )
    with pytest.raises(RecipeError, match=r"refused.yaml:\d+:\d+: .*filters\[0\]: filters read text") as caught:
        train(refused)
    assert len(caught.value.problems) == 1


def test_an_existing_folder_is_not_written_to(tmp_path: Path) -> None:
    exported(tmp_path, "nanogpt")
    words = ("data", "export-tokens", str(tmp_path / "tiny.yaml"), "--format", "nanogpt")
    assert "exists already" in toolkit(*words, "--output", str(tmp_path / "tokens-nanogpt"), status=2).err


def test_tokens_of_another_tokenizer_are_refused_at_their_place(tmp_path: Path) -> None:
    file = exported(tmp_path, "nanogpt")
    recipe = from_tokens(tmp_path, file)
    inspected = toolkit("data", "inspect", str(recipe), "--json").json
    assert list(inspected["columns"]) == ["input_ids"]
    assert inspected["scripts"] == {"Latin": 1.0}
    (tmp_path / "other.txt").write_text((tmp_path / "texts.txt").read_text()[::-1])
    learning = write_recipe(tmp_path, "learning", dataset=json.loads(recipe.read_text(encoding="utf-8"))["dataset"])
    answer = toolkit("data", "inspect", str(learning), status=2)
    assert "learning.yaml" in answer.err
    assert "tokens and no text to learn from" in answer.err
    other = write_recipe(
        tmp_path,
        "other",
        dataset={"plugin": "text-files", "files": str(tmp_path / "other.txt"), "sample_by": "line"},
        tokenizer={"plugin": "byte-bpe", "vocab_size": 400},
    )
    output = tmp_path / "other-tokens"
    toolkit("data", "export-tokens", str(other), "--format", "nanogpt", "--output", str(output))
    wrong = toolkit("data", "inspect", str(recipe), "--set", f"tokenizer.path={output / 'tokenizer'}", status=2)
    assert "tokens.yaml" in wrong.err
    assert "these are not the tokens of this tokenizer" in wrong.err
