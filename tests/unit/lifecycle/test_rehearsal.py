"""What a rehearsal says that it did not test; tests/recipes rehearses each recipe to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.cli import render
from toolkit.lifecycle.rehearsal import shrunken, stand_ins
from toolkit.planning.variants import without_choosers
from toolkit.recipe.resolve import load, resolve
from toolkit.system.device import detect

RECIPE = """\
recipe: 1
dataset: {plugin: hub, path: somebody/texts}
tokenizer: {plugin: byte-bpe, vocab_size: 1000}
model: {plugin: pretrained, path: somebody/model}
objective: {plugin: causal-lm, block_size: 64}
exporters: [model-folder, {plugin: push-to-hub, repo_id: somebody/mine}]
training: {max_steps: 6, global_batch_size: 4, eval_steps: 3, logging_steps: 1, torch_compile: true}
"""


def test_all_that_was_replaced_is_told_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    recipe = load(str(tmp_path / "mine.yaml"))
    found = list(stand_ins(recipe, shrunken(recipe, resolve(without_choosers(recipe), detect()))))
    assert [(it.section, it.option, it.recipe, it.rehearsal) for it in found] == [
        ("dataset", None, "hub", "python-docs"),
        ("model", None, "pretrained", "the same architecture with two layers of 64 and random weights"),
        ("memory", None, "auto", None),
        ("exporters", None, "push-to-hub", None),
        ("training", "torch_compile", True, False),
    ]
    render.not_tested(found, "mine.yaml")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "  dataset    python-docs instead of hub",
        "  model      the same architecture with two layers of 64 and random weights instead of pretrained",
        "  memory     nothing instead of auto",
        "  exporters  nothing instead of push-to-hub",
        "  training   torch_compile false instead of true",
        "Nor were the network, or memory, disk and time at full size. To check those, and the data:",
        "  toolkit recipe plan mine.yaml",
    ]
