"""Judges a batch of documents by several filters, one after the other, and counts what each of them did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from toolkit.api import CorpusFilter, Dropped, Filter, RunContext
from toolkit.data.stats import FilterAccount, FilterExample
from toolkit.errors import OptionError, PluginError

if TYPE_CHECKING:
    import pyarrow

EXAMPLES = 10
"""Kept of each filter, and by each batch of every reason."""
CHANGED = "changed"
EXCERPT_CHARACTERS = 200
BEFORE_A_CHANGE = 60


@dataclass
class Tally:
    """What a filter did to some documents in a row."""

    documents: int = 0
    characters: int = 0
    dropped_characters: int = 0
    changed_documents: int = 0
    changed_characters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[FilterExample]] = field(default_factory=dict)
    """The first ones of each reason."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        examples = {reason: [asdict(example) for example in some] for reason, some in self.examples.items()}
        return vars(self) | {"reasons": dict(self.reasons), "examples": examples}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        """The tally that `as_dict` made plain."""
        examples = {reason: [FilterExample(**one) for one in some] for reason, some in data["examples"].items()}
        return cls(**data | {"reasons": Counter(data["reasons"]), "examples": examples})

    def note(self, reason: str, text: str, found: str) -> None:
        """Keep an example, unless there are enough."""
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES:
            kept.append(FilterExample(reason, text, found))

    def drop(self, text: str, dropped: Dropped) -> None:
        """Count a document that is dropped."""
        self.dropped_characters += len(text)
        self.reasons[dropped.reason] += 1
        self.note(dropped.reason, text[:EXCERPT_CHARACTERS], dropped.found[:EXCERPT_CHARACTERS])

    def change(self, before: str, after: str) -> None:
        """Count a document that is changed."""
        self.changed_documents += 1
        self.changed_characters += len(before) - len(after)
        if len(self.examples.get(CHANGED, ())) < EXAMPLES:
            pairs = enumerate(zip(before, after, strict=False))
            at = next((place for place, (one, other) in pairs if one != other), min(len(before), len(after)))
            around = slice(max(0, at - BEFORE_A_CHANGE), at + EXCERPT_CHARACTERS - BEFORE_A_CHANGE)
            self.note(CHANGED, before[around], after[around])

    def add(self, later: Tally) -> None:
        """Add the tally of the documents that follow."""
        for name in ("documents", "characters", "dropped_characters", "changed_documents", "changed_characters"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.reasons += later.reasons
        for examples in later.examples.values():
            for example in examples:
                self.note(example.reason, example.text, example.found)

    @property
    def dropped(self) -> int:
        """Documents dropped."""
        return self.reasons.total()

    def check_left(self, name: str) -> None:
        """Check that the filter of this name has left something.

        Raises:
            OptionError: it has dropped every document; with examples.
        """
        if not self.documents or self.dropped < self.documents:
            return
        account = self.account(name)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in account.reasons.items())
        shown = "".join(
            f"\n  {example.reason}{f' ({example.found[:80]!r})' if example.found else ''}: {example.text[:80]!r}"
            for example in account.examples
        )
        raise OptionError(
            f"{name} drops every document that reaches it, {self.documents:,}: {reasons}; loosen its options, or "
            f"remove it. Among them:{shown}"
        )

    def account(self, name: str) -> FilterAccount:
        """The account of the filter of this name, with examples of as many reasons as there is room for."""
        turns = [(turn, example) for examples in self.examples.values() for turn, example in enumerate(examples)]
        chosen = [example for _, example in sorted(turns, key=lambda one: one[0])[:EXAMPLES]]
        return FilterAccount(
            name=name,
            documents=self.documents,
            characters=self.characters,
            dropped_documents=self.dropped,
            dropped_characters=self.dropped_characters,
            changed_documents=self.changed_documents,
            changed_characters=self.changed_characters,
            reasons=dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))),
            examples=tuple(chosen),
        )


@dataclass(frozen=True)
class FilterOutcome:
    """What became of consecutive documents."""

    documents: pyarrow.Table
    """A row for each: judged, whether it is `kept`, and its text if that is `changed`; to be compared, its number of
    `characters` and its `signature`."""
    characters: int
    """Of all of them."""
    tallies: list[Tally]
    """One for each filter that judged them."""

    def to_bytes(self) -> bytes:
        """In Arrow's format of streams."""
        import pyarrow as pa

        facts = {"characters": self.characters, "tallies": [tally.as_dict() for tally in self.tallies]}
        table = self.documents.replace_schema_metadata({"outcome": json.dumps(facts)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """What `to_bytes` returned."""
        import pyarrow as pa

        table = pa.ipc.open_stream(content).read_all()
        facts = json.loads(table.schema.metadata[b"outcome"])
        return cls(table, facts["characters"], [Tally.from_dict(tally) for tally in facts["tallies"]])

    @classmethod
    def of(cls, some: Sequence[Self]) -> Self:
        """Put several in a row together."""
        import pyarrow as pa

        tallies = [Tally() for _ in some[0].tallies]
        for one in some:
            for tally, more in zip(tallies, one.tallies, strict=True):
                tally.add(more)
        table = pa.concat_tables(one.documents for one in some).combine_chunks()
        return cls(table, sum(one.characters for one in some), tallies)


class FilterError(Exception):
    """A filter raised an error."""

    def __init__(self, filter_index: int, error: Exception) -> None:
        super().__init__(filter_index, error)
        self.filter_index = filter_index
        self.error = error


class Judges:
    """Filters that judge a document one after the other, each on what the one before it made of it."""

    def __init__(self, filters: Sequence[Filter], run: RunContext) -> None:
        """Raises FilterError: a filter refuses."""
        self._judges: list[Callable[[str], Any]] = []
        for index, one in enumerate(filters):
            try:
                self._judges.append(one.judge(run))
            except Exception as error:
                raise FilterError(index, error) from error

    def tallies(self) -> list[Tally]:
        """An empty tally for each filter."""
        return [Tally() for _ in self._judges]

    def __call__(self, text: str, tallies: Sequence[Tally]) -> str | None:
        """The document as they leave it, None if one drops it; counted in the tally of each that it reaches.

        Raises:
            FilterError: a filter raises an error, or returns something else than text or `Dropped`.
        """
        for index, (judge, tally) in enumerate(zip(self._judges, tallies, strict=True)):
            tally.documents += 1
            tally.characters += len(text)
            try:
                verdict = judge(text)
            except Exception as error:
                raise FilterError(index, error) from error
            if isinstance(verdict, Dropped) and isinstance(verdict.reason, str):
                tally.drop(text, verdict)
                return None
            if not isinstance(verdict, str):
                raise FilterError(
                    index, PluginError(f"its judge returns {verdict!r}, and neither text nor Dropped with its reason")
                )
            if verdict != text:
                tally.change(text, verdict)
                text = verdict
        return text


def judging(filters: Sequence[Filter], run: RunContext) -> Callable[[Sequence[str]], FilterOutcome]:
    """Return the function that judges batches of documents by these filters, each on what the one before it kept.

    Raises:
        FilterError: a filter refuses; so does the function.
    """
    judges = Judges(filters, run)

    def judged(texts: Sequence[str]) -> FilterOutcome:
        import pyarrow as pa

        kept = [False] * len(texts)
        changed: list[str | None] = [None] * len(texts)
        tallies = judges.tallies()
        for row, original in enumerate(texts):
            text = judges(original, tallies)
            kept[row] = text is not None
            if text != original:
                changed[row] = text
        table = pa.table({"kept": kept, "changed": pa.array(changed, pa.large_string())})
        return FilterOutcome(table, sum(map(len, texts)), tallies)

    return judged


def signing(one: CorpusFilter, run: RunContext) -> Callable[[Sequence[str]], FilterOutcome]:
    """Return the function that gives the signatures of a batch of documents.

    Raises:
        FilterError: the filter refuses; so does the function.
    """
    try:
        sign = one.signer(run)
    except Exception as error:
        raise FilterError(0, error) from error

    def signed(texts: Sequence[str]) -> FilterOutcome:
        import pyarrow as pa

        try:
            signatures = sign(texts)
        except Exception as error:
            raise FilterError(0, error) from error
        shape: tuple[int, ...] = getattr(signatures, "shape", ())
        kind = getattr(signatures, "dtype", None)
        if len(shape) != 2 or shape[0] != len(texts) or not shape[1] or kind != "uint64":
            told = f"returns {kind} of shape {shape} for {len(texts)} documents, and not uint64, (documents, width)"
            raise FilterError(0, PluginError(f"its signer {told}"))
        characters = [len(text) for text in texts]
        rows = pa.FixedSizeListArray.from_arrays(signatures.ravel(), shape[1])
        return FilterOutcome(pa.table({"characters": characters, "signature": rows}), sum(characters), [])

    return signed


def judging_anew(offers: Iterable[Any], run: RunContext) -> Callable[[Sequence[str]], FilterOutcome]:
    """The same in another process: `judging`, or `signing` if there is one filter that compares documents.

    Args:
        offers: for each filter, where it comes from and its options.
        run: the context of the run.
    """
    filters: list[Any] = [offer.load().model_validate(options) for offer, options in offers]
    if isinstance(filters[0], CorpusFilter):
        return signing(filters[0], run)
    return judging(filters, run)
