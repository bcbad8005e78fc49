"""What each filter drops and changes, by the rules that it cites."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.tiny import WORDS
from toolkit.api import (
    CorpusFilter,
    Dropped,
    Filter,
    KnownNgrams,
    OptionError,
    RunContext,
    UnavailableError,
    WordNgrams,
)
from toolkit.registry import Registry

SENTENCE = "The people of the town have to be here with that and more of it."
PROSE = "\n".join(f"{SENTENCE} Number {number} was told by another man, and nobody believed it." for number in range(6))


def made(name: str, **options: Any) -> Any:
    return Registry.discover().load("filter", name).model_validate(options)


def verdict(plugin: Filter, document: str, run: RunContext) -> str:
    """The reason if it is dropped, else the text."""
    judged = plugin.judge(run)(document)
    return judged.reason if isinstance(judged, Dropped) else judged


def earlier(plugin: CorpusFilter, documents: list[str], run: RunContext) -> list[int]:
    found: list[int] = plugin.earlier(plugin.signer(run)(documents), run).tolist()
    return found


def test_the_first_of_equal_documents_stays(run_context: RunContext) -> None:
    rows = ["a b", "c", "A  b!", "a b", "c", "", "", "…", "!!"]
    assert earlier(made("exact-duplicates"), rows, run_context) == [-1, -1, -1, 0, 1, -1, 5, -1, -1]
    assert earlier(made("exact-duplicates", normalize=True), rows, run_context)[:5] == [-1, -1, 0, 0, 1]
    assert earlier(made("exact-duplicates", normalize=True), rows, run_context)[5:] == [-1, 5, -1, -1]
    assert earlier(made("exact-duplicates"), [], run_context) == []


def similarity(one: str, other: str, n: int) -> float:
    """The Jaccard similarity of their word n-grams, exactly."""
    grams = [{tuple(words[at : at + n]) for at in range(len(words) - n + 1)} for words in (one.split(), other.split())]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def pages(count: int, draw: random.Random) -> list[list[str]]:
    vocabulary = [f"{word}{number}" for word in WORDS for number in "abcdefghijklmnopqrstuvwxyz"]
    return [draw.choices(vocabulary, k=draw.randint(60, 200)) for _ in range(count)]


def test_nearly_all_near_duplicates_are_found_and_nothing_else(run_context: RunContext) -> None:
    """The benchmark cleaning.py plants a thousand in a hundred thousand."""
    draw = random.Random(1)
    documents = pages(1500, draw)
    planted = []
    for row in range(100):
        copy = list(documents[row])
        for at in draw.sample(range(len(copy)), round(0.05 * len(copy))):
            copy[at] = "edited"
        planted.append(copy)
    rows = [" ".join(document) for document in [*documents, *planted]]
    found = earlier(made("near-duplicates"), rows, run_context)
    assert found[:1500] == [-1] * 1500
    assert sum(other == row for row, other in enumerate(found[1500:])) >= 95


def test_similar_is_what_shares_so_many_ngrams(run_context: RunContext) -> None:
    draw = random.Random(2)
    (page,) = pages(1, draw)
    for replaced, near in ((0.02, True), (0.3, False)):
        copy = list(page)
        for at in draw.sample(range(len(copy)), round(replaced * len(copy))):
            copy[at] = "edited"
        assert (similarity(" ".join(page), " ".join(copy), 3) >= 0.65) == near
        assert earlier(made("near-duplicates"), [" ".join(page), " ".join(copy)], run_context)[1] == (0 if near else -1)
    rows = ["Two words", "two, WORDS!", "", "…", "three little words", "two"]
    assert earlier(made("near-duplicates"), rows, run_context) == [-1, 0, -1, -1, -1, -1]


def test_every_planted_sentence_of_thirteen_words_is_found(run_context: RunContext, tmp_path: Path) -> None:
    draw = random.Random(3)
    documents, sentences = pages(300, draw), pages(100, draw)
    tests = tmp_path / "tests.txt"
    tests.write_text("\n".join(" ".join(sentence[:13]).capitalize() + "." for sentence in sentences))
    judge = made("decontamination", files=str(tests)).judge(run_context)
    for row, sentence in enumerate(sentences):
        at = draw.randint(0, len(documents[row]))
        documents[row][at:at] = [word.upper() for word in sentence[:13]]
    dropped = [isinstance(judge(" — ".join(document)), Dropped) for document in documents]
    assert dropped == [True] * 100 + [False] * 200
    found = judge(" ".join(documents[0]))
    assert found == Dropped("overlaps a test text", " ".join(sentences[0][:13]))
    assert judge(" ".join(sentences[0][:12])) == " ".join(sentences[0][:12])


def test_test_texts_that_are_too_short_are_told(
    run_context: RunContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tests = tmp_path / "tests.jsonl"
    tests.write_text('{"question": "a few words"}\n{"question": "' + "and " * 13 + '"}\n')
    with caplog.at_level("INFO", logger="toolkit"):
        made("decontamination", files=str(tests), column="question").judge(run_context)
    assert "1 of 2 test texts have fewer than 13 words" in caplog.text
    tests.write_text('{"question": "a few words"}\n')
    with pytest.raises(OptionError, match="none of the 1 test texts has 13 words") as error:
        made("decontamination", files=str(tests), column="question").judge(run_context)
    assert error.value.option == "words"
    with pytest.raises(OptionError, match="no file matches"):
        made("decontamination", files=str(tmp_path / "none")).fingerprint(run_context)


def test_what_it_finds_depends_on_what_is_in_the_files(run_context: RunContext, tmp_path: Path) -> None:
    tests = tmp_path / "tests.txt"
    seen = []
    for text in ("one\ntwo", "one\nthree", "one\ntwo"):
        tests.write_text(text)
        seen.append(made("decontamination", files=str(tests)).fingerprint(run_context))
    assert seen[0] == seen[2] != seen[1]


GOPHER = {
    "fewer than 50 words": SENTENCE,
    "mean word length outside 3 to 10": "a b c the of " * 20,
    "more than 0.1 # per word": f"{PROSE} " + "# " * 20,
    "more than 0.1 ellipsis per word": PROSE.replace(" ", "… ", 30),
    "more than 90% of the lines begin with a bullet": "\n".join(f"• {line}" for line in PROSE.splitlines()),
    "more than 30% of the lines end with an ellipsis": "\n".join(f"{line}..." for line in PROSE.splitlines()),
    "fewer than 80% of the words have a letter": PROSE + " 1234" * 60,
    "fewer than 2 stop words": "words without any sense " * 20,
}


@pytest.mark.parametrize(("reason", "document"), GOPHER.items())
def test_gophers_quality_rules(reason: str, document: str, run_context: RunContext) -> None:
    plugin = made("gopher-quality")
    assert verdict(plugin, document, run_context) == reason
    assert verdict(plugin, PROSE, run_context) == PROSE


def test_gophers_stop_words_are_those_of_another_language_if_asked(run_context: RunContext) -> None:
    text = "El tren llega tarde por la lluvia y nadie sabe nada " * 6
    assert verdict(made("gopher-quality"), text, run_context) == "fewer than 2 stop words"
    assert verdict(made("gopher-quality", stop_words=["el", "la", "y"]), text, run_context) == text
    assert verdict(made("gopher-quality", min_stop_words=0), text, run_context) == text


DIFFERENT = [f"{word}{number} begins a line of its own, which differs" for number, word in enumerate(WORDS)]
NUMBERED = [f"word{number}" for number in range(60)]
GOPHER_REPETITION = {
    "more than 30% of the lines repeat others": "\n".join([*DIFFERENT, *["the same"] * 12]),
    "more than 20% of the characters are in repeated lines": "\n".join([*DIFFERENT[:6], *["much the same " * 9] * 2]),
    "more than 30% of the paragraphs repeat others": "\n\n".join(["\n".join(DIFFERENT), *["short"] * 4]),
    "more than 20% of the characters are in one 2-gram": " ".join(["again and"] * 9 + WORDS),
    "more than 15% of the characters are in repeated 5-grams": " ".join([*NUMBERED, *NUMBERED[:12]]),
}


@pytest.mark.parametrize(("reason", "document"), GOPHER_REPETITION.items())
def test_gophers_repetition_rules(reason: str, document: str, run_context: RunContext) -> None:
    plugin = made("gopher-repetition")
    assert verdict(plugin, document, run_context) == reason
    for kept in (" ".join(WORDS), SENTENCE, "word", ""):
        assert verdict(plugin, kept, run_context) == kept


def test_characters_in_repeated_ngrams_are_counted_once() -> None:
    from toolkit_plugins.filter.gopher_repetition import _in_repeated

    assert _in_repeated(["a", "b", "c", "d", "e", "f", "a", "b", "c", "d", "e", "f"], 5) == 6
    assert _in_repeated(["a", "b", "c", "d", "e", "a", "b", "c", "d", "e"], 5) == 5
    assert _in_repeated(["aa"] * 7, 5) == 12  # those of the second and third 5-gram: words 1 to 6
    assert _in_repeated(["a", "b", "c", "d"], 5) == 0


def test_c4_keeps_the_lines_that_are_sentences(run_context: RunContext) -> None:
    plugin = made("c4-quality")
    page = (
        "Menu\nThis is the first line that stays.[12]\nToo short.\nPlease enable JavaScript to see all of this.\n"
        "By going on you accept our Privacy Policy in full.\nThis one is cut off in the middle...\n"
        'She said: "And this one stays as well, does it?"\nSo does the last one, at the end of the page [edit].\n'
    )
    assert verdict(plugin, page, run_context) == (
        "This is the first line that stays.\n"
        'She said: "And this one stays as well, does it?"\n'
        "So does the last one, at the end of the page ."
    )
    assert verdict(plugin, page.replace("Menu", "Lorem ipsum"), run_context) == "lorem ipsum"
    assert verdict(plugin, page.replace("Menu", "if (x) {"), run_context) == "a curly bracket"
    assert verdict(plugin, "Menu\nHome\n", run_context) == "no line is a sentence"
    assert verdict(plugin, "This is the only line of it.\n", run_context) == "fewer than 3 sentences"
    assert "Menu" not in verdict(made("c4-quality", terminal_punctuation=False), page, run_context)
    assert "cut off" in verdict(made("c4-quality", terminal_punctuation=False), page, run_context)


def test_regular_expressions_drop_or_replace(run_context: RunContext) -> None:
    text = "Call 555-1234.\nSECRET"
    assert verdict(made("regex", pattern="^secret$", ignore_case=True), text, run_context) == "matches ^secret$"
    assert verdict(made("regex", pattern="^secret$"), text, run_context) == text
    masked = made("regex", pattern=r"(\d{3})-\d{4}", replace=r"\1-0000")
    assert verdict(masked, text, run_context) == "Call 555-0000.\nSECRET"
    assert verdict(made("regex", pattern=r"\S+", replace=""), text, run_context) == "nothing is left"
    for options in ({"pattern": "["}, {"pattern": "a", "replace": r"\1"}, {"pattern": "a", "replace": r"\g<x>"}):
        with pytest.raises(ValueError, match=r"is no regular expression|cannot replace"):
            made("regex", **options)


def test_lengths(run_context: RunContext) -> None:
    plugin = made("length", min_words=2, max_characters=9)
    assert [verdict(plugin, text, run_context) for text in ("a b", "ab", "a b c d e f")] == [
        "a b", "fewer than 2 words", "more than 9 characters"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no document has at least 5 and at most 4"):
        made("length", min_words=5, max_words=4)


def test_languages(run_context: RunContext) -> None:
    pytest.importorskip("py3langid")
    plugin = made("language", languages=["en", "de"])
    english = "The house at the end of the street was sold to a family from the north last year."
    spanish = "La casa al final de la calle fue vendida el año pasado a una familia que vino del norte."
    assert verdict(plugin, english, run_context) == english
    assert verdict(plugin, spanish, run_context) == "in es"
    assert verdict(plugin, "", run_context) == "no certain language"


def test_without_its_package_the_filter_of_languages_says_how_to_get_it(
    run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UnavailableError, match=r"pip install 'pretrain-toolkit\[language\]'"):
        made("language", languages=["en"]).judge(run_context)
    with pytest.raises(ValueError, match="is no language code"):
        made("language", languages=["English"])


def test_ngrams_are_those_of_each_document_alone() -> None:
    texts = ["One, two three — FOUR", "", "one two", "one two three four five", "日本語"]
    hashes, counts = WordNgrams(3)(texts)
    assert counts.tolist() == [2, 0, 0, 3, 1]
    alone = [WordNgrams(3)([text])[0] for text in texts]
    assert numpy.array_equal(numpy.concatenate(alone), hashes)
    assert numpy.array_equal(hashes[:2], hashes[2:4]), "case and punctuation do not count"
    assert len(set(hashes.tolist())) == 4
    assert WordNgrams(3, fill=True)(texts)[1].tolist() == [2, 0, 1, 3, 1]
    known = KnownNgrams(hashes[:2])
    assert known.found(hashes).tolist() == [True, True, True, True, False, False]
    assert KnownNgrams(hashes[:0]).found(hashes).tolist() == [False] * 6
