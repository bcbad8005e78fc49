"""What an inspection shows that is probably not meant, each with the option that mends it.

The limits are rules of thumb: they are set so that good corpora (the documentation of Python, WikiText) give none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.data.inspection import UNCERTAIN, Inspection

MOST_DUPLICATES = 0.01
"""Share of the documents."""
MOST_UNKNOWN = 0.001
"""Share of the tokens."""
MOST_TOKENS_PER_BYTE = 0.45
"""English has 0.25 with a tokenizer of its own, and 0.5 with one that knows little more than letters."""
MOST_ODD = {"replacement": 0.001, "mojibake": 0.005, "control": 0.001, "markup": 0.2, "invisible": 0.05}
"""Share of the documents that hold odd characters of a kind; of the other kinds `MOST_OTHERS`."""
MOST_OTHERS = 0.01
MAIN_LANGUAGE = 0.7
"""Share of the documents from which a corpus counts as one of this language, and not as one of several."""
MOST_IN_OTHERS = 0.05
"""Share of the documents, in languages other than the main one."""
LONG_DOCUMENT_BLOCKS = 1000
SHORT_DOCUMENT_TOKENS = 4
SHOWN_LANGUAGES = 3
ODD_CURES = {
    "replacement": "characters were lost when the text was decoded: read the source again, with its own encoding "
    "(text-files: encoding)",
    "mojibake": "UTF-8 that was read as another encoding: text-files: encoding: utf-8; where the source itself is so, "
    "repair it with ftfy before training",
    "control": "a binary file among the files, or another encoding (text-files: files, encoding)",
    "markup": "HTML that was not taken out: extract the text (trafilatura does), or leave such documents out with a "
    "filter",
    "invisible": "harmless to read, and tokens to learn: take them out with a filter",
    "direction": "harmless to read, and tokens to learn: take them out with a filter",
    "private use": "symbols of somebody's font, mostly from PDF files: extract the text again",
    "unassigned": "another encoding (text-files: encoding), or damaged text",
}


@dataclass(frozen=True)
class Suspicion:
    """Something that looks wrong."""

    what: str
    cure: str
    """The option that mends it, or else what to do."""


def suspicions(inspection: Inspection) -> list[Suspicion]:
    """What looks wrong, the worst first."""
    if not inspection.tokens:
        return [Suspicion("no text in any document", "check the dataset's options: column, files, sample_by")]
    return [*_of_the_tokenizer(inspection), *_of_the_documents(inspection), *_of_the_characters(inspection)]


def described(inspection: Inspection) -> dict[str, Any]:
    """The inspection with its suspicions, as plain data for JSON."""
    return inspection.as_dict() | {"suspicions": [asdict(one) for one in suspicions(inspection)]}


def _of_the_tokenizer(inspection: Inspection) -> Iterator[Suspicion]:
    if inspection.unknown_share > MOST_UNKNOWN:
        yield Suspicion(
            f"{inspection.unknown_share:.1%} of the tokens are unknown to the tokenizer",
            "a tokenizer of bytes knows every text: tokenizer: {plugin: byte-bpe}",
        )
    if inspection.tokens_per_byte > MOST_TOKENS_PER_BYTE and inspection.median_tokens > SHORT_DOCUMENT_TOKENS:
        yield Suspicion(
            f"{inspection.tokens_per_byte:.2f} tokens per byte: the tokenizer was made for other text",
            "train one on these documents: tokenizer: {plugin: byte-bpe, vocab_size: 8000}",
        )
    if inspection.special_tokens:
        found = ", ".join(f"{times:,} {token}" for token, times in inspection.special_tokens.items())
        yield Suspicion(
            f"special tokens are written in the texts and parsed as such: {found}",
            "cut_at_end_token: true makes documents of what an end token separates; others have to go from the text",
        )


def _of_the_documents(inspection: Inspection) -> Iterator[Suspicion]:
    with_text = inspection.looked_at - inspection.empty
    if inspection.held_out_in_training:
        yield Suspicion(
            f"{inspection.held_out_in_training:,} documents that are held out are in the training split too",
            "the held-out loss will look better than it is: filters: [exact-duplicates], or other validation data",
        )
    if inspection.duplicates > MOST_DUPLICATES * with_text:
        yield Suspicion(
            f"{inspection.duplicates / with_text:.1%} of the documents say the same as one before",
            "filters: [exact-duplicates]",
        )
    if inspection.empty > MOST_DUPLICATES * inspection.looked_at:
        yield Suspicion(
            f"{inspection.empty / inspection.looked_at:.1%} of the documents are empty",
            "they are left out; if there should be text, name its column: column",
        )
    yield from _of_the_languages(inspection.languages or {})
    longest = inspection.longest[0].tokens
    if longest > LONG_DOCUMENT_BLOCKS * inspection.block_size and 10 * longest > inspection.tokens:
        yield Suspicion(
            f"one document has {longest:,} tokens, {longest / inspection.tokens:.0%} of all: many texts in one file?",
            "text-files: sample_by: paragraph or line",
        )
    if inspection.median_tokens <= SHORT_DOCUMENT_TOKENS:
        yield Suspicion(
            f"half of the documents have {inspection.median_tokens} tokens or fewer: texts cut into lines?",
            "text-files: sample_by: paragraph or document",
        )
    if "validation" not in inspection.documents:
        yield Suspicion("nothing is held out, so there will be no evaluation", "eval_fraction: 0.05")


def _of_the_languages(shares: dict[str, float]) -> Iterator[Suspicion]:
    certain = {language: share for language, share in shares.items() if language != UNCERTAIN}
    main, most = next(iter(certain.items()), ("", 0.0))
    others = sum(certain.values()) - most
    if most >= MAIN_LANGUAGE and others > MOST_IN_OTHERS:
        shown = ", ".join(f"{share:.1%} {language}" for language, share in [*certain.items()][1 : 1 + SHOWN_LANGUAGES])
        yield Suspicion(
            f"{others:.1%} of the documents are in other languages than {main}: {shown}",
            f"if they are not meant to be: filters: [{{plugin: language, languages: [{main}]}}]",
        )


def _of_the_characters(inspection: Inspection) -> Iterator[Suspicion]:
    for odd in inspection.odd_characters:
        share = odd.documents / (inspection.looked_at - inspection.empty)
        if share > MOST_ODD.get(odd.kind, MOST_OTHERS):
            yield Suspicion(
                f"{share:.1%} of the documents hold {odd.kind} characters: {odd.example!r}", ODD_CURES[odd.kind]
            )
