"""What the filters find of what was planted in a corpus, and how fast they are.

    python -m tests.benchmarks.cleaning --documents 100000

Makes documents of made-up words, whose frequencies are those of a language. A hundredth of them are near duplicates of
others, in which one word in twenty is replaced, removed or added; another hundredth have a sentence of 13 words of a
test text in them. Then each filter works on them as in a run, in one process and with an empty cache; those for which
nothing was planted on a tenth of the documents.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = 100_000
EDITED = 0.05
SENTENCE = 13
OTHERS = ("length", "regex", "exact-duplicates", "gopher-quality", "gopher-repetition", "c4-quality", "language")
OPTIONS: dict[str, dict[str, Any]] = {
    "length": {"min_words": 20},
    "regex": {"pattern": r"\bzz\w+", "replace": "z"},
    "gopher-quality": {"min_stop_words": 0},
    "c4-quality": {"min_sentences": 1},
    "language": {"languages": ["zxx", "cy", "en", "la"], "min_probability": 0.0},
}


@dataclass
class Corpus:
    """Documents, and the rows of those in which something was planted."""

    documents: list[str]
    near: set[int]
    """Near duplicates of an earlier document."""
    tested: set[int]
    """Documents with a sentence of the test texts."""
    sentences: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    corpus = made(asked.documents, asked.seed)
    megabytes = sum(map(len, corpus.documents)) / 1e6
    words = sum(len(document.split()) for document in corpus.documents) / len(corpus.documents)
    print(f"{len(corpus.documents):,} documents of {words:.0f} words, {megabytes:.0f} MB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measure(corpus, Path(folder))


def made(count: int, seed: int) -> Corpus:
    """Make the documents."""
    import numpy

    draw = numpy.random.default_rng(seed)
    letters = numpy.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = numpy.array(["".join(draw.choice(letters[:20], size=size)) for size in draw.integers(2, 11, WORDS)])
    frequencies = 1 / numpy.arange(3, WORDS + 3)
    frequencies /= frequencies.sum()
    sizes = draw.integers(50, 270, count)
    drawn = words[draw.choice(WORDS, p=frequencies, size=int(sizes.sum()))].tolist()
    ends = numpy.cumsum(sizes).tolist()
    documents = [drawn[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]
    some, rows = random.Random(seed), draw.permutation(count // 2).tolist()
    planted = count // 100
    near = {count // 2 + row: documents[row] for row in rows[:planted]}
    for row, original in near.items():
        documents[row] = edited(original, words, some)
    sentences = [words[draw.choice(WORDS, p=frequencies, size=SENTENCE)].tolist() for _ in range(planted)]
    tested = rows[planted : 2 * planted]
    for row, sentence in zip(tested, sentences, strict=True):
        at = some.randint(0, len(documents[row]))
        documents[row] = documents[row][:at] + sentence + documents[row][at:]
    return Corpus([line(document) for document in documents], set(near), set(tested), [*map(line, sentences)])


def line(words: list[str]) -> str:
    """The words as sentences of a dozen."""
    sentences = (" ".join(words[start : start + 12]).capitalize() for start in range(0, len(words), 12))
    return ". ".join(sentences) + "."


def edited(document: list[str], words: Any, draw: random.Random) -> list[str]:
    """The document with one word in twenty replaced, removed or added."""
    changed = list(document)
    for at in sorted(draw.sample(range(len(document)), round(EDITED * len(document))), reverse=True):
        what, other = draw.choice(["replace", "remove", "add"]), str(draw.choice(words))
        changed[at : at + 1] = {"replace": [other], "remove": [], "add": [changed[at], other]}[what]
    return changed


def measure(corpus: Corpus, folder: Path) -> None:
    """Let each filter work on the documents, and print what it found."""
    from datasets import Dataset, DatasetDict

    from toolkit.api import Device, RunContext
    from toolkit.data import filter_stages, filtering
    from toolkit.data.documents import contents_of
    from toolkit.data.shared_text import shared_text
    from toolkit.errors import UnavailableError
    from toolkit.recipe.schema import component
    from toolkit.registry import Registry

    device = Device(kind="cpu", name="the processor", memory_bytes=4 << 30)
    run = RunContext("cleaning", folder, folder / "cache", 0, device, "causal-lm", 512)
    rows = Dataset.from_dict({"text": corpus.documents})
    registry = Registry.discover()
    filter_stages.processors = lambda: 1  # type: ignore[attr-defined]  # the speed of one process

    def dropped(name: str, options: dict[str, Any], split: Dataset = rows) -> set[int]:
        part = component(registry, "filter", name, options, ())
        contents = contents_of(DatasetDict(train=split))["train"]
        began = time.perf_counter()
        kept, _ = filtering.filtered(split, contents, [part], run, registry, placed=lambda part: nullcontext())
        seconds = time.perf_counter() - began
        texts = set(kept["text"][:])
        rate = contents.characters / 1e6 / seconds
        print(
            f"{name:18} {seconds:6.1f} s, {rate:6.1f} MB/s a process, {len(kept):,} of {len(split):,} kept", flush=True
        )
        return {row for row, text in enumerate(corpus.documents) if text not in texts}

    near = dropped("near-duplicates", {})
    report("planted near duplicates", near, corpus.near, len(corpus.documents))
    tests = folder / "tests.jsonl"
    tests.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in corpus.sentences))
    report(
        "planted test sentences",
        dropped("decontamination", {"files": str(tests)}),
        corpus.tested,
        len(corpus.documents),
    )
    tenth = rows.select(range(len(rows) // 10))
    for name in OTHERS:
        try:
            dropped(name, OPTIONS.get(name, {}), tenth)
        except UnavailableError as error:
            print(f"{name:18} {error}")
    split = rows.train_test_split(0.05, shuffle=False)
    data = DatasetDict(train=split["train"], validation=split["test"])
    known = contents_of(data)
    began = time.perf_counter()
    found = shared_text(data, known, run)
    assert found
    seconds = time.perf_counter() - began
    print(f"held-out text      {seconds:6.1f} s, {found.documents:,} of {found.checked:,} documents share a passage")


def report(what: str, gone: set[int], planted: set[int], count: int) -> None:
    """Print how much of what was planted was found, and what else."""
    others = len(gone - planted)
    print(f"  {what}: {len(gone & planted):,} of {len(planted):,} found; {others:,} others of {count - len(planted):,}")


if __name__ == "__main__":
    main()
