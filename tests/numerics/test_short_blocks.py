"""`training.warmup_block_size`: the first steps are trained on blocks cut into pieces, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import assert_same_run, callback, losses, resolved, train, train_in_two, write_recipe, write_tiny_bert
from toolkit.errors import RecipeError
from toolkit.events import Message, StepDone
from toolkit.training.short_blocks import ShortBlocks

SHORT = {"warmup_block_size": 8, "warmup_block_steps": 0.5}
SEEN = """
def on_train_begin(self, args, state, control, model=None, **kwargs):
    import json
    from pathlib import Path

    def seen(module, words, named, output):
        ids, logits = named["input_ids"], output.logits.detach().float()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        line = [state.global_step + 1 if module.training else None, list(ids.shape), loss.item()]
        with Path(args.output_dir, "seen").open("a") as file:
            print(json.dumps(line), file=file)

    model.register_forward_hook(seen, with_kwargs=True)
"""

WITH_A_MASK = '''
"""Causal language modeling with a mask of its own."""

from toolkit.api import Objective


class Masked(Objective):
    """One mask for each block."""

    task = "causal-lm"

    def document_end(self, tokenizer):
        return (tokenizer.eos_token_id,)

    def collator(self, tokenizer):
        def collate(blocks):
            import numpy
            import torch

            ids = torch.from_numpy(numpy.stack([block["input_ids"] for block in blocks]))
            mask = torch.ones(len(ids), 1, ids.shape[1], ids.shape[1]).tril()
            return {"input_ids": ids, "labels": ids.clone(), "attention_mask": mask}

        return collate
'''


def short_recipe(folder: Path, **sections: Any) -> Path:
    training = SHORT | sections.pop("training", {})
    return write_recipe(folder, training=training, **{"model": {"dropout": 0.0}, **sections})


def test_the_first_steps_predict_within_pieces_and_the_others_within_blocks(tmp_path: Path) -> None:
    callback(tmp_path, "seen", SEEN)
    recipe = short_recipe(tmp_path, callbacks=["seen"], plugin_paths=["plugins"])
    result, events = train(recipe)
    lines = list(map(json.loads, (result.folder / "checkpoints" / "seen").read_text().splitlines()))
    trained = [line for line in lines if line[0]]
    assert [(step, shape) for step, shape, _ in trained] == [
        (step, [16, 8] if step <= 4 else [4, 32]) for step in range(1, 9)
    ]
    assert {shape[1] for step, shape, _ in lines if step is None} == {32, 1}  # evaluated on whole blocks; and a sample
    logged = [loss for _, kind, loss in losses(result.folder) if kind == "train"]
    assert logged == pytest.approx([loss for _, _, loss in trained], rel=1e-5)
    (last,) = (event for event in events if isinstance(event, StepDone) and event.step == 8)
    assert last.tokens_seen == 8 * 4 * 32
    told = [event.text for event in events if isinstance(event, Message)]
    assert "up to step 4, blocks are cut into sequences of 8 tokens" in told


def test_stopped_in_them_or_after_them_it_ends_the_same(tmp_path: Path) -> None:
    recipe = short_recipe(tmp_path, model={"dropout": 0.1})
    whole, _ = train(recipe, name="whole")
    for step in (2, 4, 6):
        assert_same_run(whole.folder, train_in_two(recipe, name=f"at-{step}", stop_after=step).folder)


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"micro_batch_size": 2}},
        {"memory": ["chunked-loss"]},
        {"memory": ["gradient-checkpointing"]},
        {"memory": [{"plugin": "small-batch", "micro_batch_size": 1}, "chunked-loss"]},
    ],
    ids=str,
)
def test_what_is_exact_is_exact_with_them(tmp_path: Path, sections: dict[str, Any]) -> None:
    whole, _ = train(short_recipe(tmp_path), name="whole")
    other, _ = train(short_recipe(tmp_path, **sections), name="other")
    for one, two in zip(losses(whole.folder), losses(other.folder), strict=True):
        assert two[:2] == one[:2]
        assert two[2] == pytest.approx(one[2], rel=2e-5)


def test_documents_stay_apart_and_padding_counts_for_nothing(tmp_path: Path) -> None:
    objective = {"plugin": "causal-lm", "block_size": 32, "document_mask": True, "packing": "best-fit"}
    masked, _ = train(short_recipe(tmp_path, objective=objective), name="masked")
    write_tiny_bert(tmp_path / "plugins", dropout=0.0)
    objective = {"plugin": "masked-lm", "block_size": 32, "packing": "best-fit"}
    sections: dict[str, Any] = {"model": "tiny-bert", "objective": objective, "plugin_paths": ["plugins"]}
    bert, _ = train(short_recipe(tmp_path, **sections), name="bert")
    for run in (masked, bert):
        found = [loss for _, _, loss in losses(run.folder)]
        assert all(3 < loss < 7 for loss in found), found


@pytest.mark.parametrize("size", [32, 9, 64])
def test_pieces_that_a_block_does_not_have_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(RecipeError, match=rf"shorter pieces of {size}; into those of 2, 4, 8, 16 they can"):
        resolved(short_recipe(tmp_path), f"training.warmup_block_size={size}")
    with pytest.raises(RecipeError, match="warmup_block_steps has no effect without warmup_block_size"):
        resolved(short_recipe(tmp_path), "training.warmup_block_size=null")


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plugins" / "objective").mkdir(parents=True)
    (tmp_path / "plugins" / "objective" / "masked.py").write_text(WITH_A_MASK, encoding="utf-8")
    recipe = short_recipe(tmp_path, objective={"plugin": "masked", "block_size": 32}, plugin_paths=["plugins"])
    with pytest.raises(
        RecipeError, match=r"warmup_block_size: a batch has attention_mask, which has not one value for"
    ):
        train(recipe)


def test_attention_within_pieces_counts_as_such() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=1, vocab_size=32))
    of_step = ShortBlocks(length=8, steps=4).flops_per_token(model, 32)
    assert of_step(5) - of_step(4) == 12 * 16 * (32 - 8)
    assert of_step(1) == of_step(4)
