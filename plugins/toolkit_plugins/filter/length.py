"""Documents that are too short or too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from pydantic import Field, model_validator

from toolkit.api import Dropped, Filter, RunContext


class Length(Filter):
    """Drop documents with too few or too many characters or words."""

    min_characters: int | None = Field(default=None, ge=1)
    """Fewest characters."""
    max_characters: int | None = Field(default=None, ge=1)
    """Most characters."""
    min_words: int | None = Field(default=None, ge=1)
    """Fewest words, which are separated by white space."""
    max_words: int | None = Field(default=None, ge=1)
    """Most words."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        limits = (self.min_characters, self.max_characters, self.min_words, self.max_words)
        if limits == (None,) * 4:
            raise ValueError("it limits nothing; set min_words, max_words, min_characters or max_characters")
        for least, most in (limits[:2], limits[2:]):
            if least is not None and most is not None and least > most:
                raise ValueError(f"no document has at least {least:,} and at most {most:,}")
        return self

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        def judged(document: str) -> str | Dropped:
            if outside := _outside(len(document), self.min_characters, self.max_characters, "characters"):
                return outside
            if self.min_words is not None or self.max_words is not None:
                outside = _outside(len(document.split()), self.min_words, self.max_words, "words")
            return outside or document

        return judged


def _outside(number: int, least: int | None, most: int | None, unit: str) -> Dropped | None:
    found = f"{number:,} {unit if number != 1 else unit[:-1]}"
    if least is not None and number < least:
        return Dropped(f"fewer than {least:,} {unit}", found)
    if most is not None and number > most:
        return Dropped(f"more than {most:,} {unit}", found)
    return None
