"""`toolkit data`: what is in a recipe's data, before a token is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit import commands, formatting
from toolkit.cli import options, render
from toolkit.cli.completion import complete_recipes
from toolkit.cli.groups import NamingGroup

if TYPE_CHECKING:
    from toolkit.data.inspection import DocumentShown, Inspection
    from toolkit.data.sample_blocks import BlockPart
    from toolkit.data.suspicions import Suspicion
    from toolkit.data.token_files import TokenFormat

BAR_COLUMNS = 40
SHOWN_SCRIPTS = SHOWN_LANGUAGES = 6


@click.group(cls=NamingGroup, epilog=render.examples("toolkit data inspect quickstart"))
def data() -> None:
    """Look at a recipe's data, or export its tokens.

    NAME is the name of a recipe that comes with the toolkit, or the path of a YAML file: ./mine.yaml.
    """


@data.command(
    epilog=render.examples(
        "toolkit data inspect ./mine.yaml",
        "toolkit data inspect ./mine.yaml --documents 1000000",
        "toolkit data inspect ./mine.yaml --json > data.json",
    )
)
@click.argument("name", shell_complete=complete_recipes)
@click.option(
    "--documents", "most_documents", type=click.IntRange(min=1), default=10_000, show_default=True, metavar="N",
    help="Look at so many training documents at most, drawn at random.",
)  # fmt: skip
@options.overrides
@options.plugin_folders
@options.as_json
def inspect(
    name: str, most_documents: int, overrides: tuple[str, ...], plugin_folders: tuple[Path, ...], as_json: bool
) -> None:
    """Inspect the documents, before a token is trained.

    Lengths, tokens per byte, unknown and special tokens, exact duplicates, scripts and languages, odd characters; the
    longest, the shortest and some other documents, and blocks as they would be packed. Says what looks wrong, and which
    option mends it.
    """
    from toolkit.cli.watch import watching
    from toolkit.data.suspicions import described, suspicions
    from toolkit.lifecycle.data_inspection import inspect_data

    resolved = commands.resolve(name, overrides=overrides, plugin_folders=plugin_folders)
    with watching(quiet=False, on_standard_error=True) as listener:
        found = inspect_data(resolved, most_documents=most_documents, listener=listener)
    if as_json:
        by_source = {source: described(one) for source, one in found.items()}
        render.as_json({"name": name, **(by_source.get("") or {"sources": by_source})})
        return
    for source, one in found.items():
        if source:
            render.text(f"\nSource {source}\n")
        _show(one)
        _show_suspicions(suspicions(one))


@data.command(
    "export-tokens",
    epilog=render.examples(
        "toolkit data export-tokens ./mine.yaml --format megatron --output tokens",
        "toolkit data export-tokens quickstart --format nanogpt --output data/python-docs --json",
    ),
)
@click.argument("name", shell_complete=complete_recipes)
@click.option(
    "--format", "token_format", required=True, type=click.Choice(["megatron", "llm.c", "nanogpt", "datatrove"]),
    help="Trainer that is to read them.",
)  # fmt: skip
@click.option(
    "--output", "-o", metavar="DIR", required=True, type=click.Path(path_type=Path),
    help="Folder to write; it must not exist.",
)  # fmt: skip
@options.overrides
@options.plugin_folders
@options.as_json
def export_tokens(
    name: str,
    token_format: TokenFormat,
    output: Path,
    overrides: tuple[str, ...],
    plugin_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Tokenize the documents for another trainer.

    In the format of Megatron (.bin and .idx), llm.c, nanoGPT or datatrove (.ds), each document with its end, and with
    the tokenizer beside it. The dataset `tokens` reads all of these.
    """
    from toolkit.cli.watch import watching
    from toolkit.lifecycle.token_export import export_tokens as exported

    resolved = commands.resolve(name, overrides=overrides, plugin_folders=plugin_folders)
    with watching(quiet=False, on_standard_error=True) as listener:
        written = exported(resolved, output, token_format, listener=listener)
    if as_json:
        render.as_json({split: asdict(one) for split, one in written.items()})
        return
    for split, one in written.items():
        counts = f"{formatting.counted(one.documents, 'document')}, {formatting.counted(one.tokens, 'token')}"
        render.text(f"{split}: {counts} as {one.token_type} in {', '.join(map(str, one.files))}")
    render.text(f"tokenizer: {output / 'tokenizer'}")


def _show(found: Inspection) -> None:
    _show_facts(found)
    _show_lengths(found)
    for heading, documents in (("Shortest", found.shortest), ("Longest", found.longest), ("At random", found.samples)):
        _show_documents(heading, documents)
    _show_blocks(found.blocks)


def _show_facts(found: Inspection) -> None:
    splits = ", ".join(
        f"{number:,} {'held out' * (name == 'validation') or name}" for name, number in found.documents.items()
    )
    with_text = max(found.looked_at - found.empty, 1)
    render.pairs(
        {
            "documents": f"{splits}; {_sample(found)}; {found.empty:,} empty",
            "columns": ", ".join(f"{name} ({kind})" for name, kind in found.columns.items()),
            "text": f"{found.characters:,} characters, {found.bytes:,} bytes",
            "tokens": f"{found.tokens:,}"
            + ("" if found.is_everything else f", about {found.estimated_tokens:,} in all"),
            "tokens per byte": f"{found.tokens_per_byte:.3f}",
            "vocabulary": f"{found.vocabulary_used:,} of {found.vocabulary_size:,} tokens occur",
            "unknown": f"{found.unknown_tokens:,} tokens, {formatting.share(found.unknown_tokens, found.tokens)}",
            "special": ", ".join(
                f"{times:,} {token} ({formatting.share(times, found.tokens)})"
                for token, times in found.special_tokens.items()
            )
            or "none written in the text",
            "length": f"median {found.median_tokens:,} tokens; {found.longer_than_block / with_text:.1%} of the "
            f"documents longer than a block of {found.block_size:,}",
            "duplicates": "; ".join(
                [
                    f"{found.duplicates:,} documents",
                    *(f"{times:,} x {_line(text)!r}" for times, text in found.most_repeated),
                ]
            ),
            "scripts": ", ".join(
                f"{script} {share:.1%}" for script, share in list(found.scripts.items())[:SHOWN_SCRIPTS]
            ),
            "languages": _languages(found),
            "odd characters": "; ".join(
                f"{odd.times:,} {odd.kind} in {formatting.counted(odd.documents, 'document')}: {odd.example!r}"
                for odd in found.odd_characters
            )
            or "none",
        }
    )


def _languages(found: Inspection) -> str:
    if found.languages is None:
        return "not told: pip install 'pretrain-toolkit[language]'"
    shown = list(found.languages.items())[:SHOWN_LANGUAGES]
    return ", ".join(f"{language} {share:.1%}" for language, share in shown) + " of the documents"


def _sample(found: Inspection) -> str:
    return "all looked at" if found.is_everything else f"{found.looked_at:,} drawn at random and looked at"


def _show_lengths(found: Inspection) -> None:
    render.text()
    most = max(found.tokens_by_length.values(), default=1)
    render.table(
        ["TOKENS", "DOCUMENTS", ""],
        (
            [f"{least:,} to {2 * least - 1:,}", f"{number:,}", "#" * -(-BAR_COLUMNS * number // most)]
            for least, number in found.tokens_by_length.items()
        ),
    )


def _show_documents(heading: str, documents: Iterable[DocumentShown]) -> None:
    render.text(f"\n{heading}")
    for document in documents:
        words = f"  document {document.row:,}, {formatting.counted(document.tokens, 'token')}: {_line(document.text)}"
        render.text("\n    ".join(formatting.wrapped(words, render.terminal_width() - 4)))


def _show_blocks(blocks: Sequence[Sequence[BlockPart]]) -> None:
    for number, parts in enumerate(blocks, start=1):
        render.text(f"\nBlock {number}, as the documents are packed")
        for part in parts:
            words = f"  | {_of(part)}, {formatting.counted(part.tokens, 'token')}" + (
                f": {_line(part.text)}" if part.text else ""
            )
            render.text("\n    ".join(formatting.wrapped(words, render.terminal_width() - 4)))


def _of(part: BlockPart) -> str:
    if part.row is None:
        return "padding"
    whole = {(True, True): "whole", (True, False): "beginning", (False, True): "end", (False, False): "middle"}
    return f"{whole[part.begins, part.ends]} of document {part.row:,}"


def _show_suspicions(suspected: Sequence[Suspicion]) -> None:
    render.text("\nWhat looks wrong" if suspected else "\nNothing looks wrong.")
    for one in suspected:
        render.text("\n    ".join(formatting.wrapped(f"  * {one.what}", render.terminal_width() - 4)))
        render.text("\n    ".join(formatting.wrapped(f"    {one.cure}", render.terminal_width() - 4)))


def _line(text: str) -> str:
    """The text on one line; what a terminal would act on is spelled out."""
    line = " ".join(text.split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
