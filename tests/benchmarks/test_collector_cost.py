"""What Python's garbage collector takes of a step, where that is small: GPT-2 1M, 2,048 tokens.

    pytest tests/benchmarks/test_collector_cost.py --benchmark-only

The line above the table has the share of the steps' processor time, which other programs hardly disturb.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import callback, train, write_recipe

WARMUP, STEPS = 20, 220
TIMED = f"""
def on_step_begin(self, args, state, control, **rest):
    import gc, time
    if state.global_step == {WARMUP}:
        self.collections, self.seconds, self.begun = 0, 0.0, time.process_time()
        def note(phase, info):
            if phase == "start":
                self.since = time.process_time()
            else:
                self.collections += 1
                self.seconds += time.process_time() - self.since
        self.note = note
        gc.callbacks.append(note)
def on_train_end(self, args, state, control, **rest):
    import gc, json, time
    gc.callbacks.remove(self.note)
    found = dict(collections=self.collections, seconds=self.seconds, of=time.process_time() - self.begun)
    with open({{output!r}}, "w") as file:
        json.dump(found, file)
"""


@pytest.mark.benchmark(group=f"{STEPS} steps of gpt2-1M, with what collects their garbage")
def test_collections(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "collections.json"
    callback(tmp_path, "timed", TIMED.format(output=str(output)))
    recipe = write_recipe(
        tmp_path,
        plugin_paths=["plugins"],
        callbacks=["timed"],
        model={"plugin": "gpt2", "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4, "dropout": 0.0},
        objective={"plugin": "causal-lm", "block_size": 256},
        training={"max_steps": STEPS, "global_batch_size": 8, "eval_steps": STEPS, "torch_compile": False},
    )
    benchmark.pedantic(lambda: train(recipe), rounds=1)
    found = json.loads(output.read_text())
    steps = STEPS - WARMUP
    share = found["seconds"] / found["of"]
    benchmark.extra_info.update(share=share, collections=found["collections"])
    with capsys.disabled():
        print(
            f"\ncollector: {found['collections']} collections in {steps} steps, "
            f"{1e6 * found['seconds'] / steps:.0f} us a step, {share:.3%} of its processor time"
        )
