"""The model card: README.md of an exported folder, with the metadata that the Hub reads.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from toolkit.api import Exporter, Results, RunContext

REPOSITORY = "path/to/this/folder"
"""Placeholder for the model's location in a card's code; an upload replaces it with the repository's name."""
SPLITS = {"train": "trained on", "validation": "held out"}


class CardedExporter(Exporter):
    """An exporter that writes a model card."""

    license: str | None = Field(default=None, pattern=r"^[a-z0-9.+-]+$")
    """Licence of the model, by its name on the Hub: apache-2.0, cc-by-sa-4.0. If not given, for a model from scratch
    that of its documents where their source names one, otherwise `unknown`."""
    language: str | tuple[str, ...] = ()
    """Languages of the model, as ISO 639-1 codes: en, or [en, de]. If not given, those that the dataset names."""

    def write_card(
        self,
        folder: Path,
        results: Results,
        run: RunContext,
        *,
        parameters: int,
        what: str,
        proof: str,
        base: str | None = None,
        loading: str | None = None,
    ) -> None:
        """Write README.md: what the model is, its data, results and licences, and how to load it.

        Args:
            folder: where to write it.
            results: what the run reports about itself.
            run: the run.
            parameters: the number of exported parameters.
            what: a sentence on what the model is.
            proof: how the folder was checked.
            base: the published model that it was trained from.
            loading: Python that loads it, if not the usual lines; with REPOSITORY for the folder.
        """
        licenses = [self.license] if self.license else [] if base else _of_the_documents(results)
        languages = [self.language] if isinstance(self.language, str) else list(self.language or results.languages)
        auto = "AutoModelForCausalLM" if run.task == "causal-lm" else "AutoModelForMaskedLM"
        code = loading or (
            f"from transformers import AutoTokenizer, {auto}\n\n"
            f'model = {auto}.from_pretrained("{REPOSITORY}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{REPOSITORY}")'
        )
        sections = [
            f"---\n{self._metadata(run, licenses, languages, base=base, is_adapter=loading is not None)}\n---",
            f"# {run.name}",
            what,
            *(["**This is a rehearsal: the model is tiny and has learned nothing.**"] if run.rehearsal else []),
            f"* parameters: {parameters:,}\n* objective: {run.task}, {run.block_size:,} tokens per sequence\n"
            f"* seed: {run.seed}\n* check: {proof}",
            "## Results",
            "\n".join(_measured(results.metrics)) or "None were measured.",
            "## Data",
            "\n".join(_counted(results.data)) or "No account was given.",
            "## Licences",
            "\n".join(_licences(self.license, results, base)),
            "## Use",
            f"```python\n{code}\n```",
            "## Settings",
            "The complete recipe; `toolkit recipe run` repeats the training.",
            f"```yaml\n{results.recipe.strip()}\n```",
        ]
        (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")

    def _metadata(
        self, run: RunContext, licenses: list[str], languages: list[str], *, base: str | None, is_adapter: bool
    ) -> str:
        from huggingface_hub import ModelCardData

        license = licenses[0] if licenses else "unknown"
        # The Hub's names are lower case; a licence without one is `other` there, with its own name in license_name.
        named: dict[str, Any] = (
            {"license": license} if license.islower() else {"license": "other", "license_name": license}
        )
        data = ModelCardData(
            language=languages or None,
            library_name="peft" if is_adapter else "transformers",
            pipeline_tag="text-generation" if run.task == "causal-lm" else "fill-mask",
            tags=["pretrain-toolkit"],
            base_model=base if base and not Path(base).is_dir() else None,  # a folder means nothing on the Hub
            **named,
        )
        return data.to_yaml()


def _of_the_documents(results: Results) -> list[str]:
    """The licences of the documents; of sources with different ones, all that apply together, in one expression."""
    first = {licenses[0] for licenses in results.source_licenses.values() if licenses}
    return [" AND ".join(sorted(first))] if results.licenses and len(first) > 1 else list(results.licenses)


def as_uploaded(card: str, repository: str) -> str:
    """The card with code that loads the model from a repository on the Hub."""
    return card.replace(f'"{REPOSITORY}"', json.dumps(repository))


def _measured(metrics: Mapping[str, float]) -> Iterator[str]:
    if loss := metrics.get("eval_loss"):
        yield f"* validation loss: {loss:.4f} nats per token"
    if perplexity := metrics.get("perplexity"):
        yield (
            f"* validation perplexity: {perplexity:,.2f}"
            if perplexity < 1e6
            else "* validation perplexity: over a million"
        )
    yield f"* steps: {metrics['steps']:,.0f}"
    if averaged := metrics.get("averaged_checkpoints"):
        yield f"* weights: the mean of the last {averaged:.0f} checkpoints up to there"
    yield f"* tokens seen: {metrics['tokens_seen']:,.0f}"
    if seconds := metrics.get("seconds"):
        yield f"* training time: {seconds / 60:,.0f} minutes" if seconds >= 120 else f"* training time: {seconds:.0f} s"


def _counted(data: Mapping[str, Any]) -> Iterator[str]:
    for name, words in SPLITS.items():
        if split := data.get(name):
            counts = (f"{split[what]:,} {what}" for what in ("documents", "tokens") if what in split)
            yield f"* {words}: {', '.join(counts)}"
    if filters := data.get("filters"):
        dropped = sum(one["dropped_documents"] for one in filters)
        yield f"* filters: {', '.join(one['name'] for one in filters)}; they dropped {dropped:,} documents"
    for name, source in data.get("mixture", {}).get("sources", {}).items():
        yield f"* of the source {name}: {source['tokens']:,} tokens seen, {source['passes']:.3g} passes"
    if "vocabulary_size" in data:
        yield f"* vocabulary: {data['vocabulary_size']:,} tokens"


def _licences(own: str | None, results: Results, base: str | None) -> Iterator[str]:
    if own:
        yield f"* this model: {own}"
    if base:
        yield f"* {base}, which it was made of: see there"
    unknown = "their source names none; look it up before you pass the model on"
    if results.source_licenses:
        for name, licenses in results.source_licenses.items():
            yield f"* the documents of the source {name}: {', '.join(licenses) or unknown}"
        return
    yield f"* the documents: {', '.join(results.licenses) or unknown}"
