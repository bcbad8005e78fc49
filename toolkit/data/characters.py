"""Which scripts texts are written in, and which of their characters do not belong into text.

From Unicode's own data, which comes with Python. Which language it is takes a model: `toolkit.api.languages`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

UNSEEN = frozenset("\u00ad\u200b\u2060\ufeff")
"""Soft hyphen, zero-width space, word joiner, byte order mark. The joiners U+200C and U+200D are not among them:
Persian, the scripts of India and emoji need them."""
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
CONTINUATIONS = "\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d" + (
    "\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
)
"""The bytes 80 to BF as Latin-1 and Windows-1252 read them."""
MOJIBAKE = re.compile(rf"[\u00c2\u00c3][{CONTINUATIONS}]|\u00e2[\u0080\u20ac\u201a\u201e][{CONTINUATIONS}]")
"""UTF-8 read as one of these: what was an accented letter, or a quotation mark or a dash."""
MARKUP = re.compile(r"</[A-Za-z][A-Za-z0-9]*>|&(?:amp|lt|gt|quot|nbsp|#x?[0-9A-Fa-f]+);")
"""The end of an HTML element, or an entity."""
SEQUENCES = {"mojibake": MOJIBAKE, "markup": MARKUP}
AROUND = 30
"""Characters shown on each side of an example."""


class CharacterCounts:
    """Counts characters by script, and those that are odd by kind, text by text."""

    def __init__(self) -> None:
        self.letters: Counter[str] = Counter()
        """Letters by script."""
        self.odd: Counter[str] = Counter()
        """Odd characters and sequences by kind."""
        self.texts: Counter[str] = Counter()
        """Texts that hold any, by kind."""
        self.examples: dict[str, str] = {}
        """The first of each kind, with what stands around it."""

    def add(self, text: str) -> None:
        """Count a text."""
        odd: Counter[str] = Counter()
        for character, times in Counter(text).items():
            script, kind = classes_of(character)
            if script:
                self.letters[script] += times
            if kind:
                odd[kind] += times
                self.examples.setdefault(kind, _around(text, text.index(character)))
        for kind, pattern in SEQUENCES.items():
            if found := [match.start() for match in pattern.finditer(text)]:
                odd[kind] += len(found)
                self.examples.setdefault(kind, _around(text, found[0]))
        self.odd.update(odd)
        self.texts.update(odd.keys())


@cache
def classes_of(character: str) -> tuple[str, str]:
    """The script of a letter, by the first word of its Unicode name, and the kind of an odd character; or ''."""
    category = unicodedata.category(character)
    if category.startswith("L"):
        script = unicodedata.name(character, "unnamed").split(" ")[0]
        return script if script == "CJK" else script.capitalize(), ""
    if character == "\ufffd":
        return "", "replacement"
    if character in UNSEEN:
        return "", "invisible"
    if character in DIRECTIONS:
        return "", "direction"
    if category == "Cc" and character not in "\t\n\r":
        return "", "control"
    return "", {"Co": "private use", "Cn": "unassigned"}.get(category, "")


def _around(text: str, at: int) -> str:
    return text[max(0, at - AROUND) : at + AROUND]
