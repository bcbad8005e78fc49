"""How long the preparation of a run's data takes, at its first start and at its second, by phase; and what memory.

    python tests/benchmarks/preparation.py --megabytes 10 100 1000
    python tests/benchmarks/preparation.py --megabytes 10 --files 10000
    python tests/benchmarks/preparation.py --megabytes 10 100 --rounds 5

Makes text of made-up words, whose frequencies are those of a language, in lines of about a kilobyte; then has a
tokenizer learned from it and the lines packed, as a run does, in a process of its own for each start. What is imported
is not counted. On a machine with other work, the processor's seconds and the bytes read (in calls of `read`, on Linux
alone), both of the process itself, say more than the time. Then the library `tokenizers` encodes the same texts, a
hundred megabytes of them at most, with all processors and with nothing done about the tokens. `--cache` and `--texts`
name folders to keep; without them all is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

WORDS = 100_000
WORDS_PER_LINE = 160
LINES_AT_ONCE = 1000
TEXTS_ALONE = 1000
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
    parser.add_argument("--megabytes", type=int, nargs="+", default=[40])
    parser.add_argument("--files", type=int, default=1, help="into which the text is cut")
    parser.add_argument("--workers", type=int, help="processes that tokenize; if not given, one per processor")
    parser.add_argument("--texts", type=Path, help="folder of the text, which is made once")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.start:
        start(asked.start, asked.cache, asked.workers)
        return
    if asked.alone:
        alone(asked.alone, asked.cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        workers = ["--workers", str(asked.workers)] if asked.workers else []
        for megabytes in asked.megabytes:
            recipe = write(asked.texts or Path(folder), megabytes, asked.files)
            rates: dict[str, list[float]] = {"tokenizing": [], "alone": []}
            for number in range(asked.rounds):
                cache = Path(folder) / f"cache-{megabytes}-{number}"
                print(f"{megabytes} MB, first start", flush=True)
                rates["tokenizing"].append(measured("--start", recipe, cache, *workers))
                if not number:
                    print(f"{megabytes} MB, second start", flush=True)
                    measured("--start", recipe, cache, *workers)
                rates["alone"].append(measured("--alone", recipe, cache))
            ours, theirs = (statistics.median(rates[name]) for name in ("tokenizing", "alone"))
            print(f"  {'to tokenizers alone':24} {ours / theirs:8.2f}   median of {asked.rounds}", flush=True)


def measured(*command: str | Path) -> float:
    """Run this file for one measurement; returns the million characters a second that it prints, 0 if it does not."""
    process = [sys.executable, __file__, command[0], command[1], "--cache", *command[2:]]
    printed = subprocess.run(process, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(printed, end="", flush=True)
    rate = re.search(r"([0-9.]+) million characters/s", printed)
    return float(rate[1]) if rate else 0.0


def write(folder: Path, megabytes: int, files: int = 1) -> Path:
    """Write the text, unless it is there, and a recipe beside it; into about so many files."""
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
    recipe, pattern = folder / f"{megabytes}.yaml", str(file)
    if files > 1:
        recipe, parts = folder / f"{megabytes}-{files}.yaml", folder / f"{megabytes}-{files}"
        pattern = str(parts / "*.txt")
        if not parts.exists():
            parts.mkdir()
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            each = -(-len(lines) // files)
            for begin in range(0, len(lines), each):
                (parts / f"{begin:09}.txt").write_text("".join(lines[begin : begin + each]), encoding="utf-8")
    dataset = {"plugin": "text-files", "files": pattern, "sample_by": "line", "eval_fraction": 0.01}
    recipe.write_text(json.dumps(RECIPE | {"dataset": dataset}), encoding="utf-8")
    return recipe


def start(recipe: Path, cache: Path, workers: int | None) -> None:
    """Prepare the data, and print what each phase took."""
    # Imported here, so that it is not counted.
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer  # noqa: F401

    from toolkit.recipe.resolve import load, resolve
    from toolkit.system.device import detect
    from toolkit.training.components import context_of
    from toolkit.training.sources import prepare

    phases = Phases()
    resolved = resolve(load(str(recipe)), detect())
    context = replace(context_of(resolved, recipe.parent / "run", progress=phases), cache=cache)
    with MemoryWatch() as memory:
        begun, processor, read = time.perf_counter(), time.process_time(), bytes_read()
        phases.since = begun
        account = prepare(resolved, context, workers=workers).data.account
        phases.end()
        processor, read = time.process_time() - processor, bytes_read() - read
    characters = sum(split.characters for split in account.splits.values())
    for phase, seconds in phases.seconds.items():
        rate = f"   {characters / seconds / 1e6:.2f} million characters/s" if phase == "tokenizing" else ""
        print(f"  {phase:24} {seconds:8.2f} s{rate}")
    print(f"  {'in all':24} {time.perf_counter() - begun:8.2f} s   {account.train.tokens:,} tokens")
    print(f"  {'this process':24} {processor:8.2f} s   of the processor, {read / 1e6:.2f} MB read")
    print(f"  {'memory, all processes':24} {memory.peak / 1e6:8.0f} MB, of which {memory.before / 1e6:.0f} before")


def bytes_read() -> int:
    """What this process has read so far; nothing where the system does not say."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split()[1]) if counters.exists() else 0


def alone(recipe: Path, cache: Path) -> None:
    """Encode the texts with `tokenizers`, and print how fast that is."""
    from toolkit.data.documents import texts
    from toolkit.recipe.resolve import load, resolve
    from toolkit.system.device import detect
    from toolkit.training.components import context_of
    from toolkit.training.loading import documents_by_source
    from toolkit.training.sources import loaded_sources, tokenizer_for

    resolved = resolve(load(str(recipe)), detect())
    context = replace(context_of(resolved, recipe.parent / "run"), cache=cache)
    tokenizer = tokenizer_for(resolved, loaded_sources(resolved, context), context).backend_tokenizer
    characters, seconds = 0, 0.0
    reading = (text for batch in texts(documents_by_source(resolved, context)[""]["train"]) for text in batch)
    while some := list(itertools.islice(reading, TEXTS_ALONE)):
        begun = time.perf_counter()
        tokenizer.encode_batch_fast(some, add_special_tokens=False)
        seconds += time.perf_counter() - begun
        characters += sum(map(len, some))
    print(f"  {'tokenizers alone':24} {seconds:8.2f} s   {characters / seconds / 1e6:.2f} million characters/s")


class MemoryWatch:
    """The most memory that this process and its children take together, in bytes."""

    def __init__(self) -> None:
        self.peak, self.before, self._ended = 0, self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        import psutil

        own, total = psutil.Process(), 0
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                # What files are mapped is the system's to keep or drop.
                memory = process.memory_info()
                total += memory.rss - memory.shared
        return total


class Phases:
    """A `toolkit.api.Progress` that times each phase, from its first word to that of the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.phase, self.since = "before the first", 0.0

    def __call__(
        self, phase: str, done: int = 0, total: int | None = None, *, unit: str = "", detail: str = ""
    ) -> None:
        if phase != self.phase:
            self.end()
            self.phase = phase

    def end(self) -> None:
        now = time.perf_counter()
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.since = now


if __name__ == "__main__":
    main()
