"""What a plugin sets and a run would ignore is refused, at the plugin's line of the recipe."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from tests.tiny import resolved, train, write_recipe
from toolkit.api import KINDS
from toolkit.errors import OptionError, RecipeError
from toolkit.training.components import assemble, context_of
from toolkit.training.without_effect import check_built

LOSS = "the loss is computed by the toolkit from the logits, so "
PLUGIN = '''
"""Made for a test."""
from typing import *
from toolkit.api import *

class Vain({base}):
    """Sets something that nobody looks at."""
{body}
'''
STRATEGY = """
fidelity = "different"

def apply(self, model, run):
    import torch
    standard, forward = model.loss_function, model.forward
"""
MODEL = """
def build(self, tokenizer, run):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    class Mine(GPT2LMHeadModel):
        def forward(self, *args, {arguments}**kwargs):
            outputs = super().forward(*args, **kwargs)
            {then}
            return outputs
    model = Mine(GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=1))
"""
OBJECTIVE = """
task: ClassVar[Task] = "causal-lm"

def document_end(self, tokenizer):
    return ()

def collator(self, tokenizer):
    import torch
    def collate(blocks):
        ids = torch.stack([torch.from_numpy(block["input_ids"]) for block in blocks])
"""

Z_LOSS = (
    "def z_loss(logits, labels, **kwargs):\n"
    "    return standard(logits, labels, **kwargs) + {weight} * logits.logsumexp(-1).square().mean()\n"
)
CASES: dict[str, tuple[str, str, str]] = {
    "a small term in loss_function": (
        "memory",
        f"{STRATEGY}    {Z_LOSS.format(weight=1e-6).replace(chr(10), chr(10) + '    ')}"
        "model.loss_function = z_loss\n    return model",
        f"memory[0]: {LOSS}the model's loss_function, which vain sets to Vain.apply.<locals>.z_loss, would have no",
    ),
    "a term that begins at zero": (
        "memory",
        f"{STRATEGY}    model.loss_function = lambda *args, **kwargs: standard(*args, **kwargs)\n    return model",
        f"memory[0]: {LOSS}the model's loss_function, which vain sets to",
    ),
    "another loss type": (
        "memory",
        f"{STRATEGY}    model.loss_type = 'ForMaskedLM'\n    return model",
        f"memory[0]: {LOSS}the model's loss_function, which vain sets to ForMaskedLMLoss, would have no effect",
    ),
    "a forward that adds to the loss": (
        "memory",
        f"{STRATEGY}    def adds(*args, **kwargs):\n"
        "        outputs = forward(*args, **kwargs)\n"
        "        if outputs.loss is not None:\n"
        "            outputs.loss = outputs.loss + 1e-4\n"
        "        return outputs\n"
        "    model.forward = adds\n    return model",
        f"memory[0]: {LOSS}what vain adds to the model's own (+0.0001 nats in a trial) would have no effect",
    ),
    "a hook that adds to the loss": (
        "memory",
        f"{STRATEGY}    def adds(module, args, outputs):\n"
        "        outputs.loss = None if outputs.loss is None else 2 * outputs.loss\n"
        "    model.register_forward_hook(adds)\n    return model",
        f"memory[0]: {LOSS}what vain adds to the model's own",
    ),
    "evaluation mode": (
        "memory",
        f"{STRATEGY}    model.transformer.h[0].eval()\n    return model",
        "memory[0]: every step puts the model into training mode, so the evaluation mode in which vain leaves its",
    ),
    "a model with a loss of its own": (
        "model",
        MODEL.format(arguments="", then="if outputs.loss is not None: outputs.loss = 1.1 * outputs.loss")
        + "    return model",
        f"model: {LOSS}what Mine adds to it by itself (+0.",
    ),
    "a model with a loss function of its own": (
        "model",
        MODEL.format(arguments="", then="") + "    model.loss_function = torch.nn.CrossEntropyLoss()\n    return model",
        f"model: {LOSS}the model's loss_function, which the plugin sets to CrossEntropyLoss, would have no effect",
    ),
    "weights of tokens in the batch": (
        "objective",
        f"{OBJECTIVE}        return dict(input_ids=ids, labels=ids.clone(), loss_weights=torch.ones(ids.shape))\n"
        "    return collate",
        "objective: the batch has loss_weights, which the forward of GPT2LMHeadModel does not take and the loss does",
    ),
    "labels for some of the tokens": (
        "objective",
        f"{OBJECTIVE}        return dict(input_ids=ids, labels=ids[:, 1:])\n    return collate",
        "objective: labels have the shape (1, 15) and input_ids (1, 16); a token has one label",
    ),
}
"""By what it is: the kind, the body of the plugin, and the refusal."""


def write_plugin(folder: Path, kind: str, body: str) -> None:
    (folder / "plugins" / kind).mkdir(parents=True)
    source = PLUGIN.format(base=KINDS[kind].__name__, body=indent(body, "    "))
    (folder / "plugins" / kind / "vain.py").write_text(source, encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_what_would_have_no_effect_is_refused_at_its_place(case: str, tmp_path: Path) -> None:
    kind, body, refusal = CASES[case]
    write_plugin(tmp_path, kind, body)
    plugin: Any = {"plugin": "vain"} | ({"block_size": 32} if kind == "objective" else {})
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], **{kind: [plugin] if kind == "memory" else plugin})
    ready = resolved(recipe)
    with pytest.raises(RecipeError) as caught:
        assemble(ready, context_of(ready, tmp_path))
    (problem,) = caught.value.problems
    assert f"{problem.path}: {problem.message}".startswith(refusal)
    assert problem.place.line > 1


def test_a_callback_that_sets_the_loss_is_refused_when_it_does(tmp_path: Path) -> None:
    write_plugin(
        tmp_path,
        "callback",
        "def callbacks(self, run):\n"
        "    from transformers import TrainerCallback\n"
        "    class Sets(TrainerCallback):\n"
        "        def on_step_end(self, args, state, control, model=None, **kwargs):\n"
        "            model.loss_function = print\n"
        "    return [Sets()]",
    )
    recipe = write_recipe(tmp_path, plugin_paths=["plugins"], callbacks=["vain"])
    with pytest.raises(OptionError, match="the model's loss_function, which a callback sets to print, would have no"):
        train(recipe)


@pytest.mark.parametrize("base", [16, 32], ids=["wider than the base", "at the base"])
def test_an_optimizer_that_ignores_the_models_learning_rates_is_refused(tmp_path: Path, base: int) -> None:
    body = (
        "def build(self, model, *, learning_rate, weight_decay, run):\n"
        "    import torch\n"
        "    return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)"
    )
    write_plugin(tmp_path, "optimizer", body)
    model = {"plugin": "llama", "num_hidden_layers": 1, "hidden_size": 32, "tie_word_embeddings": False}
    recipe = write_recipe(
        tmp_path,
        plugin_paths=["plugins"],
        optimizer={"plugin": "vain"},
        model=model | {"mup_base_hidden_size": base},
        training={"max_steps": 1},
    )
    if base == 32:  # where there is nothing to scale
        assert train(recipe)[0].steps == 1
        return
    with pytest.raises(RecipeError, match=r"optimizer: the model asks for a learning rate of their own.* take adamw"):
        train(recipe)


def test_a_published_architecture_that_adds_to_its_loss_is_told_of() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, **sizes)  # type: ignore[arg-type]  # sizes are int
    assert check_built(MixtralForCausalLM(config), "causal-lm") is None
    config.output_router_logits = True
    config.router_aux_loss_coef = 0.1
    told = check_built(MixtralForCausalLM(config), "causal-lm")
    assert told is not None
    assert told.startswith(f"{LOSS}what MixtralForCausalLM adds to it by itself (+0.")
    assert told.endswith("; output_router_logits is true) has no effect")


def test_dropout_and_a_pass_of_the_check_change_no_number_of_the_run(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=1))
    state = torch.get_rng_state()
    assert check_built(model.eval(), "masked-lm") is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
