"""A sweep trains, is killed, goes on, and finds its trials: `toolkit recipe sweep` in processes of its own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.command_line import process
from tests.tiny import callback, command, write_recipe

pytestmark = pytest.mark.slow
SWEEP = ("recipe", "sweep", "tiny.yaml", "--set=training.learning_rate=1e-3,1e-2,3e-2")
TROUBLED = """
def on_step_begin(self, args, state, control, **kwargs):
    import time
    from pathlib import Path
    end = time.monotonic() + 300
    while args.learning_rate == 0.01 and state.global_step == 4 and not Path("killed").exists():
        assert time.monotonic() < end, "nobody has killed the sweep within 300 s"
        Path("waits").touch()
        time.sleep(0.05)

def on_step_end(self, args, state, control, **kwargs):
    if args.learning_rate > 0.02 and state.global_step == 3:
        raise ValueError("it explodes")
"""
"""The second trial waits until the sweep is killed; the third fails."""
PAUSES = """
def on_step_begin(self, args, state, control, **kwargs):
    import time
    time.sleep(0.5)
"""


def test_a_killed_sweep_goes_on_with_the_trial_it_was_at_and_a_failed_one_does_not_end_it(tmp_path: Path) -> None:
    callback(tmp_path, "troubled", TROUBLED)
    training = {"save_steps": 2, "torch_compile": False}
    write_recipe(tmp_path, callbacks=["troubled"], plugin_paths=["plugins"], training=training)
    sweep = tmp_path / "runs/tiny-sweep"
    running = command(*SWEEP, cwd=tmp_path)
    until((tmp_path / "waits").exists, "trial-001 has come to its fifth step", running)
    trial = psutil.Process(running.pid).children()
    running.kill()
    running.communicate(timeout=60)
    (tmp_path / "killed").touch()
    _, alive = psutil.wait_procs(trial, timeout=180)  # the kernel tells it to stop, and it saves
    assert trial
    assert not alive
    done = process(*SWEEP, "--json", cwd=tmp_path)
    assert done.status == 0, done
    trials = {trial["run"]: trial for trial in done.json["trials"]}
    assert [(run, trial["how"]) for run, trial in trials.items()] == [
        ("trial-000", "finished"), ("trial-001", "finished"), ("trial-002", "failed"),
    ]  # fmt: skip
    assert "it explodes" in trials["trial-002"]["error"]
    assert done.json["best"] == min((trials["trial-000"], trials["trial-001"]), key=lambda trial: trial["loss"])
    records = {run: json.loads((sweep / run / "run.json").read_text()) for run in trials}
    assert [len(record["attempts"]) for record in records.values()] == [1, 2, 1]
    assert [attempt["from_step"] for attempt in records["trial-001"]["attempts"]] == [0, 5]
    for run in ("trial-000", "trial-001"):
        assert records[run]["results"]["eval_loss"] == trials[run]["loss"]
        rate = records[run]["identity"]["training.learning_rate"]
        assert rate == float(trials[run]["values"]["training.learning_rate"])
    page = (sweep / "report.html").read_text()
    assert "Final held-out loss by training.learning_rate" in page
    assert done.json["command"].endswith("--set=training.learning_rate=0.01 --name tiny-sweep-best")
    again = process(*SWEEP, cwd=tmp_path)
    assert again.status == 0, again
    assert "trial-000:" not in again.out  # nothing is trained again
    assert [line.split()[0] for line in again.out.splitlines() if line.startswith("trial-")][-1] == "trial-002"
    other = process(*SWEEP, "--set=model.dropout=0.2", cwd=tmp_path)
    assert other.status == 2, other
    assert "model.dropout: 0.1, and now 0.2" in other.err


def test_a_signal_stops_sweep_and_trial_and_nothing_is_lost(tmp_path: Path) -> None:
    callback(tmp_path, "pauses", PAUSES)
    training = {"save_steps": None, "torch_compile": False, "max_steps": 200}
    write_recipe(tmp_path, callbacks=["pauses"], plugin_paths=["plugins"], training=training)
    first = tmp_path / "runs/tiny-sweep/trial-000"
    running = command(*SWEEP, cwd=tmp_path)
    metrics = first / "metrics.jsonl"
    until(lambda: metrics.is_file() and metrics.stat().st_size > 0, "trial-000 has trained a step", running)
    running.terminate()
    _, err = running.communicate(timeout=300)
    assert running.returncode == 143, err
    assert "stopped by SIGTERM; the same command goes on with trial-000" in err
    (attempt,) = json.loads((first / "run.json").read_text())["attempts"]
    assert attempt["how"] == "interrupted"
    assert attempt["step"] >= 1


def test_without_held_out_documents_there_is_nothing_to_compare(tmp_path: Path) -> None:
    write_recipe(tmp_path, dataset={"eval_fraction": None}, training={"torch_compile": False, "max_steps": 3000})
    refused = process(*SWEEP, cwd=tmp_path)
    assert refused.status == 2, refused
    assert "--set dataset.eval_fraction=0.05 holds out 5%" in refused.err
    assert len(list((tmp_path / "runs/tiny-sweep").glob("trial-*"))) == 1
    cure = ("--set=dataset.eval_fraction=0.05", "--set=training.max_steps=2")
    mended = process(*SWEEP, *cure, "--json", cwd=tmp_path)
    assert mended.status == 0, mended
    assert [(trial["how"], trial["step"]) for trial in mended.json["trials"]] == [("finished", 2)] * 3


def test_a_sweep_in_which_all_trials_diverge_says_why(tmp_path: Path) -> None:
    write_recipe(tmp_path, training={"torch_compile": False})
    words = ("recipe", "sweep", "tiny.yaml", "--set=training.learning_rate=1e30,1e35", "--json")
    failed = process(*words, cwd=tmp_path)
    assert failed.status == 1, failed
    assert [trial["how"] for trial in failed.json["trials"]] == ["failed", "failed"]
    assert all("is not a finite number" in trial["error"] for trial in failed.json["trials"])
    assert "no trial has finished" in failed.err
    assert "Traceback" not in failed.err


def test_values_between_the_ends_of_a_range_may_be_refused(tmp_path: Path) -> None:
    write_recipe(tmp_path, training={"torch_compile": False, "max_steps": 2})
    done = process(
        "recipe", "sweep", "tiny.yaml", "--set=model.hidden_size=32..64", "--trials=4", "--json", cwd=tmp_path
    )
    assert done.status == 0, done
    how = {int(trial["values"]["model.hidden_size"]): trial for trial in done.json["trials"]}
    assert {size % 2 for size in how} == {0, 1}, "the seed draws no odd width, or no even one"
    for size, trial in how.items():
        assert trial["how"] == ("failed" if size % 2 else "finished"), trial
        assert "does not divide hidden_size" in trial["error"] or not size % 2


def test_a_recipe_that_changes_meanwhile_ends_the_sweep(tmp_path: Path) -> None:
    callback(tmp_path, "pauses", PAUSES)
    training = {"torch_compile": False}
    write_recipe(tmp_path, callbacks=["pauses"], plugin_paths=["plugins"], training=training)
    running = command(*SWEEP, cwd=tmp_path)
    metrics = tmp_path / "runs/tiny-sweep/trial-000/metrics.jsonl"
    until(lambda: metrics.is_file() and metrics.stat().st_size > 0, "trial-000 has trained a step", running)
    write_recipe(tmp_path, callbacks=["pauses"], plugin_paths=["plugins"], training={**training, "max_steps": 9})
    out, err = running.communicate(timeout=300)
    assert running.returncode == 2, err
    assert "trial-000: held-out loss" in out
    assert "training.max_steps: 8, and now 9" in err
    assert not (tmp_path / "runs/tiny-sweep/trial-001").exists()


def until(condition: Callable[[], bool], what: str, process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds, while the process lives."""
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"not within 300 s: {what}"
        time.sleep(0.05)
