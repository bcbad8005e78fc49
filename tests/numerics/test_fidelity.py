"""What a memory strategy says of itself is true: `exact` gives the numbers of the plain run."""

from pathlib import Path

import pytest

from tests.tiny import SUM_ORDER, assert_same_run, losses, train, weights, write_recipe, write_tiny_bert
from toolkit_plugins.memory.frozen_layers import layers_of


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_gradient_checkpointing_is_bit_identical(tmp_path: Path, every: int) -> None:
    recipe = write_recipe(tmp_path)
    plain, _ = train(recipe, name="plain")
    checkpointed, _ = train(recipe, f"memory=[{{plugin: gradient-checkpointing, every: {every}}}]", name="checkpointed")
    assert_same_run(plain.folder, checkpointed.folder)


def test_every_other_layer_is_checkpointed(tmp_path: Path) -> None:
    from toolkit.testing.bench import Bench
    from toolkit.training.strategies import checkpoint_layers

    for family in ("gpt2", "llama", "bert"):
        model = Bench(tmp_path, rehearsal=False).model(family)
        checkpoint_layers(model, every=2)
        flags = [module.gradient_checkpointing for module in layers_of(model)]
        assert flags == [True, False], family


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_small_batch_is_exact_up_to_the_order_of_sums(tmp_path: Path, micro_batch_size: int) -> None:
    # Without dropout: its masks are drawn per micro-batch, so they are others. The epoch's last step is not full.
    recipe = write_recipe(tmp_path, dataset={"max_samples": 60}, model={"dropout": 0.0})
    plain, _ = train(recipe, name="plain")
    small, _ = train(recipe, f"memory=[{{plugin: small-batch, micro_batch_size: {micro_batch_size}}}]", name="small")
    assert plain.steps == small.steps
    for one, other in zip(losses(plain.folder), losses(small.folder), strict=True):
        assert one[:2] == other[:2]
        assert other[2] == pytest.approx(one[2], rel=SUM_ORDER)
    first, second = weights(plain.folder), weights(small.folder)
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4


def test_small_batch_is_exact_for_masked_words_too(tmp_path: Path) -> None:
    """The number of hidden tokens differs from block to block, and BERT's own loss is a mean per micro-batch."""
    write_tiny_bert(tmp_path / "plugins", dropout=0.0)
    objective = {"plugin": "masked-lm", "block_size": 32}
    recipe = write_recipe(tmp_path, model="tiny-bert", objective=objective, plugin_paths=["plugins"])
    plain, _ = train(recipe, name="plain")
    small, _ = train(recipe, "memory=[{plugin: small-batch, micro_batch_size: 1}]", name="small")
    assert [loss for *_, loss in losses(small.folder)[:1]] == pytest.approx([losses(plain.folder)[0][2]], rel=SUM_ORDER)
    first, second = weights(plain.folder), weights(small.folder)
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4


def test_the_loss_is_the_models_own(tmp_path: Path) -> None:
    """What the trainer computes from the logits is what the model would have returned."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from toolkit.training.loss import token_mean_loss

    result, _ = train(write_recipe(tmp_path, training={"max_steps": 1}))
    model = AutoModelForCausalLM.from_pretrained(result.folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "model")
    ids = torch.tensor([tokenizer("the cat sat on a mat while birds sang")["input_ids"]])
    with torch.no_grad():
        outputs = model(input_ids=ids, labels=ids)
    assert float(token_mean_loss("causal-lm")(outputs, ids)) == pytest.approx(float(outputs.loss), rel=1e-6)
