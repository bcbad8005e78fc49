"""Every token is scored once, with the context that the window promises, and the sums are right."""

import math

import pytest

from tests.tiny import train, write_recipe
from toolkit.errors import UsageError
from toolkit.events import Event, Listener, Progressed
from toolkit.inference.evaluation import evaluate, held_out_documents, windows
from toolkit.inference.generation import generate, load_model, sample_text
from toolkit.storage.run_directory import RunDirectory

UNHEARD: Listener = [].append


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        result, _ = train(write_recipe(folder, dataset={"max_samples": 60}))
    return RunDirectory(result.folder)


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(2, 8, 4), (8, 8, 4), (9, 8, 4), (50, 8, 1), (50, 8, 7), (33, 16, 5)]
)
def test_each_token_is_scored_once_with_enough_context(length: int, context: int, stride: int) -> None:
    tokens = list(range(length))
    scored: list[int] = []
    for window in windows(tokens, context=context, stride=stride):
        assert len(window.tokens) <= context
        new = window.tokens[-window.scored :]
        before = len(window.tokens) - window.scored
        assert before >= min(new[0], context - stride) or scored == []
        scored += new
    assert scored == tokens[1:]


@pytest.mark.parametrize("stride", [1, 5, None])
def test_it_equals_the_plain_way_token_by_token(run: RunDirectory, stride: int | None) -> None:
    import torch

    events = list[Event]()
    reached = evaluate(run, stride=stride, max_documents=3, listener=events.append)
    model, tokenizer = load_model(run)
    end, total, count = tokenizer.eos_token_id, 0.0, 0
    texts = held_out_documents(run)[""].select(range(3))["text"]
    for text in texts:
        document = [end, *tokenizer(text)["input_ids"], end]
        for window in windows(document, context=reached.context, stride=reached.stride):
            for offset in range(window.scored):
                at = len(window.tokens) - window.scored + offset
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([window.tokens[:at]])).logits[0, -1]
                total -= float(logits.log_softmax(-1)[window.tokens[at]])
                count += 1
    assert reached.tokens == count
    assert isinstance(events[-1], Progressed)
    assert (events[-1].phase, events[-1].done, events[-1].total) == ("evaluating", count, count)
    assert reached.negative_log_likelihood == pytest.approx(total, rel=1e-5)
    size = sum(len(text.encode()) for text in texts)
    words = sum(len(text.split()) for text in texts)
    assert reached.token_perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert reached.word_perplexity == pytest.approx(math.exp(total / words), rel=1e-5)
    assert reached.bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_the_window_is_what_the_model_was_trained_on(run: RunDirectory) -> None:
    reached = evaluate(run, max_documents=2, listener=UNHEARD)
    assert (reached.context, reached.stride, reached.documents) == (32, 16, 2)


def test_generation_leaves_no_trace_and_repeats_itself(run: RunDirectory) -> None:
    import torch

    options = {"prompt": "The cat", "max_new_tokens": 12, "temperature": 0.9, "top_k": 20}
    first = generate(run, **options, seed=1)
    assert first.startswith("The cat")
    assert generate(run, **options, seed=1) == first
    assert generate(run, **options, seed=2) != first
    model, tokenizer = load_model(run)
    model.train()
    before = torch.get_rng_state()
    greedy = [
        sample_text(model, tokenizer, prompt="", max_new_tokens=500, temperature=0, top_k=None, seed=seed)
        for seed in (1, 2)
    ]
    assert greedy[0] == greedy[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_a_prompt_longer_than_the_model_is_cut_at_its_beginning(run: RunDirectory) -> None:
    text = generate(run, prompt="the cat sat " * 50, max_new_tokens=5, temperature=0, top_k=None, seed=0)
    assert text


def test_a_run_without_a_model_says_so(run: RunDirectory) -> None:
    hidden = run.model.rename(run.folder / "hidden")
    try:
        with pytest.raises(UsageError, match="has no model yet"):
            evaluate(run, listener=UNHEARD)
    finally:
        hidden.rename(run.model)


def test_held_out_documents_without_text_cannot_be_scored(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    monkeypatch.setattr(
        "toolkit.inference.evaluation.held_out_documents", lambda run, _: {"": Dataset.from_dict({"text": ["", ""]})}
    )
    with pytest.raises(UsageError, match="hold no text to score"):
        evaluate(run, listener=UNHEARD)


def test_with_stride_one_every_token_sees_all_that_the_window_holds(run: RunDirectory) -> None:
    """Reckoned without our windows: token i from the `context - 1` tokens before it, one call for each."""
    import torch

    reached = evaluate(run, stride=1, max_documents=2, listener=UNHEARD)
    model, tokenizer = load_model(run)
    total, end = 0.0, tokenizer.eos_token_id
    for text in held_out_documents(run)[""].select(range(2))["text"]:
        document = [end, *tokenizer(text)["input_ids"], end]
        for at in range(1, len(document)):
            before = document[max(0, at - reached.context + 1) : at]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([before])).logits[0, -1]
            total -= float(logits.log_softmax(-1)[document[at]])
    assert reached.negative_log_likelihood == pytest.approx(total, rel=1e-5)
