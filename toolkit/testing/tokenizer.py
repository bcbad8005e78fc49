"""The checks of a tokenizer plugin."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from toolkit.api import Task, Tokenizer, TokenizerSkeleton, highest_id
from toolkit.testing.bench import Bench, disturb_random_numbers, first_accepted, require
from toolkit.testing.elsewhere import answer_elsewhere
from toolkit.training.loading import tokenizer_skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "The cat sat on a mat, and 12 dogs ran (far) from home: why?"
TASKS: tuple[Task, ...] = ("causal-lm", "masked-lm")


def _built(plugin: Tokenizer, bench: Bench) -> PreTrainedTokenizerBase:
    # An iterator, as in a run: it can be read only once.
    return first_accepted(TASKS, lambda task: plugin.build(iter(bench.texts), bench.run(task)))[1]


def build(plugin: Tokenizer, bench: Bench) -> str:
    """The same texts give the same tokenizer, in another process too."""
    from transformers import PreTrainedTokenizerBase

    disturb_random_numbers(1)
    one: Any = _built(plugin, bench)
    require(isinstance(one, PreTrainedTokenizerBase), f"build returns a {type(one).__name__}, which is not a tokenizer")
    disturb_random_numbers(2)
    other = _built(plugin, bench)
    same = one.get_vocab() == other.get_vocab() and _ids(one) == _ids(other)
    require(same, "building it twice from the same texts gives two different tokenizers")
    require(
        content(plugin, bench) == answer_elsewhere(plugin, bench, content),
        "built from the same texts in another process, it is another tokenizer; sort sets, and leave the clock out",
    )
    return f"{len(one):,} tokens, the same when built again, also in another process"


def content(plugin: Tokenizer, bench: Bench) -> dict[str, str]:
    """What distinguishes one tokenizer from another: vocabulary and token ids."""
    built = _built(plugin, bench)
    vocabulary = hashlib.blake2b(repr(sorted(built.get_vocab().items())).encode("utf-8", "surrogatepass"))
    return {"vocabulary": vocabulary.hexdigest(), "ids": repr([_ids(built, text) for text in bench.texts])}


def encoding(plugin: Tokenizer, bench: Bench) -> str:
    """A text gets the same tokens each time, alone or in a batch, and a long one is not truncated."""
    tokenizer: Any = _built(plugin, bench)
    one = [_ids(tokenizer, text) for text in bench.texts]
    again = [_ids(tokenizer, text) for text in bench.texts]
    require(one == again, "the same text gives other tokens when it is asked again (dropout in its merges, say)")
    special = sorted({token for ids in one for token in ids} & set(tokenizer.all_special_ids))
    names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(special)))
    require(not special, f"it puts special tokens into texts that hold none, unasked: {names}")
    together = tokenizer(bench.texts, add_special_tokens=False, verbose=False)["input_ids"]
    require(together == one, "a text beside longer ones gives other tokens: it pads or cuts; switch that off")
    long = " ".join(bench.texts)
    back = str(tokenizer.decode(_ids(tokenizer, long)))
    whole = len(_folded(back)) > 0.9 * len(_folded(long))
    require(whole, f"of a text of {len(long):,} characters {len(back):,} come back: it cuts long texts")
    return f"{len(one)} texts have the same tokens each time, and {len(long):,} characters are not cut"


def round_trip(plugin: Tokenizer, bench: Bench) -> str:
    """Plain English survives encoding and decoding; a tokenizer may change case and spacing."""
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
    """Saved and loaded again, it is the tokenizer that the model was trained with."""
    tokenizer = _built(plugin, bench)
    folder = bench.run().folder
    tokenizer.save_pretrained(folder)
    again: Any = type(tokenizer).from_pretrained(folder, local_files_only=True)
    same = [_ids(again, text) for text in bench.texts] == [_ids(tokenizer, text) for text in bench.texts]
    require(same and _ids(again) == _ids(tokenizer), "saved and loaded again, it gives other tokens")
    require(again.eos_token == tokenizer.eos_token, "saved and loaded again, it has another eos_token")
    return "saved and loaded again, it gives the same tokens"


def skeleton(plugin: Tokenizer, bench: Bench) -> str:
    """For a plan, it has a tokenizer with as many tokens and the same special ones, without documents."""
    from transformers import PreTrainedTokenizerBase

    of = "skeleton" if isinstance(plugin, TokenizerSkeleton) else "build without documents"
    planned: Any = first_accepted(TASKS, lambda task: tokenizer_skeleton(plugin, bench.run(task)))[1]
    built = _built(plugin, bench)
    require(isinstance(planned, PreTrainedTokenizerBase), f"{of} returns a {type(planned).__name__}, not a tokenizer")
    require(
        planned.special_tokens_map == built.special_tokens_map,
        f"{of} has the special tokens {planned.special_tokens_map} where build has {built.special_tokens_map}",
    )
    needed, counted = highest_id(built) + 1, highest_id(planned) + 1
    require(counted >= needed, f"{of} has {counted:,} tokens where build has {needed:,}; define skeleton, for plans")
    return f"a plan counts {counted:,} tokens"


def _ids(tokenizer: Any, text: str = PROBE) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _folded(text: str) -> str:
    return "".join(text.lower().split())


CHECKS = (
    ("build", build),
    ("encoding", encoding),
    ("round trip", round_trip),
    ("save and reload", saved),
    ("skeleton", skeleton),
)
