"""Documents are cut at the tokenizer's end token where it stands in a text, before anything is drawn or learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from tests.tiny import resolved, texts, write_recipe
from toolkit.api import RunContext
from toolkit.data import documents, packing
from toolkit.errors import OptionError, RecipeError, UnavailableError
from toolkit.training.components import context_of
from toolkit.training.loading import documents_of
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

END = "<|endoftext|>"
STORIES = [f"Once upon a time there was a cat called number {number}.\nIt slept." for number in range(40)]


def split(rows: list[str | None]) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict({"text": rows}))


def cut(rows: list[str | None], cache: Path) -> list[str]:
    return documents.cut_at(split(rows), END, cache)["train"]["text"][:]


def test_where_a_text_is_cut_and_what_goes_with_the_token(tmp_path: Path) -> None:
    assert cut([f"a\n{END}\nb\n\n c{END}d\r\n{END}\r\n  e"], tmp_path) == ["a\n", "b\n\n c", "d\r\n", "  e"]
    assert cut([f"{END}\na\n{END}\n{END}\n\n", "b", "", None, f" {END}\n", END * 2, "c"], tmp_path) == [
        "a\n", "b", "", "", " ", "", "c"
    ]  # fmt: skip
    assert list(tmp_path.rglob("*.arrow")) == [], "what was cut stayed behind"


def test_texts_without_the_token_are_not_copied(tmp_path: Path) -> None:
    data = split(["a", "b <|endoftext", None])
    assert documents.cut_at(data, END, tmp_path)["train"] is data["train"]


def test_large_texts_are_cut_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BYTES_PER_SLICE", 200)
    rows = [f"{story}\n{END}\n{story}" for story in STORIES]
    assert cut(rows, tmp_path) == [text for story in STORIES for text in (f"{story}\n", story)]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UnavailableError, match="TOOLKIT_CACHE"):
        cut([END], tmp_path / "cache")


def test_texts_that_cannot_fill_a_block_whatever_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "DOCUMENTS_PER_DIGEST", 2)
    held_out = Dataset.from_dict({"text": ["ä" * 600, "", None]})
    data = DatasetDict(train=Dataset.from_dict({"text": ["a" * 900, "b" * 900, "c" * 900]}), validation=held_out)
    most = 2 * 1200 + 3 * 8
    documents.check_holds_block(data, most)
    told = "the held-out documents have 1,200 bytes of text together, fewer than one block of 2,425 tokens"
    with pytest.raises(OptionError, match=told) as error:
        documents.check_holds_block(data, most + 1)
    assert error.value.option == "block_size"


def test_the_texts_that_count_are_those_that_were_drawn() -> None:
    data = split(["a" * 900, "b" * 900])
    documents.check_holds_block(data, 3000)
    with pytest.raises(OptionError, match="900 bytes"):
        documents.check_holds_block(DatasetDict(train=data["train"].select([1])), 3000)


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """A recipe for one text file with end tokens between its documents."""
    texts(tmp_path).write_text(f"\n{END}\n".join(STORIES) + "\n")
    return write_recipe(tmp_path, dataset={"sample_by": "document", "eval_fraction": 0.25})


def loaded(recipe: Path, *overrides: str) -> DatasetDict:
    chosen = resolved(recipe, *overrides)
    context = replace(context_of(chosen, recipe.parent), cache=recipe.parent / "cache")
    return documents_of(chosen.recipe.dataset, chosen.recipe, context)[0]


def test_text_files_are_cut_before_a_share_is_held_out(stories: Path) -> None:
    data = loaded(stories)
    assert {name: len(rows) for name, rows in data.items()} == {"train": 30, "validation": 10}
    found = sorted(text.strip() for rows in data.values() for text in rows["text"][:])
    assert found == sorted(STORIES)
    with pytest.raises(RecipeError, match="of a single document leaves one split empty"):
        loaded(stories, "dataset.cut_at_end_token=false")


def test_formats_with_documents_of_their_own_are_cut_if_asked(stories: Path) -> None:
    rows = stories.parent / "rows.csv"
    rows.write_text(f'text\n"a\n{END}\nb"\nc\n')
    overrides = [f"dataset.files={rows}", "dataset.eval_fraction=null"]
    assert loaded(stories, *overrides)["train"]["text"][:] == [f"a\n{END}\nb", "c"]
    assert loaded(stories, *overrides, "dataset.cut_at_end_token=true")["train"]["text"][:] == ["a\n", "b", "c"]


def test_words_are_filled_in_on_documents_that_are_cut_too(stories: Path) -> None:
    """The end token is the tokenizer's, where the objective closes documents with another."""
    objective = "objective={plugin: masked-lm, block_size: 16}"
    assert len(loaded(stories, objective)["train"]) == 30


def test_the_account_counts_cuts_and_special_tokens_in_the_text(run_context: RunContext, tmp_path: Path) -> None:
    rows: list[Any] = [f"{STORIES[0]} <|cls|>\n{END}\n{STORIES[1]}", *STORIES[2:]]
    masked = ByteBPE(vocab_size=300).build(rows, replace(run_context, task="masked-lm"))
    packed = [
        packing.prepare(data, documents.contents_of(data), masked, CausalLM(block_size=16), run_context).account
        for data in (documents.cut_at(split(rows), END, tmp_path), split(rows))
    ]
    assert [(account.train.documents, account.train.documents_cut) for account in packed] == [(40, 1), (39, 0)]
    assert [account.train.special_tokens for account in packed] == [{"<|cls|>": 1}, {"<|cls|>": 1, END: 1}]
    assert packed[0].key != packed[1].key


def test_the_tokenizer_does_not_learn_the_letters_of_special_tokens(run_context: RunContext) -> None:
    corpus = [f"{story}{END}\n" for story in STORIES] * 3
    tokenizer = ByteBPE(vocab_size=500).build(corpus, run_context)
    learned = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    assert [token for token in learned if "|" in token] == ["|"]


def test_a_text_that_is_not_utf8_is_told_with_what_stands_around() -> None:
    import pyarrow as pa

    binary = pa.array([b"fine"] * 12 + [b"a caf\xe9 in Paris"])
    rows = Dataset(pa.table({"text": pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())}))
    with pytest.raises(OptionError, match=r"is not valid UTF-8, .*: \.\.\.'a caf\ufffd in Paris'"):
        documents.contents_of(DatasetDict(train=rows))


def test_a_share_that_is_too_small_names_one_that_is_not(stories: Path) -> None:
    with pytest.raises(RecipeError, match=r"0\.001 of 40 documents leaves one split empty; use 0\.025, "):
        loaded(stories, "dataset.eval_fraction=0.001")
