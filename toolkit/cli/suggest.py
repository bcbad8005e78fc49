"""`toolkit recipe suggest`: size, batch, learning rate and steps from published laws, as a recipe."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from toolkit import formatting
from toolkit.cli import options, render

if TYPE_CHECKING:
    from toolkit.planning.suggestion import Suggestion


@click.command(
    epilog=render.examples(
        "toolkit recipe suggest --tokens 100M --hours 2",
        "toolkit recipe suggest --tokens 100M --hours 2 --files 'texts/*.txt' -o mine.yaml",
        "toolkit recipe suggest --flops 1e18 --device h100",
        "toolkit recipe suggest --model-size 30M --model gpt2",
    )
)
@click.option("--tokens", metavar="N", help="Unique tokens that there are to train on: 100M, 2B.")
@click.option("--hours", type=float, help="Hours of training, without evaluations and saves.")
@click.option("--flops", metavar="N", help="FLOPs of training, in place of hours: 1e18.")
@click.option("--model-size", metavar="N", help="Parameters of the model, in place of the best number: 30M.")
@click.option(
    "--model", "architecture", type=click.Choice(["llama", "gpt2"]), default="llama", show_default=True,
    help="Architecture of the model.",
)  # fmt: skip
@click.option("--vocab-size", type=int, help="Tokens of the tokenizer; if not given, it grows with the model.")
@options.device
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Data-parallel processes.")
@click.option(
    "--mfu", type=float,
    help="Share of the device's rate that your runs reach, such as 0.4, in place of the one that is assumed.",
)  # fmt: skip
@click.option("--files", metavar="PATTERN", help="Your text files, for the recipe: 'texts/*.txt'.")
@click.option("--output", "-o", metavar="FILE", help="Write the recipe to this file; - is standard output.")
@options.as_json
def suggest(
    tokens: str | None,
    hours: float | None,
    flops: str | None,
    model_size: str | None,
    architecture: Literal["llama", "gpt2"],
    vocab_size: int | None,
    device_name: str | None,
    processes: int,
    mfu: float | None,
    files: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Suggest a run from scratch, and write its recipe.

    How large a model, how many tokens a step, which learning rate and how many steps, for the data and the time that
    there are, on this machine or another. The numbers are those of published laws; each is printed with its source,
    and with what the laws do not cover. Never overwrites a file.
    """
    from toolkit.planning.suggested_recipe import recipe_text
    from toolkit.planning.suggestion import suggest as suggested

    made: Suggestion = suggested(
        tokens=tokens,
        hours=hours,
        flops=flops,
        model_size=model_size,
        architecture=architecture,
        vocab_size=vocab_size,
        device=device_name,
        processes=processes,
        mfu=mfu,
    )
    given = {
        "tokens": tokens,
        "hours": hours and f"{hours:g}",
        "flops": flops,
        "model-size": model_size,
        "vocab-size": vocab_size,
    }
    given |= {"model": None if architecture == "llama" else architecture, "device": device_name, "mfu": mfu}
    given |= {"processes": None if processes == 1 else processes, "files": files}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    command = shlex.join(["toolkit", "recipe", "suggest", *words])
    target = None if output in (None, "-") else Path(str(output))
    shown = "./mine.yaml" if target is None else str(target) if target.is_absolute() else f"./{target}"
    recipe = recipe_text(made, command=command, file=shown, files=files)
    if target:
        from toolkit.recipe.new import write_new

        write_new(target, recipe, shown)
    if as_json:
        render.as_json({**asdict(made), "recipe": recipe})
        return
    if output == "-":
        render.text(recipe.rstrip("\n"))
        return
    _show(made)
    render.text()
    if not target:
        render.text(recipe.rstrip("\n"))
        return
    render.text(f"Wrote {shown}. " + ("Then:" if files else "Put your data in its section `dataset`, then:"))
    for following in (f"validate {shown} --data", f"plan {shown}", f"run {shown}"):
        render.text(f"  toolkit recipe {following}")


def _show(made: Suggestion) -> None:
    parts = {
        "size": f"{made.architecture}, {made.layers} layers x {made.width}, {formatting.counted(made.heads, 'head')}; "
        f"{formatting.compact(made.parameters)} parameters with {made.vocabulary:,} tokens in the vocabulary",
        "tokens": f"{formatting.compact(made.tokens)} in {formatting.counted(made.steps, 'step')}"
        + (f", {made.epochs:.2g} epochs" if made.epochs else ""),
        "batch": f"{made.tokens_per_step:,} tokens: {made.sequences_per_step} x {made.block_size}",
        "learning rate": f"{made.learning_rate:.1e} at its peak, AdamW, cosine",
        "warm-up": formatting.counted(made.warmup_steps, "step"),
        "time": f"{formatting.duration(made.seconds)} on {made.device}",
    }
    render.table(["", "SUGGESTED", "SOURCE"], ((name, value, made.sources[name]) for name, value in parts.items()))
    if made.cautions:
        render.text()
    for caution in made.cautions:
        render.text(f"* {caution}")
