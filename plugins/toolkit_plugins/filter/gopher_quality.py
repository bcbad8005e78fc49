"""The quality rules of MassiveText.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher"
(https://arxiv.org/abs/2112.11446), appendix A.1.1, "Quality filtering".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import Field

from toolkit.api import Dropped, Filter, RunContext

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""English, as in the paper."""
EDGE = re.compile(r"^\W+|\W+$")
LETTER = re.compile(r"[^\W\d_]")
ELLIPSIS = re.compile(r"\.\.\.|…")
BULLETS = ("•", "‣", "▪", "●", "◦", "-", "*")
MIN_MEAN_WORD, MAX_MEAN_WORD = 3, 10
MAX_SYMBOLS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_WORDS_WITH_LETTER = 0.8


class GopherQuality(Filter):
    """Drop documents that break a quality rule of Gopher's MassiveText: length, symbols, bullets, stop words."""

    min_words: int = Field(default=50, ge=1)
    """Fewest words."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words."""
    stop_words: list[str] = Field(default=[*STOP_WORDS])
    """Frequent words of the language, of which a text has some."""
    min_stop_words: int = Field(default=2, ge=0)
    """How many different ones a document has at least."""

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        stop_words = {word.lower() for word in self.stop_words}

        def judged(document: str) -> str | Dropped:
            pieces = document.split()
            count = len(pieces)
            if count < self.min_words:
                return Dropped(f"fewer than {self.min_words:,} words", f"{count:,} words")
            if count > self.max_words:
                return Dropped(f"more than {self.max_words:,} words", f"{count:,} words")
            return (
                _odd_words(document, pieces)
                or _odd_lines(document)
                or _too_few_stop_words(pieces, stop_words, self.min_stop_words)
                or document
            )

        return judged


def _odd_words(document: str, pieces: list[str]) -> Dropped | None:
    count = len(pieces)
    mean = sum(map(len, pieces)) / count
    if not MIN_MEAN_WORD <= mean <= MAX_MEAN_WORD:
        return Dropped(f"mean word length outside {MIN_MEAN_WORD} to {MAX_MEAN_WORD}", f"{mean:.2f}")
    for symbol, times in (("#", document.count("#")), ("ellipsis", len(ELLIPSIS.findall(document)))):
        if times > MAX_SYMBOLS_PER_WORD * count:
            return Dropped(f"more than {MAX_SYMBOLS_PER_WORD} {symbol} per word", f"{times / count:.2f}")
    lettered = sum(LETTER.search(piece) is not None for piece in pieces)
    if lettered < MIN_WORDS_WITH_LETTER * count:
        return Dropped(f"fewer than {MIN_WORDS_WITH_LETTER:.0%} of the words have a letter", f"{lettered / count:.0%}")
    return None


def _odd_lines(document: str) -> Dropped | None:
    lines = [line.strip() for line in document.splitlines() if line.strip()]
    for what, most, count in (
        ("begin with a bullet", MAX_BULLET_LINES, sum(line.startswith(BULLETS) for line in lines)),
        ("end with an ellipsis", MAX_ELLIPSIS_LINES, sum(line.endswith(("...", "…")) for line in lines)),
    ):
        if count > most * len(lines):
            return Dropped(f"more than {most:.0%} of the lines {what}", f"{count / len(lines):.0%}")
    return None


def _too_few_stop_words(pieces: list[str], stop_words: set[str], least: int) -> Dropped | None:
    missing = set(stop_words)
    for piece in pieces:
        missing.discard(EDGE.sub("", piece.lower()) if not piece.isalpha() else piece.lower())
        if len(stop_words) - len(missing) >= least:
            return None
    found = len(stop_words) - len(missing)
    return Dropped(f"fewer than {least} stop words", f"{found}") if found < least else None
