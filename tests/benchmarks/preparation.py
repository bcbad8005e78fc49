"""How long the preparation of a run's data takes, at its first start and at its second, by phase.

    python tests/benchmarks/preparation.py --megabytes 400

Makes text of made-up words, whose frequencies are those of a language, in lines of about a kilobyte; then has a
tokenizer learned from it and the lines packed, as a run does, in a process of its own for each start. What is imported
is not counted. `--cache` and `--texts` name folders to keep; without them all is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

WORDS = 100_000
WORDS_PER_LINE = 160
LINES_AT_ONCE = 1000
RECIPE = {
    "recipe": 1,
    "tokenizer": {"plugin": "byte-bpe", "vocab_size": 8000},
    "model": {"plugin": "gpt2", "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2},
    "objective": {"plugin": "causal-lm", "block_size": 512},
    "memory": [],
    "training": {"max_steps": 1, "global_batch_size": 4, "learning_rate": 1e-3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--texts", type=Path, help="folder of the text, which is made once")
    parser.add_argument("--cache", type=Path, help="an empty folder")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.start:
        start(asked.start, asked.cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts, cache = asked.texts or Path(folder), asked.cache or Path(folder) / "cache"
        recipe = write(texts, asked.megabytes)
        for number in ("first", "second"):
            print(f"{number} start", flush=True)
            subprocess.run([sys.executable, __file__, "--start", recipe, "--cache", cache], check=True)


def write(folder: Path, megabytes: int) -> Path:
    """Write the text, unless it is there, and a recipe beside it."""
    import numpy

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{megabytes}.txt"
    draw = numpy.random.default_rng(0)
    letters = numpy.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = numpy.array(["".join(draw.choice(letters[:20], size=size)) for size in draw.integers(2, 11, WORDS)])
    frequencies = 1 / numpy.arange(3, WORDS + 3)
    frequencies /= frequencies.sum()
    if not file.exists():
        with file.open("w", encoding="utf-8") as out:
            while out.tell() < megabytes * 10**6:
                drawn = words[draw.choice(WORDS, p=frequencies, size=(LINES_AT_ONCE, WORDS_PER_LINE))]
                out.writelines(" ".join(line).capitalize() + ".\n" for line in drawn.tolist())
    recipe = folder / f"{megabytes}.yaml"
    dataset = {"plugin": "text-files", "files": str(file), "sample_by": "line", "eval_fraction": 0.01}
    recipe.write_text(json.dumps(RECIPE | {"dataset": dataset}), encoding="utf-8")
    return recipe


def start(recipe: Path, cache: Path) -> None:
    """Prepare the data, and print what each phase took."""
    # Imported here, so that it is not counted.
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer  # noqa: F401

    from toolkit.recipe.resolve import load, resolve
    from toolkit.system.device import detect
    from toolkit.training.components import assemble, context_of

    phases = Phases()
    resolved = resolve(load(str(recipe)), detect())
    context = replace(context_of(resolved, recipe.parent / "run", progress=phases), cache=cache)
    begun = phases.since = time.perf_counter()
    data = assemble(resolved, context).data
    phases.end()
    for phase, seconds in phases.seconds.items():
        print(f"  {phase:24} {seconds:8.1f} s")
    print(f"  {'in all':24} {time.perf_counter() - begun:8.1f} s   {data.account.train.tokens:,} tokens")


class Phases:
    """A `toolkit.api.Progress` that times each phase, from its first word to that of the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.phase, self.since = "before the first", 0.0

    def __call__(self, phase: str, done: int = 0, total: int | None = None, *, unit: str = "") -> None:
        if phase != self.phase:
            self.end()
            self.phase = phase

    def end(self) -> None:
        now = time.perf_counter()
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.since = now


if __name__ == "__main__":
    main()
