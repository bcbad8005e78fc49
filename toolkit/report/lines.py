"""The events of a run in words, line by line: for run.log and for what watches a run."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from toolkit import formatting
from toolkit.report.passages import shared_text
from toolkit.report.sources import each_source

if TYPE_CHECKING:
    from toolkit.data.stats import DataAccount, FilterAccount, SplitAccount
    from toolkit.events import DataPrepared, Event, Progressed, StepDone, TrainingStarted

BOUNDARY_TOKEN = re.compile(r"\s*(<\|\w+\|>|</?s>|<[be]os>|\[SEP\]|\[CLS\])\s*")
"""The special tokens at document boundaries, in decoded text."""
MIN_SECONDS_BETWEEN_LINES = 5.0
"""Without a live bar, the lines that show steps are at least this far apart, ..."""
MIN_SHARE_BETWEEN_LINES = 0.05
"""... and at least this share of the training time so far, so that a long run does not flood its log, ..."""
MOST_SECONDS = 60.0
"""... but at most this far, so that nobody waits long for the next one."""
FILES_NAMED = 3
"""Of those of a stream that cannot be read."""
REASONS_SHOWN = 6
"""Of those for which a filter drops documents."""
FIRST_PHASE_SECONDS = 2.0
"""A phase other than training, such as tokenizing, gets its first line once it has taken this long, ..."""
PHASE_SECONDS = 15.0
"""... and then one this often."""


def filled(parts: list[str], width: int) -> list[str]:
    """Lines filled with whole parts, two spaces between them."""
    lines = [parts[0]]
    for part in parts[1:]:
        joined = f"{lines[-1]}  {part}"
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, part]
    return lines


def progress(step: StepDone, loss: float | None) -> list[str]:
    """The numbers of a step, in parts that a line may break between."""
    parts = [f"step {step.step:,}/{step.total_steps:,}"]
    if loss is not None:
        parts.append(f"loss {formatting.loss(loss)}")
    parts.append(f"{formatting.compact(step.tokens_per_second)} tokens/s")
    if step.mfu is not None:
        parts.append(f"{step.mfu:.0%} MFU")
    if step.remaining_seconds is not None:
        parts.append(f"{formatting.duration(math.ceil(step.remaining_seconds))} left")
    if step.last_save_step is not None:
        parts.append(f"saved at {step.last_save_step:,}")
    return parts


def phase(event: Progressed) -> list[str]:
    """How far a phase has come, in parts that a line may break between."""
    if not event.unit:
        return [event.phase]
    if event.unit == "bytes":
        done, rate = formatting.size(event.done), formatting.size(event.per_second)
        of_total = f" of {formatting.size(event.total)}" if event.total is not None else ""
    else:
        done, rate = f"{event.done:,}", f"{formatting.compact(event.per_second)} {event.unit}"
        of_total = f"/{event.total:,} {event.unit}" if event.total is not None else f" {event.unit}"
    parts = [event.phase, f"{done}{of_total}", *([event.detail] if event.detail else [])]
    if event.per_second >= 1 and event.done != event.total:  # at slower rates the remaining time says more
        parts.append(f"{rate}/s")
    if event.remaining_seconds:
        return [*parts, f"{formatting.duration(math.ceil(event.remaining_seconds))} left"]
    # Without a total, or once everything is counted but work continues, the remaining time is unknown.
    return [*parts, f"{formatting.duration(int(event.seconds))} so far"]


def told(event: Event, width: int = formatting.UNWRAPPED_WIDTH) -> list[str]:
    """The lines for an event that deserves lines of its own; steps and saves do not."""
    from toolkit import events

    match event:
        case events.Message():
            return event.text.splitlines()
        case events.DataPrepared():
            excerpt = BOUNDARY_TOKEN.sub(r"\n\1\n", " ".join(event.account.excerpt.split()))
            entries = {**_prepared(event), "excerpt": excerpt}
            return [
                f"data{', from the cache' * event.from_cache}",
                *formatting.beside(entries, width, indent=2),
            ]
        case events.TrainingStarted():
            return _started(event)
        case events.Evaluated():
            loss, perplexity = formatting.loss(event.eval_loss), formatting.perplexity(event.perplexity)
            sources = ", ".join(f"{name} {formatting.loss(own)}" for name, own in event.by_source.items())
            by_source = f" ({sources})" if sources else ""
            return [f"step {event.step:,}: validation loss {loss}{by_source}, perplexity {perplexity}"]
        case events.Exported(folder=None):
            return [f"{event.exporter} is done"]
        case events.Exported():
            return [f"{event.exporter} wrote {event.folder}"]
        case _:
            return []


def _started(event: TrainingStarted) -> list[str]:
    trained = f"{formatting.compact(event.parameters)} parameters"
    if event.trainable_parameters != event.parameters:
        trained += f", {formatting.compact(event.trainable_parameters)} trainable"
    begin = f"from step {event.resumed_from:,} of" if event.resumed_from is not None else "for"
    return [
        f"training {trained}, in {event.precision} on {event.device}",
        f"{begin} {formatting.counted(event.total_steps, 'step')}, in {event.folder}",
    ]


def _prepared(event: DataPrepared) -> dict[str, str]:
    """The data account in words: what went in, where it went, and what it means for the steps."""
    account = event.account
    train, held_out = account.train, account.validation
    splits = [split for split in (train, held_out) if split]
    documents, tokens, dropped = (
        sum(getattr(split, name) for split in splits) for name in ("documents", "tokens", "tokens_dropped")
    )
    held = held_out.tokens_in_blocks if held_out else 0
    epochs = f"{event.epochs:.3g} {'epoch' if event.epochs == 1 else 'epochs'}"
    return {
        **filters(account.as_dict()),
        **({"stream": words} if (words := stream(account.as_dict())) else {}),
        "documents": _documents(account, documents),
        "tokens": f"{tokens:,} = {train.tokens_in_blocks:,} trained + {held:,} held out + {dropped:,} dropped",
        "blocks": f"{train.blocks:,} of {account.block_size:,} tokens; padding {train.padding:.1%}{_cut(train)}",
        **_special_tokens(account),
        "ends": f"{train.ends_learned:,} of {train.documents:,} document ends are training targets",
        **({"warning": "\n".join(warnings)} if (warnings := shared_text(account.as_dict())) else {}),
        "steps": f"{event.total_steps:,} of {event.tokens_per_step:,} tokens: {epochs}",
        **({"mixture": "\n".join(event.mixture.words())} if event.mixture else {}),
    }


def stream(data: Mapping[str, Any]) -> str:
    """How much of each stream is prepared, from data.json; empty if no dataset is one."""
    return "\n".join(
        f"{source}{_stream(own['stream'])}" for source, own in each_source(data).items() if own.get("stream")
    )


def _stream(data: Mapping[str, Any]) -> str:
    from toolkit.data.stats import StreamAccount

    account = StreamAccount(**data)
    words = f"{account.tokens:,} of {account.total_tokens:,} tokens, "
    words += f"from {account.files_begun:,} of {formatting.counted(account.files, 'file')}"
    if not account.is_complete:
        words += "; the rest is prepared beside the training, and the counts are of what is there"
    if account.left_out:
        names = [one["file"] for one in account.left_out]
        more = f" and {len(names) - FILES_NAMED} more" if len(names) > FILES_NAMED else ""
        words += f"; left out, as they cannot be read to their end: {', '.join(names[:FILES_NAMED])}{more}"
    return words


def _cut(split: SplitAccount) -> str:
    if split.documents_in_several_blocks is None:  # in the account of an earlier version
        return ""
    return f"; {split.documents_in_several_blocks / split.documents:.1%} of the documents cut at the end of one"


def filters(data: Mapping[str, Any]) -> dict[str, str]:
    """What each filter did, by its name, from data.json; tokens are estimated by those per character of the rest."""
    return {f"{source}{name}": did for source, own in each_source(data).items() for name, did in _filters(own).items()}


def _filters(data: Mapping[str, Any]) -> dict[str, str]:
    from toolkit.data.stats import FilterAccount

    tokens_per_character = data["train"]["tokens"] / max(1, data["train"]["characters"])
    entries: dict[str, str] = {}
    for number, one in enumerate(map(FilterAccount.from_dict, data.get("filters", ())), start=1):
        parts = []
        if one.dropped_documents:
            share = formatting.share(one.dropped_documents, one.documents)
            tokens = formatting.compact(round(one.dropped_characters * tokens_per_character))
            parts.append(
                f"dropped {one.dropped_documents:,} of {one.documents:,} documents ({share}), "
                f"{formatting.compact(one.dropped_characters)} characters, about {tokens} tokens{_reasons(one)}"
            )
        if one.changed_documents:
            fewer = formatting.compact(abs(one.changed_characters))
            parts.append(
                f"changed {one.changed_documents:,}, by {fewer} characters {_direction(one.changed_characters)}"
            )
        name = one.name if one.name not in entries else f"{one.name} ({number})"
        entries[name] = "; ".join(parts) or f"kept all {one.documents:,} documents as they are"
    return entries


def _reasons(one: FilterAccount) -> str:
    """Why documents were dropped, if there is more than the filter's name says; the most frequent reasons."""
    counts = [f"{count:,} {reason}" for reason, count in one.reasons.items()]
    others = sum([*one.reasons.values()][REASONS_SHOWN:])
    return ": " + ", ".join([*counts[:REASONS_SHOWN], *([f"{others:,} others"] if others else [])])


def _direction(fewer: int) -> str:
    return "fewer" if fewer >= 0 else "more"


def _special_tokens(account: DataAccount) -> dict[str, str]:
    found: Counter[str] = Counter()
    for split in (account.train, account.validation):
        found.update(split.special_tokens if split else {})
    counts = ", ".join(f"{times:,} {token}" for token, times in found.most_common(5))
    return {"special": f"special tokens written in the text and parsed as such: {counts}"} if found else {}


def _documents(account: DataAccount, documents: int) -> str:
    words = f"{documents:,}"
    if account.validation:
        words += f" ({account.train.documents:,} for training, {account.validation.documents:,} held out)"
    splits = [split for split in (account.train, account.validation) if split]
    if cut := sum(split.documents_cut for split in splits):
        words += f"; {cut:,} of them split off at an end token in the text"
    if empty := sum(split.empty_documents for split in splits):
        words += f"; {empty:,} empty ones skipped"
    return words


class LogLines:
    """A line for each event, except that steps get one only now and then."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._began = self._shown_at = clock()
        self._shown_phase: str | None = None
        self._in_training = False

    def __call__(self, event: Event) -> None:
        """Show an event, if it is due."""
        from toolkit.events import Progressed, StepDone, TrainingStarted

        if isinstance(event, TrainingStarted):
            self._began = self._shown_at = self._clock()
            self._in_training = True
        if isinstance(event, StepDone):
            self._in_training, self._shown_phase = event.step < event.total_steps, None
        if isinstance(event, Progressed):
            if self._is_worth_a_line(event):
                self._shown_phase, self._shown_at = event.phase, self._clock()
                self._write("  ".join(phase(event)))
            return
        if not isinstance(event, StepDone):
            for line in told(event):
                self._write(line)
        elif event.loss is not None and self._is_due(event):
            self._shown_at = self._clock()
            self._write("  ".join(progress(event, event.loss)))

    def _is_worth_a_line(self, event: Progressed) -> bool:
        """Whether to show a phase: once it turns out to last, or at once if it reports no progress; then regularly."""
        if event.phase == self._shown_phase:
            return self._clock() - self._shown_at >= PHASE_SECONDS
        if self._in_training:
            return event.seconds >= MIN_SECONDS_BETWEEN_LINES
        return not event.unit or event.seconds >= FIRST_PHASE_SECONDS

    def _is_due(self, event: StepDone) -> bool:
        now = self._clock()
        apart = min(max(MIN_SECONDS_BETWEEN_LINES, MIN_SHARE_BETWEEN_LINES * (now - self._began)), MOST_SECONDS)
        return event.step == event.total_steps or now - self._shown_at >= apart
