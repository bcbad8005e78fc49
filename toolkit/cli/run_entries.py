"""Entries of `toolkit run show`: how an attempt went, and what a finished run reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit import formatting
from toolkit.cli import render

if TYPE_CHECKING:
    from toolkit.storage.records import AttemptRecord, RunRecord


def results(record: RunRecord) -> dict[str, str]:
    """A finished run's results, as `recipe run` printed them at its end."""
    found = record["results"]
    if not found:
        return {}
    return {
        **render.reached(
            steps=found["steps"],
            tokens_seen=found["tokens_seen"],
            seconds=found["seconds"],
            eval_loss=found["eval_loss"],
            perplexity=found["perplexity"],
            peak_memory_bytes=found["peak_memory_bytes"],
            planned_memory_bytes=record.get("planned_memory_bytes"),
            memory_was_short=found["memory_was_short"],
            by_source=found.get("eval_loss_by_source"),
        ),
        "parameters": formatting.compact(found["parameters"]),
        **({"sample": render.beginning(found["sample"])} if found["sample"] else {}),
    }


def data(account: Mapping[str, Any]) -> dict[str, str]:
    """What data.json says of a stream, and of filters."""
    from toolkit.report import lines

    return {**({"stream": words} if (words := lines.stream(account)) else {}), **lines.filters(account)}


def attempt_line(attempt: AttemptRecord) -> str:
    """When and where it began, how it ended, and what was lost."""
    end = f"{attempt['how']} at step {attempt['step']:,}" if attempt["how"] else "killed, no end recorded"
    why = f": {attempt['error']}" if attempt.get("error") else ""
    lost = ""
    if "lost_steps" in attempt:  # known once the run has resumed
        steps, seconds = attempt["lost_steps"], formatting.duration(attempt["lost_seconds"])
        lost = f"; lost {steps:,} steps, {seconds}" if steps else "; nothing lost"
    return f"{formatting.moment(attempt['started'])} from step {attempt['from_step']:,}; {end}{why}{lost}"
