"""Run directory -> one self-contained HTML page: the results, how they were reached, and with which data and settings.

Reads files and nothing else: no torch, no model, no network, and no assumption that the run has finished, evaluated,
or logged more than once. A part of the page whose data is missing is left out. Wording and layout are the template's;
this module gathers and counts.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import toolkit
from toolkit import formatting
from toolkit.recipe.provenance import settings
from toolkit.report import sources
from toolkit.report.chart import Chart, Point, line_chart
from toolkit.report.lines import filters, stream
from toolkit.report.passages import shared_text
from toolkit.report.templating import shown, templates, write_page
from toolkit.storage.run_directory import RunDirectory, now
from toolkit.system.files import read_json, read_json_lines

Item = TypeVar("Item")

MAX_SAMPLES = 12
"""Maximum number of sample texts shown; the first and the last always are."""
MAX_ROWS = 60
"""Maximum number of rows in the table behind the charts, in addition to those with an evaluation."""

COLUMNS: Mapping[str, Callable[[float], str]] = {
    "loss": formatting.loss,
    "eval_loss": formatting.loss,
    "perplexity": formatting.perplexity,
    "learning_rate": "{:.3g}".format,
    "grad_norm": "{:.3g}".format,
    "tokens_per_second": formatting.compact,
}
"""Columns of that table, besides the step and the tokens seen."""

BOUNDARY_TOKEN = re.compile(r"(<\|[^|<>\s]+\|>|</?s>|\[SEP\]|\[CLS\])")
"""Common spellings of tokens at a document boundary, to make them stand out in the excerpt."""


def write(run: RunDirectory, target: Path) -> None:
    """Write the report of a run, finished or not, as one self-contained HTML file.

    Raises:
        UnavailableError: the file cannot be written.
    """
    write_page(render(run), target)


def render(run: RunDirectory) -> str:
    """The page as HTML text."""
    metrics = run.metrics()
    record = run.record
    data = _optional(run.folder / "data.json")
    planned = record.get("planned_memory_bytes")
    template = templates().get_template("report.html.jinja")
    return template.render(
        name=run.name,
        record=record,
        facts=Facts.gather(metrics, record, data),
        charts=charts(metrics, record),
        rows=rows(metrics),
        columns=COLUMNS,
        planned=f"planned {formatting.size(planned)}" if planned else "",
        data=data and data_account(data),
        sources=list(sources.rows(data or {}, metrics)),
        samples=list(samples(run, record)),
        attempts=list(attempts(record)),
        environment=dict(flat(_optional(run.folder / "environment.json") or {})),
        settings=settings(run.folder / "resolved.yaml"),
        recipe=_text(run.folder / "recipe.yaml"),
        written=formatting.moment(now()),
        version=toolkit.__version__,
    )


@dataclass(frozen=True)
class Facts:
    """The results, as far as the files know them."""

    status: str
    step: int
    total_steps: int | None
    train_loss: float | None
    eval_loss: float | None
    best: Mapping[str, Any] | None
    """The evaluation with the lowest loss, if that is not the last one."""
    perplexity: float | None
    even_loss: float | None
    """Loss of uniform guessing over the vocabulary: where an untrained model starts."""
    tokens_seen: int
    seconds: float
    tokens_per_second: float | None
    """Median of the logged values."""
    parameters: int | None
    peak_memory_bytes: int | None
    """Of the last attempt, as in `run show`: that of the device, whose peak a plan predicts."""
    saves: int
    save_seconds: float
    save_bytes: int | None

    @classmethod
    def gather(cls, metrics: Sequence[Mapping[str, Any]], record: Mapping[str, Any], data: Any) -> Facts:
        """Take the results of a finished run, or else the last lines of its metrics."""
        train, evaluations, saves = (_of_kind(metrics, kind) for kind in ("train", "eval", "save"))
        last: Mapping[str, Any] = train[-1] if train else {}
        results: Mapping[str, Any] = record.get("results") or {}
        final: Mapping[str, Any] = evaluations[-1] if evaluations else {}
        best = min(evaluations, key=lambda line: float(line["eval_loss"]), default=None)
        vocabulary = (data or {}).get("vocabulary_size")
        speeds = [line["tokens_per_second"] for line in train if line.get("tokens_per_second")]
        return cls(
            status=str(record["status"]),
            step=int(results.get("steps") or max((line["step"] for line in metrics), default=0)),
            total_steps=(data or {}).get("total_steps"),
            train_loss=last.get("loss"),
            eval_loss=_first(results.get("eval_loss"), final.get("eval_loss")),
            best=best if best is not None and best["step"] != final["step"] else None,
            perplexity=_first(results.get("perplexity"), final.get("perplexity")),
            even_loss=math.log(vocabulary) if vocabulary else None,
            tokens_seen=int(results.get("tokens_seen") or last.get("tokens_seen") or 0),
            seconds=float(results.get("seconds") or last.get("seconds") or 0),
            tokens_per_second=statistics.median(speeds) if speeds else None,
            parameters=results.get("parameters"),
            peak_memory_bytes=_first(results.get("peak_memory_bytes"), last.get("peak_memory_bytes")),
            saves=len(saves),
            save_seconds=sum(float(line["seconds"]) for line in saves),
            save_bytes=saves[-1].get("bytes") if saves else None,
        )


def charts(metrics: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[Chart]:
    """The charts that can be drawn; the first is that of the losses."""

    def curve(kind: str, key: str) -> list[Point]:
        return [(line["step"], float(line[key])) for line in _of_kind(metrics, kind) if line.get(key) is not None]

    resumed = [
        (attempt["from_step"], f"resumed at step {attempt['from_step']:,}")
        for attempt in record["attempts"][1:]
        if attempt["from_step"]
    ]
    losses = [("training", curve("train", "loss")), ("held out", curve("eval", "eval_loss"))]
    others = [
        ("Learning rate", "", "learning_rate"),
        ("Throughput", "tokens per second", "tokens_per_second"),
        ("Gradient norm", "before clipping", "grad_norm"),
    ]
    drawn = [
        line_chart("Loss", "nats per token", losses, marks=resumed),
        line_chart("Held-out loss by source", "nats per token", sources.losses(metrics), marks=resumed),
        *(
            line_chart(title, unit, [(title.lower(), curve("train", key))], from_zero=True, marks=resumed)
            for title, unit, key in others
        ),
    ]
    return [chart for chart in drawn if chart]


def rows(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table behind the charts: evenly spaced logged steps, and every evaluation."""
    train, evaluations = _of_kind(metrics, "train"), _of_kind(metrics, "eval")
    merged: dict[int, dict[str, Any]] = {line["step"]: {**line} for line in evenly(train, MAX_ROWS)}
    for line in evaluations:
        merged.setdefault(line["step"], {"step": line["step"]}).update(
            eval_loss=line["eval_loss"], perplexity=line["perplexity"]
        )
    return [merged[step] for step in sorted(merged)]


def data_account(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data account with its sums: total tokens = trained on + held out + dropped."""
    splits = [split for split in (data["train"], data.get("validation")) if split]
    parts = [
        ("trained on", data["train"]["tokens_in_blocks"]),
        ("held out", data["validation"]["tokens_in_blocks"] if data.get("validation") else 0),
        ("dropped", sum(split["tokens_dropped"] for split in splits)),
    ]
    total = sum(split["tokens"] for split in splits)
    filtered = [one for own in sources.each_source(data).values() for one in own.get("filters", ())]
    return {
        **data,
        "splits": list(zip(("training", "held out"), splits, strict=False)),
        "total": total,
        "parts": [{"label": label, "tokens": tokens, "percent": 100 * tokens / total} for label, tokens in parts],
        "filters": list(zip(filters(data).items(), filtered, strict=True)),
        "stream_words": stream(data).replace("\n", "; "),
        "shared": shared_text(data),
        "adds_up": sum(tokens for _, tokens in parts) == total,
        "pieces": [
            {"text": text, "border": bool(BOUNDARY_TOKEN.fullmatch(text))}
            for text in BOUNDARY_TOKEN.split(data["excerpt"])
        ],
    }


def samples(run: RunDirectory, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Some of the generated texts, in order: when, the prompt, and the continuation."""
    lines = list(read_json_lines(run.folder / "samples.jsonl"))
    for line in evenly(lines, MAX_SAMPLES):
        prompt, text = str(line.get("prompt") or ""), str(line["text"])
        rest = text.removeprefix(prompt).rstrip()
        yield {"when": f"step {line['step']:,}", "prompt": prompt, "rest": rest if prompt else rest.lstrip("\n")}
    final = (record.get("results") or {}).get("sample")
    if final and not (lines and lines[-1]["text"] == final):
        yield {"when": "end of training", "prompt": "", "rest": str(final).strip("\n")}


def attempts(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each process that worked on the run, and how it ended."""
    for number, attempt in enumerate(record["attempts"], start=1):
        unfinished = "no end recorded" if number < len(record["attempts"]) else "still running, or killed"
        started, ended = attempt["started"], attempt.get("ended")
        lasted = datetime.fromisoformat(ended) - datetime.fromisoformat(started) if ended else None
        yield {
            "number": number,
            "started": formatting.moment(started),
            "from_step": attempt["from_step"],
            "step": attempt.get("step"),
            "lasted": lasted.total_seconds() if lasted is not None else None,
            "how": attempt.get("how") or unfinished,
            "error": attempt.get("error"),
        }


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested plain data as (dotted path, text), with byte counts formatted."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from flat(child, f"{path}.{key}" if path else str(key))
    elif path.endswith("_bytes"):
        yield path.removesuffix("_bytes"), formatting.size(value)
    elif isinstance(value, list):
        yield path, ", ".join(map(shown, value))
    else:
        yield path, shown(value)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly spaced, the first and the last included."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _of_kind(metrics: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [line for line in metrics if line["kind"] == kind]


def _first(*values: Item | None) -> Item | None:
    return next((value for value in values if value is not None), None)


def _optional(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.exists() else None


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None
