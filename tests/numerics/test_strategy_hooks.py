"""A strategy from a folder of one's own sets the loss and wraps the optimizer, in a run, a resume and a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import SUM_ORDER, losses, resolved, train, train_in_two, weights, write_recipe
from toolkit.errors import RecipeError
from toolkit.planning.fake_step import trace
from toolkit.planning.trace import Trace

Z_LOSS = '''
"""The z-loss: keeps the logits' normalizer near 1."""

from pydantic import Field

from toolkit.api import Loss, Strategy


class ZLoss(Strategy):
    """Add the squared log of the softmax's normalizer to the loss. https://arxiv.org/abs/2204.02311."""

    fidelity = "different"
    claims = frozenset([{claims}])

    weight: float = Field(default=0.1, ge=0)
    """Weight of the term."""

    def loss(self, model, run):
        from torch.nn.functional import cross_entropy, linear

        head = model.get_output_embeddings()

        def summed(inputs, targets):
            logits = inputs if "{inputs}" == "logits" else linear(inputs, head.weight).float()
            normalizer = logits.logsumexp(-1) * (targets != -100)
            plain = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            return plain + self.weight * normalizer.square().sum()

        return Loss(summed, inputs="{inputs}")
'''

SLOW_WEIGHTS = '''
"""Lookahead, around any optimizer."""

from pydantic import Field

from toolkit.api import Strategy


class SlowWeights(Strategy):
    """Every few steps, go half the way back to where the weights were. https://arxiv.org/abs/1907.08610."""

    fidelity = "different"

    every: int = Field(default=2, ge=1)
    """Steps between two returns."""

    def wrap_optimizer(self, optimizer, model, run):
        import torch

        every = self.every

        class Lookahead(torch.optim.Optimizer):
            def __init__(self):
                super().__init__(optimizer.param_groups, optimizer.defaults)
                optimizer.param_groups, self.state = self.param_groups, optimizer.state
                self.param_groups[0]["lookahead_steps"] = 0

            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for weight in group["params"]:
                        if weight.grad is not None and "slow" not in self.state[weight]:
                            start = weight.clone()
                            self.state[weight]["slow"] = start
                slow = {w: self.state[w].pop("slow") for g in self.param_groups for w in g["params"] if self.state[w]}
                optimizer.param_groups, optimizer.state = self.param_groups, self.state
                optimizer.step()
                self.param_groups[0]["lookahead_steps"] += 1
                for weight, start in slow.items():
                    if self.param_groups[0]["lookahead_steps"] % every == 0:
                        weight.lerp_(start, 0.5)
                        start.copy_(weight)
                    self.state[weight]["slow"] = start

        return Lookahead()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plugins" / "memory").mkdir(parents=True)
    return tmp_path


def z_loss(folder: Path, name: str = "z_loss", *, claims: str = "'logits'", inputs: str = "logits") -> None:
    code = Z_LOSS.replace("{claims}", claims).replace("{inputs}", inputs)
    (folder / "plugins" / "memory" / f"{name}.py").write_text(code, encoding="utf-8")


def recipe(folder: Path, *memory: object, name: str = "tiny", **training: object) -> Path:
    model = {"plugin": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    return write_recipe(
        folder, name, plugin_paths=["plugins"], memory=list(memory), model=model, training={"max_steps": 6, **training}
    )


@pytest.mark.parametrize("inputs", [pytest.param("logits", marks=pytest.mark.slow), "hidden_states"])
def test_a_loss_of_ones_own_is_exact_under_accumulation_and_over_a_resume(folder: Path, inputs: str) -> None:
    z_loss(folder, inputs=inputs)
    whole, _ = train(recipe(folder, "z-loss"), name="whole")
    split, _ = train(recipe(folder, "z-loss", micro_batch_size=1), name="split")
    for one, other in zip(losses(whole.folder), losses(split.folder), strict=True):
        assert other[2] == pytest.approx(one[2], rel=SUM_ORDER)
    resumed = train_in_two(recipe(folder, "z-loss"), stop_after=3, name="resumed")
    assert losses(resumed.folder) == losses(whole.folder)
    one, other = weights(whole.folder), weights(resumed.folder)
    assert [name for name in one if not bool((one[name] == other[name]).all())] == []


def test_it_changes_training_and_the_held_out_loss_stays_the_cross_entropy(folder: Path) -> None:
    z_loss(folder)
    plain, _ = train(recipe(folder, learning_rate=1e-12), name="plain")
    mine, _ = train(recipe(folder, "z-loss", learning_rate=1e-12), name="mine")
    trained = [{entry[:2]: entry[2] for entry in losses(run.folder)} for run in (plain, mine)]
    # A new model's logits are near 0, so the logarithm of the normalizer is near that of the 300 tokens, 5.7.
    assert trained[1][1, "train"] == pytest.approx(trained[0][1, "train"] + 0.1 * 5.7**2, rel=0.01)
    assert trained[1][4, "eval"] == pytest.approx(trained[0][4, "eval"], rel=1e-6)


def test_only_one_strategy_sets_the_loss(folder: Path) -> None:
    z_loss(folder)
    with pytest.raises(RecipeError, match=r"chunked-loss and z-loss exclude each other: both manage the logits"):
        resolved(recipe(folder, "z-loss", "chunked-loss"))
    z_loss(folder, "unclaimed", claims="")
    with pytest.raises(RecipeError, match=r"memory\[0\]: unclaimed sets the loss, too; remove one of the two"):
        train(recipe(folder, "z-loss", "unclaimed"))


def test_an_optimizer_of_ones_own_around_the_recipes_resumes_exactly(folder: Path) -> None:
    (folder / "plugins" / "memory" / "slow_weights.py").write_text(SLOW_WEIGHTS, encoding="utf-8")
    plain, _ = train(recipe(folder), name="plain")
    whole, _ = train(recipe(folder, "slow-weights"), name="whole")
    resumed = train_in_two(recipe(folder, "slow-weights"), stop_after=3, name="resumed")
    assert losses(whole.folder) != losses(plain.folder)
    assert losses(resumed.folder) == losses(whole.folder)
    one, other = weights(whole.folder), weights(resumed.folder)
    assert [name for name in one if not bool((one[name] == other[name]).all())] == []


def test_a_wrapper_of_other_parameters_is_refused_with_its_place(folder: Path) -> None:
    code = SLOW_WEIGHTS.replace("return Lookahead()", "return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])")
    (folder / "plugins" / "memory" / "slow_weights.py").write_text(code, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"memory\[0\]\.plugin: the optimizer that its wrap_optimizer returns has"):
        train(recipe(folder, "slow-weights"))


def test_a_plan_counts_both(folder: Path) -> None:
    z_loss(folder)
    z_loss(folder, "of_states", inputs="hidden_states")
    (folder / "plugins" / "memory" / "slow_weights.py").write_text(SLOW_WEIGHTS, encoding="utf-8")

    def traced(*memory: str) -> Trace:
        return trace(resolved(recipe(folder, *memory)), micro_batch_size=4, accumulation=1)

    plain, mine = traced(), traced("slow-weights")
    assert mine.totals()["optimizer"] == pytest.approx(1.5 * plain.totals()["optimizer"], rel=0.05)
    assert len(traced("z-loss").work) > len(plain.work)
    assert len(traced("of-states").work) > len(plain.work)
