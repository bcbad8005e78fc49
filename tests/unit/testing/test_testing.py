"""The conformance kit finds what is wrong: each bad plugin here fails the check that is for it, with the reason."""

from __future__ import annotations

from inspect import isfunction
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from toolkit.api import KINDS, PLANNER_HOOKS, Plugin
from toolkit.errors import PluginError
from toolkit.registry import Registry
from toolkit.testing import Check, assert_conforms, check_plugin, check_resume

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
FILTER = """
def judge(self, run):
    seen = []
    def judged(document):
        {body}
    return judged
"""
METHODS = {
    "dataset": DATASET,
    "filter": FILTER,
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
    "filter": "return document.strip() or Dropped('empty')",
    "tokenizer": "backend = Backend(models.BPE(vocab={byte: n for n, byte in enumerate(bytes_)}, merges=[]))",
    "model": "return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(tokenizer), **sizes))",
    "objective": "",
    "optimizer": "return torch.optim.SGD(trained, lr=learning_rate, weight_decay=weight_decay, momentum=0.9)",
    "memory": "",
    "callback": "return [TrainerCallback()]",
    "exporter": "model.save_pretrained(folder)",
}

COUNTED = "globals()['count'] = globals().get('count', 0) + 1"
"""A line of a method that counts its calls, for the ones to come."""


def loss(value: str) -> str:
    """A strategy whose loss is this."""
    return (
        "def loss(self, model, run):\n"
        "    import torch\n"
        "    def summed(inputs, targets):\n"
        "        kept = targets != -100\n"
        "        cross_entropy = torch.nn.functional.cross_entropy(\n"
        "            inputs.flatten(0, 1), targets.flatten(), reduction='sum')\n"
        f"        return {value}\n"
        "    return Loss(summed)"
    )


def wrapper(step: str) -> str:
    """A strategy around whose optimizer is one that does this in a step."""
    return (
        "def wrap_optimizer(self, optimizer, model, run):\n"
        "    import torch\n"
        "    class Wrapper(torch.optim.Optimizer):\n"
        "        def __init__(self):\n"
        "            super().__init__(optimizer.param_groups, optimizer.defaults)\n"
        "            optimizer.param_groups, self.state = self.param_groups, optimizer.state\n"
        "        def load_state_dict(self, state):\n"
        "            super().load_state_dict(state)\n"
        "            optimizer.param_groups, optimizer.state = self.param_groups, self.state\n"
        "        @torch.no_grad()\n"
        "        def step(self, closure=None):\n"
        f"{indent(step, ' ' * 12)}\n"
        "    return Wrapper()"
    )


BAD = [
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'text': [str(random.random()) for _ in range(20)]}))",
        "loaded again: loaded again in another process, train has other documents, from number 0 on",
    ),
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'words': ['one']}))",
        "documents: the split train has no column text: words",
    ),
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'text': [1, 2]}))",
        "documents: the column text of train holds something that is not a string: [1]",
    ),
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'text': list({f'Number {n}.' for n in range(20)})}))",
        "loaded again: loaded again in another process, train has the same documents in another order",
    ),
    (
        "dataset",
        "import datetime\ntexts = [f'Number {n}.' for n in range(20)]\n"
        "random.Random(datetime.date.today().toordinal()).shuffle(texts)\n"
        "return DatasetDict(train=Rows.from_dict({'text': texts}))",
        "loaded again: loaded again in another process, train has the same documents in another order",
    ),
    (
        "dataset",
        "import pathlib\nfiles = pathlib.Path(random.__file__).parent.glob('*.py')\n"
        "return DatasetDict(train=Rows.from_dict({'text': [file.name for file in files]}))",
        "loaded again: loaded again in another process, train has the same documents in another order",
    ),
    (
        "dataset",
        "return DatasetDict(train=Rows.from_dict({'text': ['one']}), test=Rows.from_dict({'text': ['two']}))",
        "documents: nobody reads the split test; what is held out is called validation",
    ),
    ("dataset", "return {'test': 1}", "documents: load returns a dict and not a DatasetDict"),
    ("filter", "return None", "verdicts: it refuses: its judge returns None, and neither text nor Dropped"),
    ("filter", "return Dropped('')", "verdicts: it drops a document without a reason"),
    ("filter", "return 1 / 0", "verdicts: ZeroDivisionError: division by zero (bad.py, line"),
    (
        "filter",
        "seen.append(document)\nreturn document if seen.count(document) < 2 else Dropped('again')",
        "verdicts: what it says of a document depends on those before it, as for",
    ),
    (
        "filter",
        "return document if hash(document) % 2 else Dropped('even')",
        "elsewhere: in another process it says something else",
    ),
    ("dataset", "return 1 / 0", "documents: ZeroDivisionError: division by zero (bad.py, line"),
    (
        "tokenizer",
        "random.shuffle(bytes_)\nbackend = Backend(models.BPE(vocab={b: n for n, b in enumerate(bytes_)}, merges=[]))",
        "build: building it twice from the same texts gives two different tokenizers",
    ),
    (
        "tokenizer",
        "bytes_ = list(set(bytes_))\n"
        "backend = Backend(models.BPE(vocab={b: n for n, b in enumerate(bytes_)}, merges=[]))",
        "build: built from the same texts in another process, it is another tokenizer",
    ),
    (
        "tokenizer",
        f"{GOOD['tokenizer']}\nfrom tokenizers import Regex, normalizers\n"
        "backend.normalizer = normalizers.Replace(Regex('(?<=.{500}).+'), '')",
        "encoding: of a text of",
    ),
    (
        "tokenizer",
        "backend = Backend(models.BPE(vocab={t: n for n, t in enumerate([*bytes_, 'th', 'an'])}, "
        "merges=[('t', 'h'), ('a', 'n')], dropout=0.02))",
        "encoding: the same text gives other tokens when it is asked again",
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
    (
        "model",
        f"model = {GOOD['model'].removeprefix('return ')}\n"
        "model.loss_function = lambda *args, **kwargs: 0\nreturn model",
        "behaviour: it refuses: the loss is computed by the toolkit from the logits, so the model's loss_function",
    ),
    (
        "model",
        f"model = {GOOD['model'].removeprefix('return ')}\n"
        "model.lm_head.register_forward_hook(lambda head, inputs, logits: 2 * logits)\nreturn model",
        "behaviour: saved and loaded again, it gives other logits",
    ),
    (
        "model",
        f"model = {GOOD['model'].removeprefix('return ')}\nforward = model.transformer.forward\n"
        "def looks(*args, **kwargs):\n    outputs = forward(*args, **kwargs)\n"
        "    outputs.last_hidden_state = outputs.last_hidden_state.flip(1)\n    return outputs\n"
        "model.transformer.forward = looks\nreturn model",
        "behaviour: it sees the tokens that it is to predict",
    ),
    (
        "model",
        f"model = {GOOD['model'].removeprefix('return ')}\nforward = model.transformer.forward\n"
        "def noisy(*args, **kwargs):\n    outputs = forward(*args, **kwargs)\n"
        "    outputs.last_hidden_state = torch.nn.functional.dropout(outputs.last_hidden_state, 0.1)\n"
        "    return outputs\nmodel.transformer.forward = noisy\nreturn model",
        "behaviour: in evaluation mode the same text gives other logits a second time",
    ),
    (
        "objective",
        "import random\nif blocks[0]['seed'] % 50 == 0: numpy.random.rand()",
        "seed: the collator draws from the global random numbers of numpy",
    ),
    (
        "objective",
        "import random\nif blocks[0]['seed'] % 50 == 0: random.random()",
        "seed: the collator draws from the global random numbers of Python",
    ),
    (
        "objective",
        "if blocks[0]['seed'] % 20 == 0 and numpy.random.default_rng().random() < 0.5: labels[0, 5] = -100",
        "seed: the same blocks with the same seeds give another batch",
    ),
    (
        "objective",
        "labels = torch.cat([labels[:, 1:], torch.full((len(labels), 1), -100)], dim=1)",
        "labels: labels are the inputs moved by one, and the toolkit moves them itself",
    ),
    (
        "objective",
        "if blocks[0]['seed'] % 50 == 0: labels = torch.where(inputs == tokenizer.eos_token_id, -100, inputs)",
        "labels: ",
    ),
    ("objective", "labels = torch.where(inputs == 77, inputs, -100)", "labels: "),
    ("objective", "labels[:, 7] = inputs[:, 8]", "labels: a label is another token than the one at its place"),
    (
        "objective",
        "return dict(input_ids=inputs, labels=labels, loss_weights=torch.ones(inputs.shape))",
        "batch: it refuses: the batch has loss_weights, which the forward of GPT2LMHeadModel does not take",
    ),
    (
        "objective",
        "if blocks[0]['seed'] % 50 == 0: blocks[-1]['input_ids'][3] = 5",
        "seed: the collator changes the blocks that it is given",
    ),
    (
        "objective",
        "inputs[torch.rand(inputs.shape) < 0.2] = 1",
        "seed: the collator draws from the global random numbers of torch",
    ),
    (
        "objective",
        "draw = torch.Generator().manual_seed(blocks[0]['seed'])\n"
        "inputs[torch.rand(inputs.shape, generator=draw) < 0.2] = 1",
        "seed: a block gives another row beside other blocks",
    ),
    ("objective", "labels = labels[:, 1:]", "batch: labels has the shape (4, 1023) and not (batch, block_size)"),
    ("objective", "labels = labels - 500", "batch: a label is neither -100 nor a token id"),
    ("objective", "blocks[0]['input_ids'][:] = 0", "seed: the collator changes the blocks that it is given"),
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
        "optimizer",
        "return torch.optim.SGD(trained, lr=0.01, weight_decay=weight_decay)",
        "settings: it does not use the learning_rate that it is given",
    ),
    (
        "optimizer",
        "return torch.optim.SGD(trained, lr=learning_rate)",
        "settings: it does not use the weight_decay that it is given",
    ),
    (
        "optimizer",
        "class Deaf(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        for parameter in trained:\n"
        "            parameter.data -= learning_rate * (parameter.grad + weight_decay * parameter.data)\n"
        "return Deaf(trained, lr=learning_rate)",
        "settings: with lr 0 in its groups it still moves the parameters",
    ),
    (
        "memory",
        "def apply(self, model, run):\n    model.loss_function = lambda *args, **kwargs: 0\n    return model",
        "apply: it refuses: the loss is computed by the toolkit from the logits, so the model's loss_function",
    ),
    (
        "memory",
        "def apply(self, model, run):\n"
        "    model.lm_head.weight.register_hook(lambda gradient: 2 * gradient)\n    return model",
        "apply: its fidelity is exact, and apply changes the gradient of",
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
        "changes: it sets seed, which only the recipe may set",
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
        "def changes(self, settings, device):\n    settings.precision = 'bf16'\n    return {}",
        "changes: ValidationError: 1 validation error for Training precision Instance is frozen",
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
        "class Pushes(TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, model=None, **kwargs):\n"
        "        model.lm_head.weight.data *= 1.001\n"
        "return [Pushes()]",
        "run: with it the training ends with other weights",
    ),
    (
        "callback",
        "class Sets(TrainerCallback):\n"
        "    def on_train_begin(self, args, state, control, model=None, **kwargs):\n"
        "        args.learning_rate = 1.0\n"
        "return [Sets()]",
        "run: it changes the Trainer's learning_rate, which are the recipe's to say",
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
    (
        "exporter",
        "tokenizer.pad_token = tokenizer.eos_token\nmodel.save_pretrained(folder)",
        "export: the model's settings or the tokenizer are others after export",
    ),
    (
        "exporter",
        "model.save_pretrained(folder)\nimport socket\n"
        "try:\n    socket.create_connection(('example.com', 443))\nexcept OSError:\n    pass",
        "export: in a rehearsal it connects to example.com",
    ),
    ("exporter", "pass", "export: it writes nothing into its folder"),
    # State that is kept between calls
    (
        "dataset",
        f"{COUNTED}\n{GOOD['dataset']}".replace("{n}", "{n * count}"),
        "loaded again: loaded again in another process, train has other documents",
    ),
    (
        "tokenizer",
        f"{COUNTED}\nbytes_ = bytes_[count:] + bytes_[:count]\n{GOOD['tokenizer']}",
        "build: building it twice from the same texts gives two different tokenizers",
    ),
    (
        "model",
        f"{COUNTED}\nsizes['n_embd'] += count\n{GOOD['model']}",
        "seed: the same seed gives other weights",
    ),
    (
        "optimizer",
        f"{COUNTED}\n"
        "class Warms(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        self.steps = getattr(self, 'steps', 0) + 1\n"
        "        for group in self.param_groups:\n"
        "            group['weight_decay'] = weight_decay * self.steps\n"
        "        return super().step(closure)\n"
        "return Warms(trained, lr=learning_rate, weight_decay=weight_decay)",
        "state: after loading its state_dict the next steps differ",
    ),
    (
        "memory",
        f"def changes(self, settings, device):\n    {COUNTED}\n    return {{'micro_batch_size': Change(count)}}",
        "changes: asked again about the same settings, it sets others",
    ),
    (
        "memory",
        f"def apply(self, model, run):\n    {COUNTED}\n    model.lm_head.weight.data *= count\n    return model",
        "apply: applied again to the same model, with the same seed, it gives other",
    ),
    (
        "exporter",
        f"{COUNTED}\n(folder / f'weights-{{count}}').write_text('mine')",
        "export: a second export writes other files",
    ),
    # A leak of special tokens
    (
        "tokenizer",
        f"{GOOD['tokenizer']}\n"
        "class PreTrainedTokenizerFast(PreTrainedTokenizerFast):\n"
        "    def encode(self, *texts, **how):\n"
        "        return [self.eos_token_id, *super().encode(*texts, **how)]",
        "encoding: it puts special tokens into texts that hold none, unasked: <end>",
    ),
    # The loss and the optimizer of a strategy
    ("memory", loss("inputs.float().logsumexp(-1).mean()"), "loss: of a batch the loss is"),
    ("memory", loss("inputs.logsumexp(-1).sum()"), "loss: the loss of tokens without a label is"),
    ("memory", loss("(inputs.logsumexp(-1) * kept).sum()"), "loss: its fidelity is exact, and its loss is"),
    ("memory", loss("inputs.sum(-1)"), "loss: the loss of a small model is tensor("),
    ("memory", loss("(inputs.sum(-1) * kept).sum() * torch.rand(())"), "loss: computed again for the same batch"),
    (
        "memory",
        loss("inputs.logsumexp(-1)[kept].sum() * 0 + cross_entropy"),
        "loss: it refuses: no plan can be made: the",
    ),
    ("memory", "def loss(self, model, run):\n    return len", "loss: loss returns a builtin_function_or_method"),
    (
        "memory",
        "def wrap_optimizer(self, optimizer, model, run):\n    return None",
        "optimizer: it refuses: its wrap_optimizer returns a NoneType",
    ),
    (
        "memory",
        wrapper("self.count = getattr(self, 'count', 0) + 1\nif self.count < 5:\n    optimizer.step()"),
        "optimizer: after loading its state_dict the next steps differ",
    ),
    (
        "memory",
        wrapper(
            "optimizer.step()\nfor group in self.param_groups:\n    for one in group['params']:\n        one += 1e-3"
        ),
        "optimizer: with lr 0 in its groups it moves",
    ),
    (
        "memory",
        "def requires(self):\n    return ['cuda']",
        "requires: requires returns 'cuda', which is no",
    ),
    (
        "memory",
        "def requires(self):\n    return [Requirement('gpu', 'cuda')]",
        "requires: it requires a 'gpu'; known: device, package, claim",
    ),
    # The planner's hooks
    (
        "memory",
        "@classmethod\ndef candidates(cls, settings, device):\n    return [Change(1)]",
        "candidates: candidates returns Change(value=1, why=''), which is not a Bad",
    ),
    (
        "memory",
        f"@classmethod\ndef candidates(cls, settings, device):\n    {COUNTED}\n    return [cls()] * count",
        "candidates: asked again about the same settings, candidates returns others",
    ),
    (
        "tokenizer",
        f"{GOOD['tokenizer']}\nif not list(corpus):\n"
        "    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='<end>', pad_token='<pad>')",
        "skeleton: build without documents has the special tokens",
    ),
    (
        "model",
        "made = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(tokenizer), **sizes))\n"
        "assert float(next(made.parameters()).std()) > 0\nreturn made",
        "skeleton: it refuses: no plan can be made",
    ),
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
        f"class Bad({KINDS[kind].__name__}):\n    '''Bad.'''\n{indent(options, '    ')}{indent(methods, '    ')}",
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


HOOKS: dict[str, dict[str, Any]] = {
    "tokenizer": {"skeleton": lambda self, run: self.build(iter(()), run)},
    "model": {"skeleton": lambda self, tokenizer, run: self.build(tokenizer, run)},
    "memory": {"candidates": lambda self, settings, device: [self]},
    "exporter": {"export_bytes": lambda self, weights, saved: saved},
}
"""The planner's hooks, for a plugin that has all of them."""


@pytest.mark.parametrize("kind", GOOD)
def test_every_method_of_the_contract_is_tried(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = written(tmp_path, kind, GOOD[kind])
    loaded = registry.load(kind, "bad")
    called: set[str] = set()

    def counted(name: str, method: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return method(*args, **kwargs)

        return count

    bases = [base for base in KINDS[kind].__mro__ if issubclass(base, Plugin)]
    members = {name for base in bases for name, member in vars(base).items() if isfunction(member)}
    methods = {name: getattr(loaded, name) for name in members if not name.startswith("_")} | HOOKS.get(kind, {})
    for name, method in methods.items():
        monkeypatch.setattr(loaded, name, counted(name, method), raising=False)
    assert failures(check_plugin(kind, "bad", registry)) == []
    assert called == set(methods)
    assert HOOKS.keys() == PLANNER_HOOKS.keys()


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
    assert failed.startswith("options: size: input should be a valid integer")


def test_options_that_change_on_the_way_through_a_file_fail(tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "", options="size: Any = frozenset({1})\n'''How much of it.'''\n")
    (failed,) = failures(check_plugin("memory", "bad", registry, {"size": {1, 2}}))
    assert failed.startswith("options: they change on the way through JSON")


def test_rehearse_returns_the_same_component(tmp_path: Path) -> None:
    registry = written(tmp_path, "memory", "def rehearse(self):\n    return None")
    (failed,) = failures(check_plugin("memory", "bad", registry))
    assert failed == "rehearse: returns None, which is not a Bad"


def test_a_strategy_that_needs_another_device_was_not_tried_and_fails(tmp_path: Path) -> None:
    body = "def requires(self):\n    return [Requirement('device', 'mps')]\n\ndef apply(self, model, run):\n    1 / 0"
    registry = written(tmp_path, "memory", body)
    checks = check_plugin("memory", "bad", registry)
    assert failures(checks) == ["apply: not tried here: it needs a mps device"]
    assert [check.tried for check in checks if check.name == "apply"] == [False]


def test_a_loss_and_an_optimizer_of_ones_own_pass(tmp_path: Path) -> None:
    step = "optimizer.step()\nfor group in self.param_groups:\n    group['steps'] = group.get('steps', 0) + 1"
    body = f"{loss('cross_entropy')}\n\n{wrapper(step)}"
    checks = check_plugin("memory", "bad", written(tmp_path, "memory", body))
    assert failures(checks) == []
    told = {check.name: check.detail for check in checks}
    assert told["loss"] == "its loss, of the logits, adds up over parts of a batch"
    assert told["optimizer"].startswith("Wrapper follows the learning rate")


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


@pytest.mark.slow
def test_an_objective_that_fills_in_is_killed_and_resumed_with_a_model_that_can() -> None:
    check = check_resume("objective", "masked-lm")
    assert check.passed
    assert check.detail.startswith("killed twice, it ends the same")


@pytest.mark.slow
def test_a_plugin_that_refuses_every_small_recipe_was_not_tried_and_fails(tmp_path: Path) -> None:
    written(tmp_path, "memory", "def apply(self, model, run):\n    raise OptionError('not for this one')")
    check = check_resume("memory", "bad", plugin_folders=[tmp_path])
    assert not check.passed
    assert not check.tried
    assert check.detail.startswith("not tried: it refuses every small recipe")
    assert "not for this one" in check.detail
