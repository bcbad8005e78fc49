"""The repetition rules of MassiveText.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher"
(https://arxiv.org/abs/2112.11446), appendix A.1.1, "Repetition removal", table A1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from toolkit.api import Dropped, Filter, RunContext

PARAGRAPHS = re.compile(r"\n\s*\n")
MAX_REPEATED_LINES = 0.30
MAX_CHARACTERS_IN_REPEATED_LINES = 0.20
MOST_FREQUENT_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
"""By n, the largest fraction of the characters in the most frequent word n-gram."""
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""By n, the largest fraction of the characters in word n-grams that occur again."""


class GopherRepetition(Filter):
    """Drop documents with repeated lines, paragraphs or n-grams, by the thresholds of Gopher's MassiveText."""

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        return lambda document: _repeated_parts(document) or _repeated_ngrams(document.split()) or document


def _repeated_parts(document: str) -> Dropped | None:
    for name, parts in (("lines", document.splitlines()), ("paragraphs", PARAGRAPHS.split(document))):
        there = [part.strip() for part in parts if part.strip()]
        times = Counter(there)
        if len(times) == len(there):
            continue
        repeated = (len(there) - len(times)) / len(there)
        if repeated > MAX_REPEATED_LINES:
            return Dropped(f"more than {MAX_REPEATED_LINES:.0%} of the {name} repeat others", f"{repeated:.0%}")
        characters = sum((count - 1) * len(part) for part, count in times.items()) / sum(map(len, there))
        if characters > MAX_CHARACTERS_IN_REPEATED_LINES:
            most = f"{MAX_CHARACTERS_IN_REPEATED_LINES:.0%}"
            return Dropped(f"more than {most} of the characters are in repeated {name}", f"{characters:.0%}")
    return None


def _repeated_ngrams(words: Sequence[str]) -> Dropped | None:
    characters = sum(map(len, words))
    for n, most in MOST_FREQUENT_NGRAM.items():
        times = Counter(zip(*(words[start:] for start in range(n)), strict=False))
        if not times:
            continue
        highest = max(times.values())
        # Of several that are as frequent, the longest counts.
        length = max(sum(map(len, ngram)) for ngram, count in times.items() if count == highest)
        if highest > 1 and highest * length > most * characters:
            share = highest * length / characters
            return Dropped(f"more than {most:.0%} of the characters are in one {n}-gram", f"{share:.0%}")
    for n, most in REPEATED_NGRAMS.items():
        if (share := _in_repeated(words, n) / max(1, characters)) > most:
            return Dropped(f"more than {most:.0%} of the characters are in repeated {n}-grams", f"{share:.0%}")
    return None


def _in_repeated(words: Sequence[str], n: int) -> int:
    """Characters of the words in n-grams that have occurred before, each counted once, as the paper asks."""
    seen: set[tuple[str, ...]] = set()
    characters = counted = 0  # words before `counted` are counted, or in no repeated n-gram
    for start, ngram in enumerate(zip(*(words[offset:] for offset in range(n)), strict=False)):
        if ngram in seen:
            characters += sum(map(len, words[max(start, counted) : start + n]))
            counted = start + n
        else:
            seen.add(ngram)
    return characters
