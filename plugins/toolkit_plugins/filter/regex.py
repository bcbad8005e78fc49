"""Documents or passages that match a regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Self

from pydantic import model_validator

from toolkit.api import Dropped, Filter, RunContext


class Regex(Filter):
    """Drop documents in which a regular expression matches, or replace what it matches."""

    pattern: str
    """The expression, in the syntax of Python's `re`; `^` and `$` match at each line."""
    replace: str | None = None
    r"""What replaces each match, `\1` being its first group; "" removes it. If not given, the document is dropped."""
    ignore_case: bool = False
    """Whether upper and lower case are the same."""

    @model_validator(mode="after")
    def _is_an_expression(self) -> Self:
        try:
            compiled = self._compiled()
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is no regular expression: {error}") from None
        try:
            compiled.sub(self.replace or "", "")
        except (re.error, IndexError) as error:
            raise ValueError(f"{self.replace!r} cannot replace matches of {self.pattern!r}: {error}") from None
        return self

    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.MULTILINE | (re.IGNORECASE if self.ignore_case else 0))

    def judge(self, run: RunContext) -> Callable[[str], str | Dropped]:
        compiled, replacement = self._compiled(), self.replace
        if replacement is None:

            def dropped(document: str) -> str | Dropped:
                match = compiled.search(document)
                return Dropped(f"matches {self.pattern}", match[0]) if match else document

            return dropped

        def replaced(document: str) -> str | Dropped:
            changed, matches = compiled.subn(replacement, document)
            if matches and not changed.strip():
                return Dropped("nothing is left", f"{matches:,} replaced")
            return changed

        return replaced
