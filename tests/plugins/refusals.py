"""What a plugin says to a person who asked for something that is not there."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.api import OptionError, RunContext


def refused(dataset: Any, run: RunContext, error: type[Exception] = OptionError) -> tuple[str | None, str]:
    """The option that a dataset refuses, and what it says about it."""
    with pytest.raises(error) as caught:
        dataset.load(run)
    return caught.value.option, str(caught.value)  # type: ignore[attr-defined] # both kinds of refusal have it
