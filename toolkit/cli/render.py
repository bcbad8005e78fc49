"""The only module that prints: results to standard output, errors and notes to standard error.

Plain text that a terminal of any width and encoding can show; `watch.py` adds the live display of a run.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from toolkit.errors import RecipeError, ToolkitError

if TYPE_CHECKING:
    from toolkit.account import DataAccount
    from toolkit.errors import Problem
    from toolkit.progress import DataPrepared, RunResult
    from toolkit.rehearsal import StandIn

NARROW = 24
"""Columns that words beside a name must have; with fewer they go below it."""
ENDLESS = 10_000
"""The width of what is no terminal: nothing wraps there, so that `grep` finds whole lines."""


def text(words: str = "") -> None:
    """Write to standard output."""
    click.echo(words)


def note(words: str) -> None:
    """Write to standard error: what a person should know and a script should not read."""
    click.echo(words, err=True)


def error(error: ToolkitError) -> None:
    """Write what went wrong to standard error; of several problems each on its line, for editors that jump to it."""
    problems = [problem_line(problem) for problem in error.problems] if isinstance(error, RecipeError) else []
    if len(problems) > 1:
        note(f"error: {len(problems)} problems in the recipe")
        note("\n".join(problems))
    else:
        note(f"error: {problems[0] if problems else error}")


def problem_line(problem: Problem) -> str:
    """One problem as file:line:column: path: message; a word of the command line has no line and column."""
    if not problem.place.file.startswith("--set"):
        return str(problem)
    return ": ".join(part for part in (problem.place.file, problem.path, problem.message) if part)


def as_json(data: Any) -> None:
    """Write one JSON document to standard output; in ASCII, so that no terminal can fail on it."""
    text(json.dumps(data, indent=2, default=str))


def examples(*lines: str) -> str:
    """The end of a help text: commands that a person can copy, line by line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows in columns; on a terminal the last column wraps, and on a narrow one each row is a paragraph.

    Into a file or a pipe nothing wraps, so that `grep` finds whole rows.
    """
    cells = [list(headings), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = terminal_width() - indent
    if room < NARROW and indent + max(len(row[-1]) for row in cells) > terminal_width():
        for row in cells[1:]:
            text("\n  ".join([row[0], *wrapped("  ".join(row[1:]), terminal_width() - 2)]))
        return
    for row in cells:
        first = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        last = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        text(f"\n{' ' * indent}".join([first + last[0], *last[1:]]).rstrip())


def pairs(entries: Mapping[str, Any]) -> None:
    """Write names and values below each other."""
    for line in beside(entries, terminal_width()):
        text(line)


def paragraphs(words: str) -> None:
    """Write prose: lines of a paragraph flow together."""
    for index, paragraph in enumerate(words.split("\n\n")):
        text("\n" * bool(index) + "\n".join(wrapped(" ".join(paragraph.split()), min(terminal_width(), 100))))


def yaml_word(value: Any) -> str:
    """A value on one line, as a recipe would have it: JSON is YAML, but for the quotes that words do not need."""
    if isinstance(value, str) and re.fullmatch(r"(?!true$|false$|null$)[A-Za-z][\w-]*", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def beside(entries: Mapping[str, Any], width: int, *, indent: int = 0) -> list[str]:
    """Lines of names and values; a long value wraps beside its name, or below it where there is no room."""
    margin = indent + max(map(len, entries)) + 2
    below = width - margin < NARROW
    lines = []
    for name, value in entries.items():
        column = indent + 2 if below else margin
        words = [line for paragraph in str(value).splitlines() for line in wrapped(paragraph, width - column)]
        first = [" " * indent + name] if below else [f"{' ' * indent}{name}".ljust(margin) + "".join(words[:1])]
        lines += [*first, *(" " * column + line for line in (words if below else words[1:]))]
    return [line.rstrip() for line in lines]


def wrapped(paragraph: str, width: int) -> list[str]:
    """Lines of at most this width; but a long word, such as a path that a person may copy, stays whole."""
    return textwrap.wrap(paragraph, max(NARROW, width), break_long_words=False, break_on_hyphens=False) or [""]


def terminal_width() -> int:
    """Columns of the terminal; endless where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else ENDLESS


def prepared(event: DataPrepared) -> dict[str, str]:
    """The account of the data in words: what went in, where it went, and what the steps mean."""
    account = event.account
    train, held_out = account.train, account.validation
    splits = [split for split in (train, held_out) if split]
    documents, tokens, dropped = (
        sum(getattr(split, name) for split in splits) for name in ("documents", "tokens", "tokens_dropped")
    )
    held = held_out.tokens_in_blocks if held_out else 0
    return {
        "documents": _documents(account, documents),
        "tokens": f"{tokens:,} = {train.tokens_in_blocks:,} trained + {held:,} held out + {dropped:,} dropped",
        "blocks": f"{train.blocks:,} of {account.block_size:,} tokens; padding {train.padding:.1%}",
        **_special_tokens(account),
        "ends": f"{train.ends_learned:,} of {train.documents:,} document ends are learned",
        "steps": f"{event.total_steps:,} of {event.tokens_per_step:,} tokens: {event.epochs:.3g} "
        f"{'pass' if event.epochs == 1 else 'passes'} over the training tokens",
    }


def _special_tokens(account: DataAccount) -> dict[str, str]:
    found: Counter[str] = Counter()
    for split in (account.train, account.validation):
        found.update(split.special_tokens if split else {})
    counts = ", ".join(f"{times:,} {token}" for token, times in found.most_common(5))
    return {"special": f"tokens written in the text and read as such: {counts}"} if found else {}


def _documents(account: DataAccount, documents: int) -> str:
    words = f"{documents:,}"
    if account.validation:
        words += f" ({account.train.documents:,} trained, {account.validation.documents:,} held out)"
    splits = [split for split in (account.train, account.validation) if split]
    if cut := sum(split.documents_cut for split in splits):
        words += f"; {cut:,} of them cut off at an end token in the text"
    if empty := sum(split.empty_documents for split in splits):
        words += f"; {empty:,} empty ones left out"
    return words


def result(result: RunResult, *, rehearsed: bool) -> None:
    """Write what a run has reached, where its model lies and how to load it."""
    text()
    text(_headline(result, rehearsed=rehearsed))
    entries: dict[str, Any] = {}
    if result.eval_loss is not None and result.perplexity is not None:
        entries["validation"] = f"loss {result.eval_loss:.4f}, perplexity {result.perplexity:,.2f}"
    entries["trained"] = f"{result.steps:,} steps, {result.tokens_seen:,} tokens, {duration(result.seconds)}"
    planned, peak = result.planned_memory_bytes, gigabytes(result.peak_memory_bytes)
    entries["memory"] = f"planned {gigabytes(planned)}, peak {peak}" if planned else f"peak {peak}"
    if not result.memory_was_short:
        entries["memory"] += "; there was room, so what was freed was kept for the next step"
    if result.sample:
        entries["it writes"] = result.sample.strip()
    if result.model_folder:
        entries["model"] = result.model_folder
    if not rehearsed:
        known = result.folder.parent.name == "runs"
        entries["report"] = f"toolkit run report {result.name if known else result.folder}"
    pairs(entries)
    if result.load_line:
        text(f"load it with\n  {result.load_line}")


def not_tested(stand_ins: Iterable[StandIn], name: str) -> None:
    """Write what a rehearsal did without, section by section."""
    sections: dict[str, list[str]] = {}
    for stand_in in stand_ins:
        there, here = (
            value if isinstance(value, str) else json.dumps(value) for value in (stand_in.recipe, stand_in.rehearsal)
        )
        words = [stand_in.option] if stand_in.option else []
        words.append(here if stand_in.rehearsal is not None else "unset" if stand_in.option else "nothing")
        words += [f"instead of {there}"] if stand_in.recipe is not None else []
        sections.setdefault(stand_in.section, []).append(" ".join(words))
    text("\nNot tested, because something small stood in for it:")
    for line in beside({section: ", ".join(parts) for section, parts in sections.items()}, terminal_width(), indent=2):
        text(line)
    text("Nor were the network, and memory, disk and time at full size; for those:")
    text(f"  toolkit recipe plan {name}")


def _headline(result: RunResult, *, rehearsed: bool) -> str:
    if rehearsed:
        return f"Rehearsed: everything works from data to model. What {result.folder} holds is no result."
    if result.already_finished:
        return f"{result.name} was finished before; nothing was changed. Start another beside it with --fresh."
    return f"Finished: {result.name}"


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def gigabytes(size: int) -> str:
    """A size in memory or on disk."""
    return f"{size / 1e9:.2f} GB"


def magnitude(number: float) -> str:
    """A count in three digits: 950, 12.3k, 124M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
