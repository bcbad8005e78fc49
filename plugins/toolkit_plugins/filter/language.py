"""Documents in other languages than those wanted."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field, field_validator

from toolkit.api import Dropped, Filter, RunContext, language_identifier


class Language(Filter):
    """Drop documents whose language, told by py3langid, is none of those wanted."""

    languages: list[str] = Field(min_length=1)
    """ISO 639-1 codes: [en, es]."""
    min_probability: float = Field(default=0.65, ge=0, le=1)
    """Drop a document also if its language is less certain than this; 0 takes the most probable one."""

    @field_validator("languages")
    @classmethod
    def _are_codes(cls, languages: list[str]) -> list[str]:
        for one in languages:
            if len(one) not in (2, 3) or not one.isascii() or not one.islower():
                raise ValueError(f"{one!r} is no language code; write en, es or de")
        return languages

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        identify = language_identifier()

        def judged(document: str) -> str | Dropped:
            language, probability = identify(document)
            found = f"{language} with a probability of {probability:.0%}"
            if probability < self.min_probability:
                return Dropped("no certain language", found)
            if language not in self.languages:
                return Dropped(f"in {language}", found)
            return document

        return judged
