"""The held-out loss is that of the tokens, however they are cut into batches."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.tiny import TINY_BERT, resolved, train, write_recipe
from toolkit.training.components import assemble, context_of


def micro(size: int) -> str:
    return f"memory=[{{plugin: small-batch, micro_batch_size: {size}}}]"


def test_it_is_the_mean_over_the_predicted_tokens(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    # Without document ends, blocks differ in how many tokens they predict; the last batch is not full.
    recipe = write_recipe(tmp_path, training={"max_steps": 2, "eval_steps": 2, "global_batch_size": 12})
    result, _ = train(recipe, micro(3), name="threes")
    model = AutoModelForCausalLM.from_pretrained(result.folder / "model").eval()
    recipe_ = resolved(recipe)
    components = assemble(recipe_, context_of(recipe_, tmp_path / "again"))
    validation = components.data.validation
    assert validation is not None
    assert len(validation) % 3
    collate = components.objective.collator(components.tokenizer)
    total, tokens = 0.0, 0
    for block in range(len(validation)):
        batch = collate([validation[block]])
        labels = batch.pop("labels")[:, 1:].reshape(-1)
        with torch.no_grad():
            logits = model(**{name: batch[name] for name in ("input_ids", "position_ids") if name in batch}).logits
        total += cross_entropy(logits[0, :-1].float(), labels, reduction="sum").item()
        tokens += int((labels != -100).sum())
    assert result.eval_loss == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("block_size", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_of_masked_tokens_too_which_differ_from_batch_to_batch(tmp_path: Path, block_size: int) -> None:
    (tmp_path / "plugins/model").mkdir(parents=True)
    (tmp_path / "plugins/model/tiny_bert.py").write_text(TINY_BERT.format(dropout=0.0), encoding="utf-8")
    recipe = write_recipe(
        tmp_path, model={"plugin": "tiny-bert"}, plugin_paths=["plugins"], training={"max_steps": 1, "eval_steps": 1},
        objective={"plugin": "masked-lm", "block_size": block_size},
    )  # fmt: skip
    # Alone, some blocks of 8 tokens have none that is predicted.
    told = [train(recipe, micro(size), name=f"of-{size}")[0].eval_loss for size in (1, 2, 4)]
    assert told == pytest.approx([told[0]] * 3, rel=1e-6)
