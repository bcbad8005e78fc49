"""A suggestion as a recipe: complete, with the reason for each number beside it."""

from __future__ import annotations

import json
import textwrap

from toolkit import formatting
from toolkit.planning.suggestion import Suggestion

COLUMNS = 110
STAND_IN = """\
  plugin: python-docs            # a stand-in of 0.6M tokens that is always there; put your own data in its place:
                                 # {plugin: text-files, files: texts/*.txt}, or a dataset of the Hub"""
STAND_IN_HELD_OUT = 0.05
"""A twentieth of it, 30,000 tokens; the share that is right for more data would leave nothing."""


def recipe_text(made: Suggestion, *, command: str, file: str = "./mine.yaml", files: str | None = None) -> str:
    """The recipe in YAML.

    Args:
        made: what to write.
        command: the command that made it, for the comment.
        file: where it will be, for the comment.
        files: the pattern of the text files to train on; the documentation of Python stands in for them, if not given.
    """
    data = f"  plugin: text-files\n  files: {json.dumps(files, ensure_ascii=False)}" if files else STAND_IN
    held_out = made.eval_fraction if files else STAND_IN_HELD_OUT
    epochs = f", {made.epochs:.2g} epochs" if made.epochs else ""
    source = {name: _comment(words, indent=2) for name, words in made.sources.items()}
    return f"""\
# yaml-language-server: $schema=.toolkit/recipe.schema.json
# toolkit recipe run {file}
#
{_comment(f"Written by: {command}")}
{_comment(f"About {formatting.duration(made.seconds)} on {made.device}: {made.sources['time']}")}
{"".join(_comment(f"* {caution}") + chr(10) for caution in made.cautions)}\
recipe: 1
description: {formatting.compact(made.parameters)} parameters on {formatting.compact(made.tokens)} tokens, from scratch

dataset:
{data}
  eval_fraction: {held_out:<15g} # of the documents, held out for evaluation

tokenizer:
  plugin: byte-bpe               # learned from the data
  vocab_size: {made.vocabulary}

model:                           # {made.parameters:,} parameters
{source["size"]}
  plugin: {made.architecture}
  num_hidden_layers: {made.layers}
  hidden_size: {made.width}
  num_attention_heads: {made.heads}

objective:
  plugin: causal-lm
  block_size: {made.block_size}

optimizer:
  plugin: adamw                  # for which the laws were fitted, with these betas
  betas: [0.9, 0.95]

memory:
  - mixed-precision              # bf16 where the hardware supports it
  - auto                         # adds the strategies that the run needs to fit this machine, and prints them

training:
{source["tokens"]}
  max_steps: {made.steps:<19} # {made.tokens:,} tokens{epochs}
{source["batch"]}
  global_batch_size: {made.sequences_per_step:<11} # {made.tokens_per_step:,} tokens
{source["learning rate"]}
  learning_rate: {made.learning_rate:.1e}
  lr_scheduler_type: cosine
{source["warm-up"]}
  warmup_steps: {made.warmup_steps}
  weight_decay: 0.1
"""


def _comment(words: str, *, indent: int = 0) -> str:
    margin = " " * indent + "# "
    return textwrap.fill(
        words, COLUMNS, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )
