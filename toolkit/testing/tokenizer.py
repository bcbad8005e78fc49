"""What a tokenizer has to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.api import Task, Tokenizer, highest_id
from toolkit.testing.bench import Bench, disturb_random_numbers, first_accepted, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "The cat sat on a mat, and 12 dogs ran (far) from home: why?"
TASKS: tuple[Task, ...] = ("causal-lm", "masked-lm")


def _built(plugin: Tokenizer, bench: Bench) -> PreTrainedTokenizerBase:
    # A generator, as in a run: it can be read once.
    return first_accepted(TASKS, lambda task: plugin.build(iter(bench.texts), bench.run(task)))[1]


def build(plugin: Tokenizer, bench: Bench) -> str:
    """The same texts give the same tokenizer."""
    from transformers import PreTrainedTokenizerBase

    disturb_random_numbers(1)
    one: Any = _built(plugin, bench)
    require(isinstance(one, PreTrainedTokenizerBase), f"build returns a {type(one).__name__}, which is no tokenizer")
    disturb_random_numbers(2)
    other = _built(plugin, bench)
    same = one.get_vocab() == other.get_vocab() and _ids(one) == _ids(other)
    require(same, "building it twice from the same texts gives two different tokenizers")
    return f"{len(one):,} tokens, the same when built again"


def round_trip(plugin: Tokenizer, bench: Bench) -> str:
    """Plain English comes back from its tokens; a tokenizer may fold case and set spaces its own way."""
    tokenizer = _built(plugin, bench)
    ids = _ids(tokenizer)
    highest = highest_id(tokenizer)
    strangers = [token for token in ids if not 0 <= token <= highest]
    require(not strangers, f"it gives the token id {strangers[:1]}, and the highest of its vocabulary is {highest}")
    back = str(tokenizer.decode(ids))
    if back == PROBE:
        return f"{len(PROBE)} characters become {len(ids)} tokens and come back"
    require(_folded(back) == _folded(PROBE), f"{PROBE!r} comes back as {back!r}")
    return f"{len(PROBE)} characters become {len(ids)} tokens and come back but for case and spaces"


def saved(plugin: Tokenizer, bench: Bench) -> str:
    """What is saved with the model has to be the tokenizer that it was trained with."""
    tokenizer = _built(plugin, bench)
    folder = bench.run().folder
    tokenizer.save_pretrained(folder)
    again: Any = type(tokenizer).from_pretrained(folder, local_files_only=True)
    require(_ids(again) == _ids(tokenizer), "saved and loaded again, it gives other tokens")
    require(again.eos_token == tokenizer.eos_token, "saved and loaded again, it has another eos_token")
    return "saved and loaded again, it gives the same tokens"


def _ids(tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(PROBE, add_special_tokens=False))


def _folded(text: str) -> str:
    return "".join(text.lower().split())


CHECKS = (("build", build), ("round trip", round_trip), ("save and reload", saved))
