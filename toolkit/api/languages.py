"""Which language a text is in, told by py3langid, an optional dependency."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.errors import UnavailableError

CHARACTERS = 2000
"""Of a text that are looked at."""
CERTAIN = 0.65
"""The probability from which a language counts as certain."""


def language_identifier() -> Callable[[str], tuple[str, float]]:
    """Return the function that tells the most probable language of a text, as ISO 639-1 has it, and its probability.

    Loading the model takes a second.

    Raises:
        UnavailableError: py3langid is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UnavailableError("languages are told by py3langid: pip install 'pretrain-toolkit[language]'") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identified(text: str) -> tuple[str, float]:
        language, probability = identifier.classify(text[:CHARACTERS])
        return str(language), float(probability)

    return identified
