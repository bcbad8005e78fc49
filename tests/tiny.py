"""The smallest real run: files of made-up text, a trained tokenizer, a model of a few thousand parameters."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import InterruptedRun
from toolkit.events import Event, Message, RunResult
from toolkit.lifecycle.branch import parent
from toolkit.lifecycle.launch import run
from toolkit.recipe.resolve import ResolvedRecipe, load, resolve
from toolkit.system.device import detect

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE = "the cat sat on a mat and dogs ran far from old home while birds sang low over green hills"
WORDS = SENTENCE.split()

RECIPE: dict[str, Any] = {
    "recipe": 1,
    "dataset": {"plugin": "text-files", "sample_by": "line", "eval_fraction": 0.1},
    "tokenizer": {"plugin": "byte-bpe", "vocab_size": 300},
    "model": {"plugin": "gpt2", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "dropout": 0.1},
    "objective": {"plugin": "causal-lm", "block_size": 32},
    "memory": [],
    "training": {
        "max_steps": 8,
        "global_batch_size": 4,
        "learning_rate": 1e-3,
        "eval_steps": 4,
        "logging_steps": 1,
    },
}
"""Complete but for dataset.files. JSON is YAML, so it is written as such."""

SUM_ORDER = 2e-5
"""Largest relative difference that another order of floating-point sums makes in eight steps of the tiny run."""

TINY_BERT = '''
"""A BERT from scratch."""

from toolkit.api import Model


class TinyBert(Model):
    """A layer."""

    def build(self, tokenizer, run):
        from transformers import BertConfig, BertForMaskedLM

        return BertForMaskedLM(
            BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
                       intermediate_size=32, max_position_embeddings=run.block_size,
                       hidden_dropout_prob={dropout}, attention_probs_dropout_prob={dropout})
        )
'''
"""The toolkit has no plugin for a BERT from scratch."""

TINY_MIXTURE = '''
"""A mixture of experts from scratch."""

from toolkit.api import Model


class TinyMixture(Model):
    """A layer of four experts."""

    def build(self, tokenizer, run):
        from transformers import MixtralConfig, MixtralForCausalLM

        return MixtralForCausalLM(
            MixtralConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
                          num_key_value_heads=1, intermediate_size=32, num_local_experts=4)
        )
'''


def texts(folder: Path, *, lines: int = 200, seed: int = 0) -> Path:
    """Write a file of sentences and return it."""
    draw = random.Random(seed)
    sentences = (" ".join(draw.choices(WORDS, k=draw.randint(4, 30))).capitalize() + "." for _ in range(lines))
    file = folder / "texts.txt"
    file.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return file


def write_recipe(folder: Path, name: str = "tiny", **sections: Any) -> Path:
    """Write the recipe with the given sections put in or, where both are mappings, merged in."""
    data: dict[str, Any] = {**RECIPE, "dataset": {**RECIPE["dataset"], "files": str(folder / "texts.txt")}}
    for section, value in sections.items():
        merge = isinstance(value, dict) and "plugin" not in value and isinstance(data.get(section), dict)
        data[section] = {**data[section], **value} if merge else value
    if not (folder / "texts.txt").exists():
        texts(folder)
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return file


def write_tiny_bert(plugins: Path, *, dropout: float = 0.1) -> None:
    """Write a model plugin, tiny-bert, into a folder of plugins."""
    (plugins / "model").mkdir(parents=True)
    (plugins / "model" / "tiny_bert.py").write_text(TINY_BERT.format(dropout=dropout), encoding="utf-8")


def write_tiny_mixture(plugins: Path) -> None:
    """Write a model plugin, tiny-mixture, into a folder of plugins."""
    (plugins / "model").mkdir(parents=True, exist_ok=True)
    (plugins / "model" / "tiny_mixture.py").write_text(TINY_MIXTURE, encoding="utf-8")


def callback(folder: Path, name: str, body: str) -> None:
    """Write a callback plugin whose Trainer callback has this body; `kill(number)` is at hand."""
    plugins = folder / "plugins" / "callback"
    plugins.mkdir(parents=True, exist_ok=True)
    methods = "\n".join(f"            {line}" for line in body.splitlines())
    (plugins / f"{name.replace('-', '_')}.py").write_text(
        f'''
"""Made for a test."""

from toolkit.api import Callback


class Made(Callback):
    """Made for a test."""

    def callbacks(self, run):
        import os

        import torch
        from transformers import TrainerCallback

        def kill(number):
            os.kill(os.getpid(), number)

        class Made(TrainerCallback):
{methods}

        return [Made()]
''',
        encoding="utf-8",
    )


def stopper(folder: Path, *, at: int) -> Path:
    """A folder with a callback plugin that sends its own process SIGTERM."""
    plugins = folder / "stopping"
    (plugins / "callback").mkdir(parents=True)
    (plugins / "callback" / "stopper.py").write_text(
        f'''
"""Stops."""

from toolkit.api import Callback


class Stopper(Callback):
    """Send SIGTERM to this process at a step."""

    def callbacks(self, run):
        import os
        import signal

        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == {at - 1}:
                    os.kill(os.getpid(), signal.SIGTERM)

        return [Stop()]
''',
        encoding="utf-8",
    )
    return plugins


def resolved(recipe: Path, *overrides: str) -> ResolvedRecipe:
    return resolve(load(str(recipe), overrides=overrides), detect())


def train(recipe: Path, *overrides: str, **options: Any) -> tuple[RunResult, list[Event]]:
    """Run the recipe in this process; the runs lie beside it."""
    events: list[Event] = []
    result = run(resolved(recipe, *overrides), runs=recipe.parent / "runs", listener=events.append, **options)
    return result, events


def train_in_two(recipe: Path, *overrides: str, stop_after: int, **options: Any) -> RunResult:
    """Run the recipe with a stop and a resume."""
    try:
        train(recipe, *overrides, stop_after=stop_after, **options)
    except InterruptedRun:
        return train(recipe, *overrides, **options)[0]
    raise AssertionError("the run did not stop")


def from_(recipe: Path, place: str, *overrides: str, **options: Any) -> tuple[RunResult, list[str]]:
    """Begin a run at a checkpoint of another (RUN@STEP) beside it; its result, and what it told."""
    told: list[Event] = []
    runs = recipe.parent / "runs"
    result = run(resolved(recipe, *overrides), runs=runs, parent=parent(place, runs), listener=told.append, **options)
    return result, [event.text for event in told if isinstance(event, Message)]


def command(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `toolkit` in a process of its own, which heeds the interrupt key and the end of its terminal.

    A shell starts background jobs, and so perhaps these tests, with that key ignored; nohup ignores SIGHUP.
    """
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    heeds += "; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    return subprocess.Popen(
        [sys.executable, "-c", f"{heeds}; from toolkit.cli.main import main; main()", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def wait_for(condition: str, process: subprocess.Popen[str], file: Path, *, seconds: float = 300) -> None:
    """Wait until the text stands in the file, while the process lives."""
    end = time.monotonic() + seconds
    while not (file.exists() and condition in file.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{condition!r} is not in {file} within {seconds:g} s"
        time.sleep(0.02)


def steps_of(run: Path) -> set[int]:
    """Steps of a run's checkpoints."""
    return {int(folder.name.removeprefix("checkpoint-")) for folder in (run / "checkpoints").iterdir()}


def weights(run_folder: Path) -> dict[str, Any]:
    """The exported weights, by name."""
    from safetensors.torch import load_file

    loaded = dict(load_file(run_folder / "model" / "model.safetensors"))
    assert loaded
    return loaded


def losses(run_folder: Path) -> list[tuple[Any, ...]]:
    """Every recorded loss, training and held-out, exactly."""
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        (line["step"], line["kind"], line.get("loss", line.get("eval_loss")))
        for line in lines
        if line["kind"] != "save"
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: weights and every loss."""
    import torch

    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert losses(one) == losses(other) != []


def with_holes(first: int) -> PreTrainedTokenizerBase:
    """A tokenizer of few words, whose ids begin at `first`, as where two tokenizers share one range of ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"[UNK]": 0, "[EOS]": 1, "[MASK]": 2} | {word: first + number for number, word in enumerate(sorted(WORDS))}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    wrap: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerBase = wrap(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]", mask_token="[MASK]"
    )
    return tokenizer
