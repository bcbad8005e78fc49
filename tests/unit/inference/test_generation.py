"""Texts of masked models and of adapters; of plain ones see test_evaluation, which has a run of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.tiny import train, write_recipe
from toolkit.errors import UsageError
from toolkit.inference.evaluation import evaluate
from toolkit.inference.generation import fill_mask_text, generate, load_model
from toolkit.storage.run_directory import RunDirectory

GPT2, BERT = "openai-community/gpt2", "google-bert/bert-base-uncased"
OPTIONS = {"max_new_tokens": 6, "temperature": 0.0, "top_k": None, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("generated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(found / "cache"))
        yield found


@pytest.fixture(scope="module")
def masked(folder: Path, hub: HubServer) -> RunDirectory:
    recipe = write_recipe(
        folder,
        "masked",
        tokenizer={"plugin": "pretrained", "path": BERT},
        model={"plugin": "pretrained", "path": BERT},
        objective={"plugin": "masked-lm", "block_size": 32},
    )
    return RunDirectory(train(recipe, "training.max_steps=2")[0].folder)


@pytest.fixture(scope="module")
def adapted(folder: Path, hub: HubServer) -> RunDirectory:
    recipe = write_recipe(
        folder,
        "adapted",
        tokenizer={"plugin": "pretrained", "path": GPT2},
        model={"plugin": "pretrained", "path": GPT2},
        memory=[{"plugin": "lora", "r": 2}],
        training={"max_steps": 4, "learning_rate": 0.1},
    )
    return RunDirectory(train(recipe)[0].folder)


@pytest.mark.parametrize("prompt", ["the cat [MASK] on a mat", "the cat {mask} on a mat"])
def test_a_masked_model_fills_in_with_the_likeliest_words(masked: RunDirectory, prompt: str) -> None:
    import torch

    text = generate(masked, prompt=prompt, **OPTIONS)
    sentence, _, guesses = text.partition(": ")
    assert sentence == "the cat [MASK] on a mat"
    model, tokenizer = load_model(masked)
    ids = tokenizer(prompt.replace("{mask}", "[MASK]"), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, ids[0].tolist().index(tokenizer.mask_token_id)]
    likeliest = [tokenizer.decode([int(token)]) for token in logits.topk(5).indices]
    assert [guess.rpartition(" (")[0] for guess in guesses.split(", ")] == likeliest


def test_a_masked_models_own_sentence_is_its_sample(masked: RunDirectory) -> None:
    model, tokenizer = load_model(masked)
    assert fill_mask_text(model, tokenizer) == masked.record["results"]["sample"]


def test_a_prompt_without_a_mask_is_refused_with_an_example(masked: RunDirectory) -> None:
    with pytest.raises(UsageError, match=r"write \[MASK\] for the missing word, as in"):
        generate(masked, prompt="the cat sat", **OPTIONS)


def test_a_masked_model_has_no_perplexity(masked: RunDirectory) -> None:
    with pytest.raises(UsageError, match="perplexity needs a causal one"):
        evaluate(masked, listener=[].append)


def test_an_adapter_is_loaded_on_its_base(adapted: RunDirectory) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model(adapted)
    assert not (adapted.model / "model.safetensors").exists()
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(GPT2).eval()(input_ids=ids).logits
        assert not torch.allclose(model(input_ids=ids).logits, base, atol=1e-3)
    assert generate(adapted, prompt="the cat", **OPTIONS).startswith("the cat")


def test_an_adapter_is_evaluated_with_what_it_learned(adapted: RunDirectory) -> None:
    """Scored document by document it cannot equal the loss of packed blocks, but is near it."""
    reached = evaluate(adapted, listener=[].append)
    assert reached.token_perplexity == pytest.approx(adapted.record["results"]["perplexity"], rel=0.5)
