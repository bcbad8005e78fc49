"""Warnings that passages of held-out documents stand in the training documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit import formatting
from toolkit.report.sources import each_source


def shared_text(data: Mapping[str, Any]) -> list[str]:
    """Warnings that passages of held-out documents stand in the training documents, from data.json."""
    return [
        f"{source}{_shared(shared, other)}"
        for source, own in each_source(data).items()
        for other, shared in {"": own.get("shared_text"), **own.get("shared_with", {})}.items()
        if shared and shared["documents"]
    ]


def _shared(account: dict[str, Any], other: str) -> str:
    from toolkit.data.stats import SharedText

    shared = SharedText.from_dict(account)
    where = f"the training documents{f' of {other}' * bool(other)}"
    searched = "" if shared.training_checked == 1 else f", of which {shared.training_checked:.1%} were searched"
    how_much = ""
    if shared.share is not None:
        copied = f", {formatting.counted(shared.copied, 'document')} for the most part" if shared.copied else ""
        how_much = f", {formatting.share(round(shared.share * 1_000_000), 1_000_000)} of the held-out text{copied}"
    cure = (
        f"filters: [{{plugin: decontamination, files: FILES}}] on {other}, with these texts in FILES, drops"
        if other
        else "filters: [decontamination] on the dataset drops"
    )
    return (
        f"{shared.documents:,} of {shared.checked:,} held-out documents share {shared.words} words in a row with "
        f"{where}{searched}{how_much}, so the held-out loss is too low: ...{shared.examples[0]}... "
        f"{cure} the training documents that do so"
    )
