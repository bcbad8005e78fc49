"""What commands import. Looks at `sys.modules`, which a busy machine does not change as it does a clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.command_line import RECIPE

HEAVY = {"torch", "transformers", "datasets", "numpy", "peft", "accelerate", "tokenizers", "huggingface_hub", "pyarrow"}
MIDDLING = {"pydantic", "ruamel", "rich", "jinja2"}

PROBE = """
import json, sys
try:
{code}
finally:
    print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})), file=sys.stderr)
"""
COMMAND = "from toolkit.cli.main import main; main()"


def imported(*words: str, cwd: Path, code: str = COMMAND, **environment: str) -> set[str]:
    """Run a command or other code, which must succeed, and return the top-level packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=indent(code, "    ")), *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("Once upon a time.")
    run = tmp_path / "runs" / "old"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"kind": "eval", "step": 5, "eval_loss": 4.5, "perplexity": 90.0}\n')
    record = {"id": "a", "recipe": "mine", "series": "old", "created": "2026-01-01T00:00:00+00:00"}
    record |= {"source": "mine.yaml", "task": "causal-lm"}
    rest = {"status": "failed", "identity": {}, "attempts": [], "results": None}
    (run / "run.json").write_text(json.dumps(record | rest))
    return tmp_path


HELP = [
    ["--help"],
    ["--version"],
    ["recipe", "-h"],
    ["recipe", "run", "-h"],
    ["recipe", "plan", "-h"],
    ["recipe", "suggest", "-h"],
    ["plugin", "show", "-h"],
    ["doctor", "-h"],
    ["run", "-h"],
]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_imports_click_and_little_else(words: list[str], here: Path) -> None:
    assert not imported(*words, cwd=here) & (HEAVY | MIDDLING)


LIGHT = [
    ["recipe", "list"],
    ["recipe", "show", "mine.yaml"],
    ["recipe", "show", "mine.yaml", "--resolved"],
    ["recipe", "validate", "mine.yaml"],
    ["recipe", "validate", "mine.yaml", "--data"],
    ["recipe", "new", "another", "--from", "mine.yaml"],
    ["recipe", "suggest", "--flops", "1e18", "--device", "t4"],
    ["recipe", "launch", "mine.yaml", "--on", "slurm"],
    ["recipe", "schema"],
    ["plugin", "list"],
    ["plugin", "show", "memory", "small-batch"],
    ["plugin", "new", "memory", "my-strategy"],
    ["run", "list"],
    ["run", "show", "old"],
    ["run", "report", "old"],
]


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_commands_that_train_nothing_import_nothing_heavy(words: list[str], here: Path) -> None:
    assert not imported(*words, cwd=here) & HEAVY


def test_to_import_the_toolkit_imports_none_of_it(here: Path) -> None:
    seen = imported(cwd=here, code="import toolkit\nassert not [m for m in sys.modules if m.startswith('toolkit.')]")
    assert not seen & (HEAVY | MIDDLING | {"click", "toolkit_plugins"})
    assert not imported(cwd=here, code="import toolkit; toolkit.run, toolkit.plan") & (HEAVY | MIDDLING | {"click"})


def test_to_resolve_a_recipe_from_python_imports_nothing_heavy(here: Path) -> None:
    resolve = "import toolkit; toolkit.resolve('mine.yaml', overrides={'training.max_steps': 3})"
    assert not imported(cwd=here, code=resolve) & (HEAVY | {"click"})


def test_the_probe_sees_what_is_imported(here: Path) -> None:
    seen = imported("recipe", "validate", "mine.yaml", cwd=here)
    assert {"click", "pydantic", "ruamel", "toolkit", "toolkit_plugins"} <= seen


@pytest.mark.parametrize("words", ["toolkit recipe show ", "toolkit plugin show memory ", "toolkit run show "])
def test_completion_imports_nothing_heavy(words: str, here: Path) -> None:
    asked = {"_TOOLKIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert not imported(cwd=here, **asked) & (HEAVY | MIDDLING)
