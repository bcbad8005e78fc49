"""Runs commands in the tests of the command line: in this process for speed, in a process of its own for truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from toolkit.cli.main import toolkit as root

RECIPE = """\
# yaml-language-server: $schema=.toolkit/recipe.schema.json
# toolkit recipe run ./mine.yaml
recipe: 1
description: A recipe of the tests.
dataset: {plugin: text-files, files: "*.txt", eval_fraction: 0.2}
tokenizer: {plugin: byte-bpe, vocab_size: 300}
model: {plugin: gpt2, num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 1}
objective: {plugin: causal-lm, block_size: 32}
memory:
  - {plugin: small-batch, micro_batch_size: 2}
  - frequent-saves
training:
  global_batch_size: 4
  max_steps: 5
"""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def toolkit(*words: str, status: int = 0, **environment: str) -> Answer:
    """Run a command here; an exception that is no person's error fails the test."""
    given = CliRunner().invoke(root, words, prog_name="toolkit", env=environment, catch_exceptions=False)
    answer = Answer(given.exit_code, given.stdout, given.stderr)
    assert answer.status == status, answer
    assert "Traceback" not in answer.out + answer.err
    return answer


def process(*words: str, cwd: Path | None = None, **environment: str) -> Answer:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "toolkit", *words]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)
