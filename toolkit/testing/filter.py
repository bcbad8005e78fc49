"""The checks of a filter plugin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from toolkit.api import CorpusFilter, Dropped, Filter, RunContext
from toolkit.data.filter_pass import FilterError, judging, signing
from toolkit.testing.bench import Bench, disturb_random_numbers, require
from toolkit.testing.elsewhere import answer_elsewhere

if TYPE_CHECKING:
    import numpy


def documents(bench: Bench) -> list[str]:
    """Texts like those of a corpus, in more than one language, some of them twice, and what is rarely thought of."""
    pages = ["\n".join(bench.texts[start : start + 8]) for start in range(0, 160, 8)]
    odd = [
        "",
        " \n",
        "word",
        "l'été à Zürich — 42 %",
        "日本語のテキスト。",
        "a\0b",
        "\N{GRINNING FACE}" * 40,
        "x" * 100_000,
    ]
    return [*pages, *odd, *pages[:3], pages[4].upper(), *bench.texts[:20]]


def facts(plugin: Filter, bench: Bench) -> str:
    """What it says about itself has the type that the contract gives it."""
    version = plugin.version
    require(isinstance(version, int), f"version is {version!r} and not a number")
    needs = plugin.needs_held_out()
    require(isinstance(needs, bool), f"needs_held_out returns {needs!r} and not True or False")
    told = plugin.fingerprint(_run(plugin, bench))
    require(isinstance(told, str), f"fingerprint returns {told!r} and not text")
    if isinstance(plugin, CorpusFilter):
        require(isinstance(plugin.reason, str) and plugin.reason, f"reason is {plugin.reason!r} and not text")
        return "it compares documents"
    return "it judges each document alone"


def verdicts(plugin: Filter, bench: Bench) -> str:
    """It gives every document a verdict, which depends on that document alone; or a signature, likewise."""
    texts = documents(bench)
    disturb_random_numbers(1)
    together = answers(plugin, bench, texts)
    disturb_random_numbers(2)
    backwards = answers(plugin, bench, texts[::-1])[::-1]
    different = next((text for text, one, other in zip(texts, together, backwards, strict=True) if one != other), None)
    shown = (different or "")[:60]
    require(different is None, f"what it says of a document depends on those before it, as for {shown!r}")
    if isinstance(plugin, CorpusFilter):
        return f"{len(texts)} documents get signatures, each its own, in whatever order"
    dropped = [verdict for verdict in together if verdict[0] == "dropped"]
    reasons = sorted({reason for _, reason in dropped})
    require(all(reasons), "it drops a document without a reason")
    changed = sum(kind == "changed" for kind, _ in together)
    told = f" ({', '.join(reasons[:3])})" if reasons else ""
    return f"of {len(texts)} documents it drops {len(dropped)}{told} and changes {changed}, in whatever order"


def answers(plugin: Filter, bench: Bench, texts: Sequence[str]) -> list[tuple[str, str]]:
    """For each document what the filter says of it."""
    if isinstance(plugin, CorpusFilter):
        return [("signed", row.tobytes().hex()) for row in _signatures(plugin, bench, texts)]
    try:
        judging([plugin], _run(plugin, bench))(texts)  # as in a run, where what it returns is checked
        judge = plugin.judge(_run(plugin, bench))
        return [_plain(text, judge(text)) for text in texts]
    except FilterError as failed:
        raise failed.error from None


def _run(plugin: Filter, bench: Bench) -> RunContext:
    """The context of a run, with held-out documents for a filter that needs them."""
    run = bench.run()
    if not plugin.needs_held_out():
        return run
    file = run.cache / "held-out.jsonl"
    file.write_text("".join(f"{json.dumps({'text': text})}\n" for text in bench.texts[:20]), encoding="utf-8")
    return replace(run, held_out=file)


def _signatures(plugin: CorpusFilter, bench: Bench, texts: Sequence[str]) -> numpy.ndarray[Any, Any]:
    import numpy

    try:
        signatures = signing(plugin, bench.run())(texts).documents["signature"].combine_chunks()
    except FilterError as failed:
        raise failed.error from None
    return numpy.array(signatures.flatten()).reshape(len(texts), -1)


def _plain(text: str, verdict: str | Dropped) -> tuple[str, str]:
    if isinstance(verdict, Dropped):
        return "dropped", verdict.reason
    return ("kept", "") if verdict == text else ("changed", verdict)


def compared(plugin: Filter, bench: Bench) -> str:
    """One that compares documents names an earlier one for each that it drops."""
    import numpy

    if not isinstance(plugin, CorpusFilter):
        return "it compares no documents"
    texts = documents(bench)
    signatures = _signatures(plugin, bench, texts)
    before = signatures.copy()
    earlier = plugin.earlier(signatures, bench.run())
    require((signatures == before).all(), "earlier changes the signatures")
    fits = isinstance(earlier, numpy.ndarray) and earlier.shape == (len(texts),) and earlier.dtype == "int64"
    require(fits, f"earlier returns {earlier!r:.60} and not int64, shape (documents,)")
    later = numpy.flatnonzero(earlier >= numpy.arange(len(texts)))
    require(not len(later), f"for document {later[:1]} it names {earlier[later[:1]]}, which is not an earlier one")
    require(len(plugin.earlier(signatures[:0], bench.run())) == 0, "of no documents it drops some")
    return f"of {len(texts)} documents it drops {int((earlier >= 0).sum())}, each because of an earlier one"


def elsewhere(plugin: Filter, bench: Bench) -> str:
    """Another process says the same of the same documents, as one of several has to."""
    here, there = everything(plugin, bench), answer_elsewhere(plugin, bench, everything)
    require(
        here == there, "in another process it says something else; sort sets, draw from a seed, leave the clock out"
    )
    return "the same in another process, with another hash seed, clock and order of files"


def everything(plugin: Filter, bench: Bench) -> list[Any]:
    """All that it says, as JSON has it."""
    return [[*answer] for answer in answers(plugin, bench, documents(bench))]


CHECKS = (("facts", facts), ("verdicts", verdicts), ("compared", compared), ("elsewhere", elsewhere))
