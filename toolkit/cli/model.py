"""`toolkit generate` and `toolkit evaluate`: text from a finished run's model, and how well it predicts."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit import commands, formatting
from toolkit.cli import options, render


@click.command(
    epilog=render.examples(
        'toolkit generate quickstart --prompt "The function returns"',
        'toolkit generate quickstart --prompt "The" --temperature 0 --max-new-tokens 20 --json',
    )
)
@options.run_argument
@click.option("--prompt", required=True, help="Prompt to continue.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="Tokens to generate."
)
@click.option(
    "--temperature", type=options.FiniteRange(min=0), default=0.8, show_default=True,
    help="Sampling temperature: 0 decodes greedily, higher values vary more.",
)  # fmt: skip
@click.option(
    "--top-k", type=click.IntRange(min=1), default=50, show_default=True,
    help="Sample from the k most likely tokens (top-k).",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed generates the same text.")
@options.runs
@options.as_json
def generate(
    run: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    runs: Path,
    as_json: bool,
) -> None:
    """Generate text with a run's model.

    The run must have finished; its model continues the prompt.
    """
    from toolkit.storage import runs_folder

    found = runs_folder.find(run, runs)
    text = commands.generate(
        run, prompt, runs=runs, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    if as_json:
        render.as_json({"run": found.name, "prompt": prompt, "text": text, "seed": seed})
    else:
        render.text(text)


@click.command(
    epilog=render.examples(
        "toolkit evaluate quickstart",
        "toolkit evaluate quickstart --model model-400-average-4",
        "toolkit evaluate quickstart --max-documents 100 --json",
    )
)
@options.run_argument
@click.option(
    "--model", "model_folder", metavar="FOLDER", default="model", show_default=True,
    help="Folder in the run that holds the exported model.",
)  # fmt: skip
@click.option(
    "--stride", type=click.IntRange(min=1), default=None,
    help="Tokens by which the sliding window advances: fewer give each token more context, but take longer.",
)  # fmt: skip
@click.option(
    "--max-documents",
    type=click.IntRange(min=1),
    default=None,
    help="Evaluate at most this many documents (of each source, in a mixture).",
)
@options.runs
@options.as_json
def evaluate(
    run: str, model_folder: str, stride: int | None, max_documents: int | None, runs: Path, as_json: bool
) -> None:
    """Evaluate a run's model.

    On the documents that the run held out, with a sliding window. Perplexity per token depends on the tokenizer;
    perplexity per word and bits per byte can be compared between models.
    """
    from dataclasses import asdict

    from toolkit.cli.watch import watching
    from toolkit.storage import runs_folder

    found = runs_folder.find(run, runs)
    with watching(quiet=False, on_standard_error=True) as listener:
        reached = commands.evaluate(
            run,
            runs=runs,
            model_folder=model_folder,
            stride=stride,
            max_documents=max_documents,
            listener=listener,
        )
    if as_json:
        render.as_json({"run": found.name, **asdict(reached)})
        return
    render.pairs(
        {
            "token perplexity": formatting.perplexity(reached.token_perplexity),
            "word perplexity": formatting.perplexity(reached.word_perplexity),
            "bits per byte": f"{reached.bits_per_byte:.4f}",
            **{
                f"of {name}": f"token perplexity {formatting.perplexity(own.token_perplexity)}, "
                f"bits per byte {own.bits_per_byte:.4f}"
                for name, own in reached.by_source.items()
            },
            "evaluated on": ", ".join(
                formatting.counted(number, noun)
                for number, noun in (
                    (reached.documents, "document"),
                    (reached.tokens, "token"),
                    (reached.words, "word"),
                    (reached.bytes, "byte"),
                )
            ),
            "window": f"{reached.context:,} tokens, stride {reached.stride:,}",
        }
    )
