"""Best-fit packing: no document that fits into a block is cut, no token is lost, and padding changes no number."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset, DatasetDict

import toolkit
from tests.tiny import WORDS, losses, train, with_holes, write_recipe, write_tiny_bert
from toolkit.api import Objective, RunContext
from toolkit.data import best_fit, packing
from toolkit.data.documents import contents_of
from toolkit.data.packed_dataset import IndexedCollator, PackedBlocks
from toolkit.errors import InterruptedRun
from toolkit.report import page
from toolkit.report.lines import told
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.files import read_json
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.objective.masked_lm import MaskedLM
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

BLOCK = 16


def documents(count: int = 300) -> list[str]:
    draw = random.Random(0)
    return ["", *(" ".join(draw.choices(WORDS, k=draw.choice([1, 2, 3, 5, 8, 40]))) for _ in range(count)), ""]


@pytest.fixture
def tokenizer(run_context: RunContext) -> Any:
    return ByteBPE(vocab_size=300).build(documents(), run_context)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_fit, "WINDOW_TOKENS", 200)
    monkeypatch.setattr(best_fit, "MIN_WINDOW_BLOCKS", 1)


def pack(texts: list[str], tokenizer: Any, run: RunContext, objective: Objective) -> packing.PackedData:
    data = DatasetDict(train=Dataset.from_dict({"text": texts}))
    return packing.prepare(data, contents_of(data), tokenizer, objective, run)


def causal(**options: Any) -> CausalLM:
    return CausalLM(**{"block_size": BLOCK, "packing": "best-fit", **options})


def parts_by_row(blocks: PackedBlocks, *, before: int = 0, after: int = 0) -> dict[int, list[list[int]]]:
    """The parts of each document as its index places them, in the order of the blocks."""
    assert blocks.documents
    assert blocks.filled is not None
    room = blocks.documents.tokens_per_block
    found: dict[int, list[list[int]]] = {}
    places = [*blocks.documents.offsets.tolist(), len(blocks) * room]
    for row, (start, following) in zip(blocks.documents.rows.tolist(), pairwise(places), strict=True):
        index, at = divmod(start, room)
        stop = min(following - index * room, int(blocks.filled[index]) - before - after)
        content = blocks[index]["input_ids"][before:].tolist()
        found.setdefault(row, []).append(content[at:stop])
    return found


@pytest.mark.parametrize("windows", ["one", "many"])
def test_every_document_is_whole_or_in_pieces_of_a_block_and_nothing_is_lost(
    tokenizer: Any, run_context: RunContext, windows: str, request: pytest.FixtureRequest
) -> None:
    if windows == "many":
        request.getfixturevalue("small_windows")
    texts = documents()
    packed = pack(texts, tokenizer, run_context, causal())
    found = parts_by_row(packed.train)
    tokens = 0
    for row, text in enumerate(texts):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id] if text else []
        tokens += len(ids)
        pieces = [ids[at : at + BLOCK] for at in range(0, len(ids), BLOCK)]
        assert sorted(found.get(row, [])) == sorted(pieces)
    account = packed.account.train
    assert account.tokens == account.tokens_in_blocks == tokens
    assert account.tokens_dropped == 0
    assert account.padding_tokens == len(packed.train) * BLOCK - tokens > 0
    assert account.documents == len(found) == len(texts) - 2
    assert account.documents_in_several_blocks == sum(len(parts) > 1 for parts in found.values()) > 0
    for index in range(len(packed.train)):
        assert packed.train.documents
        rows = packed.train.documents.in_blocks([index])
        block = packed.train[index]
        assert rows
        assert all(any(set(part) <= set(block["input_ids"].tolist()) for part in found[row]) for row in rows)


def test_best_fit_needs_few_bins_and_keeps_the_order_of_their_first_items() -> None:
    draw = random.Random(0)
    sizes = [draw.randint(1, 100) for _ in range(2000)]
    bins = best_fit.best_fit(sizes, 100)
    assert sorted(item for items in bins for item in items) == list(range(2000))
    assert max(sum(sizes[item] for item in items) for items in bins) <= 100
    assert len(bins) <= 1.01 * sum(sizes) / 100 + 1
    assert bins == sorted(map(sorted, bins))
    assert best_fit.best_fit([60, 50, 40, 30, 20], 100) == [[0, 2], [1, 3, 4]]
    assert best_fit.best_fit([], 10) == []


def test_a_border_cuts_few_documents_where_the_plain_line_cuts_many(tokenizer: Any, run_context: RunContext) -> None:
    texts = documents()
    line = pack(texts, tokenizer, run_context, causal(packing="concatenate")).account.train
    whole = pack(texts, tokenizer, run_context, causal()).account.train
    longer = sum(len(tokenizer(text)["input_ids"]) >= BLOCK for text in texts)
    assert whole.documents_in_several_blocks == longer
    assert line.documents_in_several_blocks is not None
    assert line.documents_in_several_blocks > 1.5 * longer
    assert line.padding_tokens == 0


def test_the_second_preparation_finds_the_first_and_a_changed_text_is_seen(
    tokenizer: Any, run_context: RunContext, small_windows: None
) -> None:
    texts = documents()
    first = pack(texts, tokenizer, run_context, causal())
    again = pack(texts, tokenizer, run_context, causal())
    assert (first.from_cache, again.from_cache) == (False, True)
    written = numpy.array(first.train.tokens)
    assert numpy.array_equal(written, again.train.tokens)
    file = run_context.cache / "tokens" / first.account.key / "train.tokens"
    file.write_bytes(b"\1" * 32 + file.read_bytes()[32:])
    mended = pack(texts, tokenizer, run_context, causal())
    assert not mended.from_cache
    assert numpy.array_equal(written, mended.train.tokens)
    assert pack(texts, tokenizer, run_context, causal(packing="concatenate")).account.key != first.account.key


def test_padding_has_no_label_and_no_document_end_in_it_is_counted(tokenizer: Any, run_context: RunContext) -> None:
    packed = pack(documents(), tokenizer, run_context, causal())
    batch = IndexedCollator(causal(), tokenizer)([packed.train[index] for index in range(len(packed.train))])
    assert packed.train.filled is not None
    assert (batch["labels"] != -100).sum(1).tolist() == packed.train.filled.tolist()
    ends = int((batch["labels"][:, 1:] == tokenizer.eos_token_id).sum())
    assert packed.account.train.ends_learned == ends <= packed.account.train.documents
    assert "attention_mask" not in batch


def test_what_stands_in_the_padding_changes_no_logit_of_a_masked_model(run_context: RunContext) -> None:
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = with_holes(3)
    tokenizer.cls_token, tokenizer.sep_token = "[UNK]", "[EOS]"
    objective = MaskedLM(block_size=BLOCK, packing="best-fit")
    packed = pack(documents(20), tokenizer, run_context, objective)
    found = parts_by_row(packed.train, before=1, after=1)
    assert all(part[-1] == tokenizer.sep_token_id for parts in found.values() for part in parts[-1:] if len(parts) == 1)
    blocks = [packed.train[index] for index in range(len(packed.train))]
    batch = IndexedCollator(objective, tokenizer)(blocks)
    hidden = batch["attention_mask"] == 0
    assert hidden.any()
    assert hidden.sum(1).tolist() == [BLOCK - block["filled"] for block in blocks]
    assert (batch["labels"][hidden] == -100).all()
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ).eval()
    other = torch.where(hidden, 5, batch["input_ids"])
    with torch.no_grad():
        one, two = (
            model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[~hidden]
            for ids in (batch["input_ids"], other)
        )
    assert torch.equal(one, two)


def test_a_run_learns_resumes_and_tells(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, objective={"packing": "best-fit", "document_mask": True})
    with pytest.raises(InterruptedRun):
        train(recipe, name="halves", stop_after=4)
    halves, _ = train(recipe, name="halves")
    whole, events = train(recipe, name="whole")
    assert losses(halves.folder) == losses(whole.folder) != []
    data = read_json(whole.folder / "data.json")
    assert data["packing"] == "best-fit"
    assert data["train"]["tokens_dropped"] == 0
    assert any("of the documents cut at the end of one" in line for event in events for line in told(event))
    report = page.render(RunDirectory(whole.folder))
    assert "documents cut at the end of a block" in report
    assert "looked wrong before training" in report
    assert report.index("<h2>Documents</h2>") < report.index("<h2>Curves</h2>") < report.index("<h2>Data</h2>")


@pytest.mark.slow
def test_a_masked_model_trains_on_padded_blocks_and_is_planned(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    write_tiny_bert(plugins)
    recipe = write_recipe(
        tmp_path,
        plugin_paths=[str(plugins)],
        model={"plugin": "tiny-bert"},
        tokenizer={"plugin": "byte-bpe", "vocab_size": 300},
        objective={"plugin": "masked-lm", "block_size": 32, "packing": "best-fit"},
    )
    planned = toolkit.plan(recipe)
    assert planned.peak_bytes > 0
    result, _ = train(recipe)
    assert result.steps == 8
