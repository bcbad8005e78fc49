"""The sources of a mixture in the report: what is said of each, what the run takes of it, the held-out loss on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.report.chart import Point


def each_source(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The accounts of a mixture's sources, by the name that stands before what is said of each; or the only account."""
    sources: Mapping[str, Mapping[str, Any]] = data.get("sources") or {}
    return {f"{name}: ": own for name, own in sources.items()} or {"": data}


def rows(data: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each source: its documents and tokens, what the run takes of them, and the last held-out loss."""
    last: Mapping[str, float] = next((line["by_source"] for line in reversed(metrics) if "by_source" in line), {})
    mixture: Mapping[str, Any] = data.get("mixture", {"sources": {}, "stages": []})
    run = sum(stage["tokens"] for stage in mixture["stages"])
    for name, plan in mixture["sources"].items():
        account = data["sources"][name]
        yield {
            "name": name,
            "shares": ", then ".join(f"{stage['shares'][name]:.1%}" for stage in mixture["stages"]),
            "share": plan["tokens"] / run,
            **plan,
            "train": account["train"],
            "held_out": (account.get("validation") or {}).get("tokens_in_blocks"),
            "loss": last.get(name),
        }


def losses(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Point]]]:
    """The curve of the held-out loss of each source."""
    lines = [line for line in metrics if "by_source" in line]
    names = list(lines[-1]["by_source"]) if lines else []
    return [
        (name, [(line["step"], float(line["by_source"][name])) for line in lines if name in line["by_source"]])
        for name in names
    ]
