"""Prints: results to standard output, errors and notes to standard error.

It is plain text that a terminal of any width and encoding can show. The only other module that prints is `watch.py`,
the live display of a run.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from toolkit import formatting
from toolkit.errors import RecipeError, ToolkitError
from toolkit.formatting import MIN_TEXT_COLUMNS, UNWRAPPED_WIDTH, beside, wrapped

if TYPE_CHECKING:
    from pathlib import Path

    from toolkit.errors import Problem
    from toolkit.events import RunResult
    from toolkit.lifecycle.rehearsal import StandIn

SAMPLE_LINES = 3
"""Lines shown of a finished model's sample text."""


def text(words: str = "") -> None:
    """Write to standard output."""
    click.echo(words)


def note(words: str) -> None:
    """Write to standard error: what the user should know, but a script should not parse."""
    click.echo(words, err=True)


def error(error: ToolkitError) -> None:
    """Write what went wrong to standard error."""
    note(error_text(error))


def error_text(error: ToolkitError) -> str:
    """What went wrong; several problems one per line, so that editors can jump to each."""
    problems = [problem_line(problem) for problem in error.problems] if isinstance(error, RecipeError) else []
    if len(problems) > 1:
        return "\n".join([f"error: {len(problems)} problems in the recipe", *problems])
    return f"error: {problems[0] if problems else error}"


def problem_line(problem: Problem) -> str:
    """One problem as file:line:column: path: message; one in a `--set` has no line and column."""
    if not problem.place.file.startswith("--set"):
        return str(problem)
    return ": ".join(part for part in (problem.place.file, problem.path, problem.message) if part)


def as_json(data: Any) -> None:
    """Write one JSON document to standard output, in ASCII, so that it prints on any terminal."""
    text(json.dumps(data, indent=2, default=str))


def examples(*lines: str) -> str:
    """The end of a help text: commands to copy, one per line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows in columns; on a terminal the last column wraps, and on a narrow one each row becomes a paragraph.

    In a file or a pipe nothing wraps, so that `grep` finds whole rows.
    """
    cells = [list(headings), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = terminal_width() - indent
    if room < MIN_TEXT_COLUMNS and indent + max(len(row[-1]) for row in cells) > terminal_width():
        for row in cells[1:]:
            text("\n  ".join([row[0], *wrapped("  ".join(row[1:]), terminal_width() - 2)]))
        return
    for row in cells:
        first = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        last = wrapped(row[-1], room)
        text(f"\n{' ' * indent}".join([first + last[0], *last[1:]]).rstrip())


def pairs(entries: Mapping[str, Any]) -> None:
    """Write names and values, one pair per line."""
    for line in beside(entries, terminal_width()):
        text(line)


def paragraphs(words: str) -> None:
    """Write prose, with each paragraph rewrapped."""
    for index, paragraph in enumerate(words.split("\n\n")):
        text("\n" * bool(index) + "\n".join(wrapped(" ".join(paragraph.split()), min(terminal_width(), 100))))


def yaml_word(value: Any) -> str:
    """A value on one line, as in a recipe: JSON, which is YAML too, without the quotes that plain words do not need."""
    if isinstance(value, str) and re.fullmatch(r"(?!true$|false$|null$)[A-Za-z][\w-]*", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def terminal_width() -> int:
    """Columns of the terminal; `UNWRAPPED_WIDTH` if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNWRAPPED_WIDTH


def result(result: RunResult, *, recipe: str, rehearsed: bool) -> None:
    """Write a run's results, where its model is and how to load it."""
    text()
    text(_headline(result, recipe=recipe, rehearsed=rehearsed))
    entries: dict[str, Any] = reached(
        steps=result.steps,
        tokens_seen=result.tokens_seen,
        seconds=result.seconds,
        eval_loss=result.eval_loss,
        perplexity=result.perplexity,
        peak_memory_bytes=result.peak_memory_bytes,
        planned_memory_bytes=result.planned_memory_bytes,
        memory_was_short=result.memory_was_short,
        by_source=result.eval_loss_by_source,
    )
    if result.sample:
        entries["sample"] = beginning(result.sample)
    if result.model_folder:
        entries["model"] = result.model_folder
    if not rehearsed:
        entries["report"] = f"toolkit run report {_known_as(result)}"
    pairs(entries)
    if result.load_line:
        text(f"load it with\n  {result.load_line}")


def not_tested(stand_ins: Iterable[StandIn], name: str) -> None:
    """Write what a rehearsal did not test, section by section."""
    sections: dict[str, list[str]] = {}
    for stand_in in stand_ins:
        there, here = (
            value if isinstance(value, str) else json.dumps(value) for value in (stand_in.recipe, stand_in.rehearsal)
        )
        words = [stand_in.option] if stand_in.option else []
        words.append(here if stand_in.rehearsal is not None else "unset" if stand_in.option else "nothing")
        words += [f"instead of {there}"] if stand_in.recipe is not None else []
        sections.setdefault(stand_in.section, []).append(" ".join(words))
    text("\nNot tested, because a small stand-in replaced it:")
    for line in beside({section: ", ".join(parts) for section, parts in sections.items()}, terminal_width(), indent=2):
        text(line)
    text("Nor were the network, or memory, disk and time at full size. To check those, and the data:")
    text(f"  toolkit recipe plan {name}")


def reached(
    *,
    steps: int,
    tokens_seen: int,
    seconds: float,
    eval_loss: float | None,
    perplexity: float | None,
    peak_memory_bytes: int,
    planned_memory_bytes: int | None,
    memory_was_short: bool,
    by_source: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """The results of a run in words; `by_source` are the held-out losses of a mixture's sources."""
    entries = {}
    if eval_loss is not None and perplexity is not None:
        entries["validation"] = f"loss {formatting.loss(eval_loss)}, perplexity {formatting.perplexity(perplexity)}"
    if by_source:
        entries["by source"] = ", ".join(f"{name} {formatting.loss(loss)}" for name, loss in by_source.items())
    counts = (formatting.counted(steps, "step"), formatting.counted(tokens_seen, "token"))
    entries["trained"] = ", ".join((*counts, formatting.duration(seconds)))
    entries["memory"] = f"peak {formatting.size(peak_memory_bytes)}"
    if planned_memory_bytes:
        entries["memory"] += f"; planned {formatting.size(planned_memory_bytes)}"
        if peak_memory_bytes > planned_memory_bytes and not memory_was_short:
            entries["memory"] += " (memory was plentiful, so freed memory was kept for reuse)"
    return entries


def beginning(sample: str) -> str:
    """The first lines of a generated text; the report and --json have all of it."""
    width = min(terminal_width(), 100) - len("validation  ")
    lines = [part for line in sample.splitlines() if line.strip() for part in wrapped(line.strip(), width)]
    return "\n".join(lines[:SAMPLE_LINES]) + " ..." * (len(lines) > SAMPLE_LINES)


def _known_as(result: RunResult) -> str | Path:
    """The run as a command would name it: by name, or by folder."""
    return result.name if result.folder.parent.name == "runs" else result.folder


def _headline(result: RunResult, *, recipe: str, rehearsed: bool) -> str:
    if rehearsed:
        return f"Rehearsal passed: everything works, from data to model. {result.folder} holds a test, not a result."
    if result.already_finished and result.not_exported:
        return (
            f"{result.name} has already finished, and its recipe now has an exporter that has not run: "
            f"{', '.join(result.not_exported)}. Nothing was changed; to run it:\n"
            f"  toolkit run export {_known_as(result)} --recipe {recipe}"
        )
    if result.already_finished:
        return f"{result.name} has already finished; nothing was changed. To start a new run beside it, add --fresh."
    return f"Finished: {result.name}"
