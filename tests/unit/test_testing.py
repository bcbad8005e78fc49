"""The conformance kit finds what is wrong: each bad plugin here fails the check that is for it, with the reason."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest

from toolkit.errors import PluginError
from toolkit.registry import Registry
from toolkit.testing import Check, assert_conforms, check_plugin

DATASET = """
def load(self, run):
    from datasets import Dataset as Rows, DatasetDict
    import random
    {body}
"""
TOKENIZER = """
def build(self, corpus, run):
    import random
    from tokenizers import Tokenizer as Backend, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    {body}
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
"""
MODEL = """
def build(self, tokenizer, run):
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config
    sizes = dict(n_embd=16, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    {body}
"""
OBJECTIVE = """
task = "causal-lm"

def document_end(self, tokenizer):
    return (tokenizer.eos_token_id,)

def collator(self, tokenizer):
    def collate(blocks):
        import numpy, torch
        rows = numpy.stack([block["input_ids"] for block in blocks])
        inputs, labels = torch.from_numpy(rows.copy()), torch.from_numpy(rows)
        {body}
        return dict(input_ids=inputs, labels=labels)
    return collate
"""
OPTIMIZER = """
def build(self, model, *, learning_rate, weight_decay, run):
    import torch
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    {body}
"""
MEMORY = """
fidelity = "exact"

{body}
"""
CALLBACK = """
def callbacks(self, run):
    from transformers import TrainerCallback
    {body}
"""
EXPORTER = """
@property
def folder(self):
    return "mine"

def export(self, model, tokenizer, folder, results, run):
    {body}
"""
METHODS = {
    "dataset": DATASET,
    "tokenizer": TOKENIZER,
    "model": MODEL,
    "objective": OBJECTIVE,
    "optimizer": OPTIMIZER,
    "memory": MEMORY,
    "callback": CALLBACK,
    "exporter": EXPORTER,
}

GOOD = {
    "dataset": "return DatasetDict(train=Rows.from_dict({'text': [f'Number {n}.' for n in range(20)]}))",
    "tokenizer": "backend = Backend(models.BPE(vocab={byte: n for n, byte in enumerate(bytes_)}, merges=[]))",
    "model": "return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(tokenizer), **sizes))",
    "objective": "",
    "optimizer": "return torch.optim.SGD(trained, lr=learning_rate, momentum=0.9)",
    "memory": "",
    "callback": "return [TrainerCallback()]",
    "exporter": "model.save_pretrained(folder)",
}

BAD = [
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'text': [str(random.random()) for _ in range(20)]}))",
        "documents: loading twice gives other documents in train",
    ),
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'words': ['one']}))",
        "documents: the split train has no column text: words",
    ),
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'text': [1, 2]}))",
        "documents: the column text of train holds something that is no string: [1]",
    ),
    ("dataset", "return {'test': 1}", "documents: load returns a dict and not a DatasetDict"),
    ("dataset", "return 1 / 0", "documents: ZeroDivisionError: division by zero (bad.py, line"),
    (
        "tokenizer",
        "random.shuffle(bytes_)\nbackend = Backend(models.BPE(vocab={b: n for n, b in enumerate(bytes_)}, merges=[]))",
        "build: building it twice from the same texts gives two different tokenizers",
    ),
    (
        "tokenizer",
        "backend = Backend(models.WordLevel(vocab={'?': 0}, unk_token='?'))",
        "round trip: 'The cat sat on a mat, and 12 dogs ran (far) from home: why?' comes back as '?",
    ),
    (
        "model",
        "return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=9, **sizes))",
        "build: its embedding has 9 rows for a tokenizer of",
    ),
    (
        "model",
        "return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=900, **sizes)).to(torch.bfloat16)",
        "build: its parameters are torch.bfloat16 on cpu and not torch.float32 on cpu",
    ),
    (
        "model",
        "return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=900, n_positions=16, **sizes))",
        "forward: it has 16 positions, and the run's block_size is 48",
    ),
    (
        "model",
        "torch.seed()\nreturn AutoModelForCausalLM.from_config(GPT2Config(vocab_size=900, **sizes))",
        "seed: the same seed gives other weights in",
    ),
    ("objective", "inputs[torch.rand(inputs.shape) < 0.2] = 1", "seed: the same blocks with the same seeds give"),
    (
        "objective",
        "draw = torch.Generator().manual_seed(blocks[0]['seed'])\n"
        "inputs[torch.rand(inputs.shape, generator=draw) < 0.2] = 1",
        "seed: a block gives another row beside other blocks",
    ),
    ("objective", "labels = labels[:, 1:]", "batch: labels has the shape (4, 1023) and not (batch, block_size)"),
    ("objective", "labels = labels - 500", "batch: a label is neither -100 nor a token id"),
    ("objective", "blocks[0]['input_ids'][:] = 0", "batch: the collator changes the blocks that it is given"),
    (
        "optimizer",
        "return torch.optim.SGD(trained[1:], lr=learning_rate)",
        "parameters: it leaves out transformer.wpe.weight",
    ),
    (
        "optimizer",
        "return torch.optim.SGD(model.parameters(), lr=learning_rate)",
        "parameters: it takes transformer.wte.weight, which requires no gradient",
    ),
    (
        "optimizer",
        "return torch.optim.SGD(trained, lr=learning_rate, maximize=True)",
        "steps: 8 steps on one batch do not lower its loss",
    ),
    (
        "optimizer",
        "class Forgets(torch.optim.SGD):\n"
        "    def state_dict(self):\n"
        "        return {**super().state_dict(), 'state': {}}\n"
        "return Forgets(trained, lr=learning_rate, momentum=0.9)",
        "state: after loading its state_dict the next steps differ in",
    ),
    (
        "memory",
        "def apply(self, model, run):\n    model.lm_head.weight.data *= 1.1\n    return model",
        "apply: its fidelity is exact, and apply changes the logits by up to",
    ),
    (
        "memory",
        "def apply(self, model, run):\n    model.get_input_embeddings().requires_grad_(False)\n    return model",
        "apply: its fidelity is exact, and apply leaves",
    ),
    (
        "memory",
        "def apply(self, model, run):\n    raise OptionError('not for this one')",
        "apply: it refuses everything that it was tried with; gpt2: not for this one; llama: not for this one",
    ),
    (
        "memory",
        "def changes(self, settings, device):\n    return {'seed': Change(1)}",
        "changes: it sets seed, which belongs to the recipe alone",
    ),
    (
        "memory",
        "def changes(self, settings, device):\n    return {'micro_batch': Change(1)}",
        "changes: it sets 'micro_batch': no such setting; did you mean 'micro_batch_size'?",
    ),
    (
        "memory",
        "def changes(self, settings, device):\n    return {'precision': Change('fp8')}",
        "changes: it sets precision to 'fp8': Input should be",
    ),
    (
        "memory",
        "def changes(self, settings, device):\n    settings['precision'] = 'bf16'\n    return {}",
        "changes: changes alters the settings that it is given",
    ),
    ("callback", "return TrainerCallback()", "callbacks: callbacks returns a TrainerCallback and not a list"),
    (
        "callback",
        "class Breaks(TrainerCallback):\n"
        "    def on_evaluate(self, args, state, control, **kwargs):\n"
        "        raise KeyError('loss')\n"
        "return [Breaks()]",
        "run: KeyError: 'loss' (bad.py, line",
    ),
    (
        "callback",
        "(run.folder / 'metrics.jsonl').write_text('')\nreturn []",
        "run: it changes metrics.jsonl, which are the run's",
    ),
    (
        "exporter",
        "model.save_pretrained(folder)\n(run.folder / 'card.md').write_text('mine')",
        "export: it writes outside its folder: card.md",
    ),
    ("exporter", "model.half().save_pretrained(folder)", "export: the model is another one after export"),
    ("exporter", "pass", "export: it writes nothing into its folder"),
]


def written(folder: Path, kind: str, body: str, *, top: str = "", options: str = "") -> Registry:
    """A registry with one local plugin more, KIND/bad.py."""
    methods = METHODS[kind]
    spaces = next(line for line in methods.splitlines() if "{body}" in line).partition("{")[0]
    methods = methods.replace(f"{spaces}{{body}}", indent(body, spaces))
    file = folder / kind / "bad.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"{top}\nfrom typing import Any\nfrom toolkit.api import *\n"
        f"class Bad({kind.capitalize()}):\n    '''Bad.'''\n{indent(options, '    ')}{indent(methods, '    ')}",
        encoding="utf-8",
    )
    return Registry.discover([folder])


def failures(checks: list[Check]) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in checks if not check.passed]


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_plugin_passes(kind: str, tmp_path: Path) -> None:
    checks = check_plugin(kind, "bad", written(tmp_path, kind, GOOD[kind]))
    assert failures(checks) == []
    assert [check.name for check in checks][:4] == ["contract", "light import", "options", "rehearse"]
    assert len(checks) > 4


@pytest.mark.parametrize(("kind", "body", "text"), BAD)
def test_a_bad_plugin_fails_with_the_reason(kind: str, body: str, text: str, tmp_path: Path) -> None:
    failed = failures(check_plugin(kind, "bad", written(tmp_path, kind, body)))
    assert [failure for failure in failed if failure.startswith(text)], failed


@pytest.mark.parametrize("library", ["torch", "numpy", "datasets"])
def test_a_module_that_imports_something_heavy_fails(library: str, tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "", top=f"import {library}")
    (failed,) = failures(check_plugin("memory", "bad", registry))
    assert failed.startswith("light import: importing it imports ")
    assert library in failed


def test_a_plugin_that_breaks_its_contract_fails_before_it_is_tried(tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "def apply(self, network):\n    return network")
    (check,) = check_plugin("memory", "bad", registry)
    assert not check.passed
    assert check.name == "contract"
    assert "apply takes (self, network) where memory plugins take (self, model, run)" in check.detail


def test_options_that_are_required_have_to_be_given(tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "", options="size: int\n'''How much of it.'''\n")
    (failed,) = failures(check_plugin("memory", "bad", registry))
    assert failed.startswith("options: nothing more was tried: size must be given")
    assert "options={'size': ...}" in failed
    assert_conforms("memory", "bad", registry=registry, options={"size": 3})
    (failed,) = failures(check_plugin("memory", "bad", registry, {"size": "three"}))
    assert failed.startswith("options: ValidationError")


def test_options_that_change_on_the_way_through_a_file_fail(tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "", options="size: Any = frozenset({1})\n'''How much of it.'''\n")
    (failed,) = failures(check_plugin("memory", "bad", registry, {"size": {1, 2}}))
    assert failed.startswith("options: they change on the way through JSON")


def test_rehearse_returns_the_same_component(tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "def rehearse(self):\n    return None")
    (failed,) = failures(check_plugin("memory", "bad", registry))
    assert failed == "rehearse: returns None, which is no Bad"


def test_a_strategy_that_needs_another_device_says_that_it_was_not_tried(tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "needs = frozenset({'mps'})\n\ndef apply(self, model, run):\n    1 / 0")
    checks = check_plugin("memory", "bad", registry)
    assert failures(checks) == []
    assert checks[-1].detail == "not tried here: it needs a mps device"


def test_what_a_plugin_prints_stays_out_of_the_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "def apply(self, model, run):\n    print('hello')\n    return model"
    assert failures(check_plugin("memory", "bad", written(tmp_path, "memory", body))) == []
    assert "hello" not in capsys.readouterr().out


def test_the_error_lists_every_failed_check(tmp_path: Path) -> None:
    body = (
        "def changes(self, settings, device):\n    return {'seed': Change(1)}\n\n"
        "def apply(self, model, run):\n    return None"
    )
    with pytest.raises(AssertionError) as caught:
        assert_conforms("memory", "bad", registry=written(tmp_path, "memory", body))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the memory plugin 'bad' breaks its contract:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["changes", "apply"]


def test_an_unknown_plugin_is_an_error_and_no_finding() -> None:
    with pytest.raises(PluginError, match="did you mean 'small-batch'"):
        check_plugin("memory", "small-bath")
