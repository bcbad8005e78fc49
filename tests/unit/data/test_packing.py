"""Every token is accounted for: in order, once, whole documents with their ends; and no cache entry is stale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from datasets import Dataset, DatasetDict

from tests.tiny import WORDS, texts, with_holes
from toolkit.api import RunContext
from toolkit.data import encoding, packing
from toolkit.data.documents import contents_of
from toolkit.data.packed_dataset import PackedBlocks
from toolkit.errors import OptionError
from toolkit_plugins.objective.causal_lm import CausalLM, positions_within_documents
from toolkit_plugins.objective.masked_lm import MaskedLM
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

DOCUMENTS = [" ".join(WORDS[:count]) for count in range(1, 20)] * 3


@pytest.fixture
def tokenizer(run_context: RunContext) -> Any:
    return ByteBPE(vocab_size=300).build(DOCUMENTS, run_context)


def split(documents: list[str]) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict({"text": documents}))


def pack(data: DatasetDict, tokenizer: Any, run: RunContext, **options: Any) -> packing.PackedData:
    return packing.prepare(data, contents_of(data), tokenizer, CausalLM(**{"block_size": 16, **options}), run)


def flat(blocks: PackedBlocks) -> list[int]:
    return [int(token) for index in range(len(blocks)) for token in blocks[index]["input_ids"]]


def test_the_blocks_are_the_documents_end_to_end(tokenizer: Any, run_context: RunContext) -> None:
    packed = pack(split(DOCUMENTS), tokenizer, run_context)
    line = [token for text in DOCUMENTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    kept = len(line) // 16 * 16
    assert flat(packed.train) == line[:kept]
    account = packed.account.train
    assert (account.documents, account.tokens, account.blocks) == (len(DOCUMENTS), len(line), kept // 16)
    assert account.tokens == account.tokens_in_blocks + account.tokens_dropped
    assert account.tokens_dropped == len(line) - kept < 16
    assert account.characters == sum(map(len, DOCUMENTS))
    assert account.padding == 0


def test_ends_are_learned_but_where_nothing_predicts_them(tokenizer: Any, run_context: RunContext) -> None:
    packed = pack(split(DOCUMENTS), tokenizer, run_context)
    ends = [index for index, token in enumerate(flat(packed.train)) if token == tokenizer.eos_token_id]
    assert packed.account.train.ends_learned == sum(1 for index in ends if index % 16 != 0) > 0


def test_empty_documents_are_left_out_and_counted(tokenizer: Any, run_context: RunContext) -> None:
    packed = pack(split(["", *DOCUMENTS, ""]), tokenizer, run_context)
    assert packed.account.train.empty_documents == 2
    assert packed.account.train.documents == len(DOCUMENTS)
    assert flat(packed.train) == flat(pack(split(DOCUMENTS), tokenizer, run_context).train)


def test_ids_far_above_the_count_of_tokens_are_stored_as_they_are(run_context: RunContext) -> None:
    tokenizer = with_holes(70_000)
    packed = pack(split(DOCUMENTS), tokenizer, run_context)
    line = [token for text in DOCUMENTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert max(line) > 2**16 > len(tokenizer)
    assert flat(packed.train) == line[: len(line) // 16 * 16]
    assert "[EOS]" in packed.account.excerpt


def test_a_document_in_pieces_gives_the_same_blocks(
    tokenizer: Any, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = split(["", " ".join(DOCUMENTS), *DOCUMENTS])
    whole = pack(data, tokenizer, run_context)
    monkeypatch.setattr(encoding.pieces, "__defaults__", (50,))
    monkeypatch.setattr(encoding, "CHARACTERS_PER_PIECE", 50)
    monkeypatch.setattr(encoding, "PIECES_PER_BATCH", 3)
    in_pieces = pack(data, tokenizer, replace(run_context, cache=run_context.cache / "other"))
    assert flat(in_pieces.train) == flat(whole.train)
    assert in_pieces.account == whole.account
    blocks = range(len(whole.train))
    assert in_pieces.train.documents
    assert whole.train.documents
    assert [in_pieces.train.documents.in_blocks([block]) for block in blocks] == [
        whole.train.documents.in_blocks([block]) for block in blocks
    ]


def test_a_tokenizer_that_gives_other_ids_each_time_is_refused(tokenizer: Any, run_context: RunContext) -> None:
    tokenizer.backend_tokenizer.model.dropout = 0.5
    with pytest.raises(OptionError, match="a second encoding of the first training documents") as caught:
        pack(split(DOCUMENTS), tokenizer, run_context)
    assert caught.value.option == "tokenizer"


def test_a_text_that_the_tokenizer_cannot_encode_is_told(run_context: RunContext) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    knows_nothing: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[EOS]": 0}, unk_token="[UNK]")), eos_token="[EOS]"
    )
    with pytest.raises(
        OptionError, match=r"cannot encode a text in the batch of documents from number 1 on: .*UNK"
    ) as caught:
        pack(split(DOCUMENTS), knows_nothing, run_context)
    assert caught.value.option == "tokenizer"


def test_preparation_tells_how_far_it_is(tokenizer: Any, run_context: RunContext) -> None:
    told: list[tuple[Any, ...]] = []

    def progress(phase: str, done: int, total: int | None = None, *, unit: str, detail: str = "") -> None:
        told.append((phase, done, total, unit))

    data = DatasetDict(train=split(DOCUMENTS)["train"], validation=split(DOCUMENTS[:30])["train"])
    packing.prepare(
        data, contents_of(data, progress), tokenizer, CausalLM(block_size=16), replace(run_context, progress=progress)
    )
    characters = sum(map(len, [*DOCUMENTS, *DOCUMENTS[:30]]))
    assert ("hashing", len(DOCUMENTS) + 30, len(DOCUMENTS) + 30, "documents") in told
    assert ("tokenizing", characters, characters, "characters") in told
    assert told[-1] == ("inspecting", len(DOCUMENTS), len(DOCUMENTS), "documents")


def test_masked_words_stand_between_cls_and_sep(run_context: RunContext, tmp_path: Path) -> None:
    masked = replace(run_context, task="masked-lm")
    tokenizer = ByteBPE(vocab_size=300).build(DOCUMENTS, masked)
    data = split(DOCUMENTS)
    packed = packing.prepare(data, contents_of(data), tokenizer, MaskedLM(block_size=16), masked)
    for index in range(len(packed.train)):
        block = packed.train[index]["input_ids"]
        assert (block[0], block[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    account = packed.account.train
    assert account.tokens == account.tokens_in_blocks + account.tokens_dropped
    assert account.frame_tokens == 2 * account.blocks
    assert account.tokens_in_blocks + account.frame_tokens == 16 * account.blocks


def test_masked_lm_draws_no_id_that_is_no_token() -> None:
    tokenizer = with_holes(400)
    collate = MaskedLM(block_size=512, mlm_probability=0.9).collator(tokenizer)
    batch = collate([{"input_ids": numpy.full(512, 400), "seed": seed} for seed in range(4)])
    drawn = set(batch["input_ids"].unique().tolist())
    assert len(drawn) > 10
    assert drawn <= {*tokenizer.get_vocab().values()}


CHANGES: dict[str, Callable[[DatasetDict], tuple[DatasetDict, dict[str, Any]]]] = {
    "a document": lambda data: (split([*DOCUMENTS[:-1], "another end"]), {}),
    "the order": lambda data: (split(DOCUMENTS[::-1]), {}),
    "where a document begins": lambda data: (
        split([DOCUMENTS[0] + DOCUMENTS[1][:3], DOCUMENTS[1][3:], *DOCUMENTS[2:]]),
        {},
    ),
    "where a document ends": lambda data: (split([" ".join(DOCUMENTS[:2]), *DOCUMENTS[2:]]), {}),
    "the block size": lambda data: (data, {"block_size": 8}),
    "the split": lambda data: (DatasetDict(train=data["train"], validation=data["train"]), {}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_never_meets_a_stale_cache(tokenizer: Any, run_context: RunContext, change: Any) -> None:
    first = pack(split(DOCUMENTS), tokenizer, run_context)
    assert not first.from_cache
    assert pack(split(DOCUMENTS), tokenizer, run_context).from_cache
    data, options = change(split(DOCUMENTS))
    assert not pack(data, tokenizer, run_context, **options).from_cache


def test_another_tokenizer_never_meets_a_stale_cache(tokenizer: Any, run_context: RunContext) -> None:
    pack(split(DOCUMENTS), tokenizer, run_context)
    other = ByteBPE(vocab_size=290).build(DOCUMENTS, run_context)
    assert not pack(split(DOCUMENTS), other, run_context).from_cache


@pytest.mark.parametrize("name", ["train.tokens", "account.json"])
def test_a_damaged_cache_entry_is_made_again(tokenizer: Any, run_context: RunContext, name: str) -> None:
    first = flat(pack(split(DOCUMENTS), tokenizer, run_context).train)
    (file,) = run_context.cache.rglob(name)
    file.write_bytes(file.read_bytes()[:-4])
    again = pack(split(DOCUMENTS), tokenizer, run_context)
    assert not again.from_cache
    assert flat(again.train) == first


def test_blocks_that_are_not_what_the_tokenizer_says_are_made_again(tokenizer: Any, run_context: RunContext) -> None:
    first = flat(pack(split(DOCUMENTS), tokenizer, run_context).train)
    (file,) = run_context.cache.rglob("train.tokens")
    file.write_bytes(b"\1" * 32 + file.read_bytes()[32:])
    again = pack(split(DOCUMENTS), tokenizer, run_context)
    assert not again.from_cache
    assert flat(again.train) == first


def test_nothing_half_written_stays_in_the_cache(tokenizer: Any, run_context: RunContext) -> None:
    with pytest.raises(OptionError, match="fewer than one block"):
        pack(split(["short"]), tokenizer, run_context)
    assert list((run_context.cache / "tokens").iterdir()) == []


def test_a_long_document_is_cut_where_words_are_cut(tokenizer: Any, tmp_path: Path) -> None:
    file = texts(tmp_path, lines=400)
    text = file.read_text(encoding="utf-8").replace("\n", " ")
    parts = list(encoding.pieces(text, size=1000))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 1000
    ids = [token for part in parts for token in tokenizer(part)["input_ids"]]
    assert ids == tokenizer(text)["input_ids"]
    assert "".join(encoding.pieces("x" * 5000, size=1000)) == "x" * 5000


def test_positions_start_again_after_each_end() -> None:
    import torch

    ids = torch.tensor([[5, 6, 0, 7, 8, 9, 0, 0, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    assert positions_within_documents(ids, 0).tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 0], [0, 0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_blocks_seed_differs_by_run_epoch_and_block_and_nothing_else() -> None:
    tokens = numpy.arange(64, dtype="uint16")
    one, other = PackedBlocks(tokens, 16, seed=1), PackedBlocks(tokens, 16, seed=2)
    seeds = {one[0]["seed"], one[1]["seed"], other[0]["seed"]}
    one.set_epoch(1)
    seeds.add(one[0]["seed"])
    assert len(seeds) == 4
    one.set_epoch(0)
    assert one[0]["seed"] in seeds
