"""What bad input gets from `recipe run`: its place, what is wrong, the cure, the status; never a traceback.

What is wrong with the recipe's text itself is in tests/unit/cli/test_cli_bad_recipes.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import toolkit
from tests.hub_server import HubServer
from tests.tiny import train, write_recipe

HUB_MODEL = {"plugin": "pretrained", "path": "openai-community/gpt2"}


@dataclass(frozen=True)
class Case:
    """Sections of the recipe, files beside it, and what has to be said."""

    name: str
    sections: dict[str, Any] = field(default_factory=dict)
    text: bytes | None = None
    """Content of texts.txt."""
    status: int = 2
    path: str = ""
    """The dotted path that the message names, after the recipe's file, line and column."""
    says: tuple[str, ...] = ()


CASES = [
    Case("no such dataset", {"dataset": {"plugin": "hub", "path": "nobody/nothing"}}, path="dataset.path",
         says=("nobody/nothing",)),
    Case("no such config", {"dataset": {"plugin": "hub", "path": "Salesforce/wikitext", "name": "wikitext-9"}},
         path="dataset.name", says=("wikitext-2-raw-v1",)),
    Case("no such column", {"dataset": {"plugin": "hub", "path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1",
         "column": "txt"}}, path="dataset.column", says=("did you mean 'text'?",)),
    Case("no such split", {"dataset": {"plugin": "hub", "path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1",
         "split": "trian"}}, path="dataset.split", says=("did you mean 'train'?",)),
    Case("no such revision", {"dataset": {"plugin": "hub", "path": "Salesforce/wikitext",
         "name": "wikitext-2-raw-v1", "revision": "v9"}}, path="dataset.revision", says=("v9",)),
    Case("gated dataset", {"dataset": {"plugin": "hub", "path": "example/gated"}}, status=3, path="dataset.path",
         says=("accept its terms", "HF_TOKEN")),
    Case("no such model", {"model": {"plugin": "pretrained", "path": "nobody/nothing"}}, path="model.path",
         says=("nobody/nothing",)),
    Case("no such tokenizer", {"tokenizer": {"plugin": "pretrained", "path": "nobody/nothing"}},
         path="tokenizer.path", says=("nobody/nothing",)),
    Case("no such file", {"dataset": {"plugin": "text-files", "files": "nowhere/*.txt"}}, path="dataset.files",
         says=("nowhere/*.txt",)),
    Case("empty file", text=b"", path="dataset", says=("texts.txt",)),
    Case("only white space", text=b"\n \n\n", path="dataset", says=()),
    Case("shorter than a block", text=b"one two\n" * 10, path="objective.block_size",
         says=("fewer than one block of 32", "smaller block_size")),
    Case("a single document", {"dataset": {"sample_by": "document"}}, text=b"word " * 3000,
         path="dataset.eval_fraction", says=("a single document", "sample_by: paragraph")),
    Case("not UTF-8", text=b"good line\n" * 50 + b"caf\xe9 noir\n", path="dataset", says=("texts.txt", "is not utf-8")),
    Case("NUL bytes", text=b"good line\n" * 50 + b"a\0b\n", path="dataset", says=("texts.txt", "NUL")),
    Case("block longer than the model", {"model": {"max_position_embeddings": 16}}, path="", says=("16", "block_size")),
    Case("block longer than a pretrained model", {"tokenizer": HUB_MODEL, "model": HUB_MODEL,
         "objective": {"block_size": 2048}}, path="", says=("256", "block_size")),
    Case("tokenizer too large for the model", {"tokenizer": {"plugin": "byte-bpe", "vocab_size": 600},
         "model": HUB_MODEL, "objective": {"block_size": 16}, "dataset": {"plugin": "python-docs",
         "max_samples": 60, "eval_fraction": 0.1}}, path="model.path", says=("512", "600")),
    Case("LoRA matches nothing", {"memory": [{"plugin": "lora", "target_modules": ["q_proj"]}]},
         path="memory[0].target_modules", says=("q_proj", "c_attn")),
    Case("merge without LoRA", {"exporters": ["merge-lora"], "training": {"max_steps": 1}}, path="exporters[0]",
         says=("lora",)),
    Case("masked words with a tokenizer that has no mask", {"objective": {"plugin": "masked-lm", "block_size": 32},
         "tokenizer": HUB_MODEL, "model": {"plugin": "pretrained", "path": "google-bert/bert-base-uncased"}},
         path="objective", says=("mask",)),
    Case("BERT's objective with GPT-2", {"objective": {"plugin": "masked-lm", "block_size": 32}}, path="model",
         says=("causal-lm",)),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> Path:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_gets_its_place_and_its_cure(case: Case, folder: Path) -> None:
    if case.text is not None:
        (folder / "texts.txt").write_bytes(case.text)
    recipe = write_recipe(folder, **case.sections)
    answer = toolkit("recipe", "run", str(recipe), "--json", status=case.status)
    message = answer.err.splitlines()[-1]
    assert f"{recipe}:" in message
    assert f": {case.path}" in message
    for words in case.says:
        assert words in answer.err


def test_a_start_that_came_to_nothing_does_not_stand_in_the_way_of_the_mended_recipe(folder: Path) -> None:
    bad = write_recipe(folder, memory=[{"plugin": "lora", "target_modules": ["q_proj"]}])
    toolkit("recipe", "run", str(bad), status=2)
    mended = write_recipe(folder, training={"max_steps": 1})
    assert toolkit("recipe", "run", str(mended), "--json").json["steps"] == 1
    assert [run.name for run in (folder / "runs").iterdir()] == ["tiny"]


def test_a_recipe_whose_file_name_is_not_utf8_trains_to_its_end(folder: Path) -> None:
    name = os.fsdecode(b"mod\xe8le")
    recipe = write_recipe(folder, name, training={"max_steps": 1})
    result = toolkit("recipe", "run", str(recipe), "--json").json
    assert (result["name"], result["steps"]) == ("mod_le", 1)
    answer = toolkit("recipe", "run", str(recipe), "--name", name, status=2)
    assert r"runs/mod\xe8le has a name that is not UTF-8" in answer.err


def test_an_unreachable_hub_names_the_ways_out(folder: Path, hub: HubServer) -> None:
    recipe = write_recipe(folder, dataset={"plugin": "hub", "path": "somebody/else"})
    with hub.unplugged():
        answer = toolkit("recipe", "run", str(recipe), status=3)
    for way_out in ("--rehearse", "HF_HUB_OFFLINE", "HF_ENDPOINT", "text-files"):
        assert way_out in answer.err
    assert f"{recipe}:" in answer.err


@pytest.mark.parametrize("megabytes", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_a_line_of_megabytes_is_only_a_long_document(folder: Path, megabytes: int) -> None:
    line = b"the cat sat on a mat " * (megabytes * 50_000)
    (folder / "texts.txt").write_bytes(line + b"\nand a second line of words\n" * 9)
    recipe = write_recipe(folder, dataset={"sample_by": "line", "eval_fraction": None}, training={"max_steps": 1})
    data = toolkit("recipe", "run", str(recipe), "--json").json
    assert data["steps"] == 1


def test_a_run_of_other_settings_is_not_touched(folder: Path) -> None:
    toolkit("recipe", "run", str(write_recipe(folder, training={"max_steps": 1})), "--json")
    run = folder / "runs" / "tiny"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    answer = toolkit("recipe", "run", str(write_recipe(folder, training={"max_steps": 2})), "--json", status=2)
    assert "finished at step 1, and the recipe now says max_steps: 2" in answer.err
    assert "--from tiny@1" in answer.err
    assert "--fresh" in answer.err
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_folder_that_is_no_run_is_not_touched(folder: Path) -> None:
    mine = folder / "runs" / "tiny" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work", encoding="utf-8")
    result = toolkit("recipe", "run", str(write_recipe(folder, training={"max_steps": 1})), "--json").json
    assert Path(result["folder"]).name == "tiny-2"
    assert mine.read_text(encoding="utf-8") == "years of work"


def test_an_unwritable_place_is_named(folder: Path) -> None:
    recipe = write_recipe(folder)
    (folder / "blocked").write_text("a file, where a folder of runs should be", encoding="utf-8")
    answer = toolkit("recipe", "run", str(recipe), "--runs", str(folder / "blocked" / "runs"), status=3)
    assert str(folder / "blocked") in answer.err
    assert "--runs" in answer.err


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many kilobytes."""
    place = folder / "disk"
    place.mkdir()

    def mount(kilobytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a disk can only be mounted by root")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


def test_a_disk_too_small_for_the_run_is_found_before_the_first_step(
    folder: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(600)
    answer = toolkit("recipe", "run", str(write_recipe(folder)), "--runs", str(disk), status=3)
    assert "this run needs about" in answer.err
    assert "--runs" in answer.err


def test_a_disk_that_fills_up_costs_no_checkpoint(folder: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(3000)
    recipe = write_recipe(folder, training={"save_steps": 2, "save_in_background": False}, callbacks=["hog"])
    plugins = folder / "plugins" / "callback"
    plugins.mkdir(parents=True)
    (plugins / "hog.py").write_text(HOG, encoding="utf-8")
    answer = toolkit("recipe", "run", str(recipe), "--runs", str(disk), "--plugins", str(folder / "plugins"), status=3)
    assert "free and a checkpoint needs" in answer.err
    assert "give the same command" in answer.err
    assert (disk / "tiny" / "checkpoints" / "checkpoint-2" / "manifest.json").is_file()
    (disk / "hog").unlink()
    again = toolkit("recipe", "run", str(recipe), "--runs", str(disk), "--set", "callbacks=[]", "--json")
    assert again.json["steps"] == 8
    assert [run.name for run in disk.iterdir()] == ["tiny"]


HOG = '''
"""Fills the disk."""

from toolkit.api import Callback


class Hog(Callback):
    """Fill the disk of the run before its third step."""

    def callbacks(self, run):
        import errno
        from transformers import TrainerCallback

        class Fill(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 2:
                    with open(run.folder.parent / "hog", "wb", buffering=0) as file:
                        try:
                            while True:
                                file.write(bytes(1024))
                        except OSError as error:
                            assert error.errno == errno.ENOSPC

        return [Fill()]
'''


def test_an_alphabet_of_eight_tokens_can_have_a_document_mask(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(
        models.WordLevel({"[UNK]": 0, "[EOS]": 1, "a": 2, "c": 3, "g": 4, "t": 5, "n": 6, "-": 7}, "[UNK]")
    )
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="[UNK]", eos_token="[EOS]").save_pretrained(
        folder / "letters"
    )
    (folder / "dna.txt").write_text("acgtgatc\nttgacgatcgatc\n" * 200)
    recipe = write_recipe(
        folder,
        dataset={"files": str(folder / "dna.txt")},
        tokenizer={"plugin": "pretrained", "path": str(folder / "letters")},
        objective={"document_mask": True},
        training={"max_steps": 1},
    )
    assert train(recipe)[0].steps == 1
