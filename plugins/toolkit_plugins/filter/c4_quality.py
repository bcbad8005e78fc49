"""The rules by which C4 was cleaned.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
(https://arxiv.org/abs/1910.10683), section 2.2. Two of its rules are other filters: `language`, and duplicates. Its
list of bad words is a matter of the corpus; `regex` drops pages with the words that you name.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import Field

from toolkit.api import Dropped, Filter, RunContext

TERMINAL_MARKS = (".", "!", "?", '"', "”", "»")
"""Period, exclamation mark, question mark, end quotation mark."""
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", re.IGNORECASE)
CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]+[\"'”»)]*(?=\s|$)")


class C4Quality(Filter):
    """Keep the lines that are sentences and the pages that have some, by the rules of C4."""

    min_sentences: int = Field(default=3, ge=0)
    """Fewest sentences of a page."""
    min_words_per_line: int = Field(default=5, ge=1)
    """Fewest words of a line."""
    terminal_punctuation: bool = True
    """Whether a line has to end in a terminal punctuation mark. The rule that drops most: it takes headings, lists and
    verse with it."""
    curly_brackets: bool = False
    """Whether pages with a curly bracket are kept, which C4 takes for code."""

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        def judged(document: str) -> str | Dropped:
            if "lorem ipsum" in document.lower():
                return Dropped("lorem ipsum")
            if not self.curly_brackets and ("{" in document or "}" in document):
                return Dropped("a curly bracket")
            lines = document.splitlines()
            kept = [line for line in map(self._cleaned, lines) if line]
            text = "\n".join(kept)
            if not kept:
                return Dropped("no line is a sentence", f"{len(lines):,} lines")
            if (sentences := len(SENTENCE_END.findall(text))) < self.min_sentences:
                return Dropped(f"fewer than {self.min_sentences} sentences", f"{sentences} in {len(kept):,} lines")
            return text

        return judged

    def _cleaned(self, line: str) -> str:
        """The line without citation markers, or nothing if it goes."""
        line = CITATION.sub("", line).strip()
        if self.terminal_punctuation and (not line.endswith(TERMINAL_MARKS) or line.endswith("...")):
            return ""
        if len(line.split()) < self.min_words_per_line or "javascript" in line.lower() or POLICY.search(line):
            return ""
        return line
