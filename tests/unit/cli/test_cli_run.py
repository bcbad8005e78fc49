"""`toolkit run`: list and show, on run directories as `run_directory` writes them."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import toolkit
from toolkit.api import Device
from toolkit.recipe import resolve
from toolkit.storage import run_directory
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.run_directory import RunDirectory
from toolkit.system.files import write_json

pytestmark = pytest.mark.usefixtures("here")


def begun(name: str, runs: Path = Path("runs")) -> RunDirectory:
    device = Device(kind="cpu", name="a processor", memory_bytes=2**33)
    resolved = resolve.resolve(resolve.load("mine.yaml"), device)
    run = run_directory.create(runs / name, resolved, {}, series=name)
    run.begin_attempt(from_step=0)
    return run


def finished(name: str) -> RunDirectory:
    run = begun(name)
    MetricsLog(run, print).write({"kind": "train", "step": 1200, "loss": 3.5, "seconds": 9.0})
    MetricsLog(run, print).write({"kind": "eval", "step": 1200, "eval_loss": 3.25, "perplexity": 25.79, "seconds": 9.0})
    reached = {"steps": 1200, "eval_loss": 3.25, "perplexity": 25.79, "seconds": 75.0, "tokens_seen": 4096}
    memory = {"peak_memory_bytes": 727_052_288, "memory_was_short": False}
    run.update(results={**reached, **memory, "parameters": 950_912, "sample": None}, planned_memory_bytes=616_000_000)
    run.end_attempt(how="finished", step=1200)
    for step in (900, 1200):
        (run.checkpoints / f"checkpoint-{step}").mkdir()
    run.model.mkdir()
    (run.model / "config.json").write_text("{}")
    return run


def listed() -> dict[str, Any]:
    return {entry["name"]: entry for entry in toolkit("run", "list", "--json").json}


def test_list_has_status_step_and_loss() -> None:
    finished("good")
    begun("killed")
    begun("failed").end_attempt(how="failed", step=3)
    runs = listed()
    assert {name: run["status"] for name, run in runs.items()} == {
        "good": "finished",
        "killed": "stopped",
        "failed": "failed",
    }
    assert (runs["good"]["step"], runs["good"]["eval_loss"], runs["good"]["recipe"]) == (1200, 3.25, "mine")
    assert (runs["killed"]["step"], runs["killed"]["eval_loss"]) == (0, None)
    line = next(line for line in toolkit("run", "list").out.splitlines() if line.startswith("good"))
    assert line.split()[:4] == ["good", "finished", "1,200", "3.2500"]


def test_a_run_that_a_process_works_on_is_running() -> None:
    run = begun("busy")
    with (run.folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed()["busy"]["status"] == "running"
    assert listed()["busy"]["status"] == "stopped"


def test_no_runs_is_no_error() -> None:
    answer = toolkit("run", "list", "--runs", "none")
    assert (answer.out, answer.err) == ("", "There are no runs in none. Start one: toolkit recipe run quickstart\n")
    assert toolkit("run", "list", "--json").json == []


def test_show_tells_attempts_results_checkpoints_and_the_model() -> None:
    finished("good")
    out = toolkit("run", "show", "good").out
    for words in ("finished, step 1,200", "from step 0; finished at step 1,200", "checkpoint-900, checkpoint-1200"):
        assert words in out
    room = "memory was plentiful, so freed memory was kept for reuse"
    for words in ("1 min 15 s", "loss 3.2500, perplexity 25.79", f"peak 727 MB; planned 616 MB ({room})", "951K"):
        assert words in out
    for words in ("runs/good/model", "4,096 tokens"):
        assert words in out
    assert "sample" not in out
    shown = toolkit("run", "show", "good", "--json").json
    assert shown["results"]["tokens_seen"] == 4096
    assert shown["checkpoints"] == ["checkpoint-900", "checkpoint-1200"]
    assert shown["model"] == "runs/good/model"
    assert shown["attempts"][0]["how"] == "finished"


def test_show_of_a_run_that_was_killed() -> None:
    begun("killed")
    out = toolkit("run", "show", "killed").out
    assert "stopped, step 0" in out
    assert "killed, no end recorded" in out
    assert "none yet" in out


def test_a_run_is_found_by_path_option_and_environment(here: Path) -> None:
    begun("far", runs=here / "elsewhere")
    toolkit("run", "show", "elsewhere/far")
    toolkit("run", "show", "far", "--runs", "elsewhere")
    toolkit("run", "show", "far", TOOLKIT_RUNS="elsewhere")


def test_a_last_line_that_a_crash_cut_off_is_left_out() -> None:
    run = finished("good")
    with (run.folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"kind": "eval", "step": 13')
    assert listed()["good"]["step"] == 1200


@pytest.mark.parametrize("command", [["run", "show"], ["run", "report"], ["generate", "--prompt", "x"], ["evaluate"]])
def test_an_unknown_run_is_explained(command: list[str]) -> None:
    finished("good")
    assert "no run in runs is named 'god'; did you mean 'good'?" in toolkit(*command, "god", status=2).err
    assert "mine.yaml/x is not a run" in toolkit(*command, "mine.yaml/x", status=2).err


def test_the_report_lies_in_the_run_or_where_it_is_asked_for(here: Path) -> None:
    run = finished("good")
    write_json(run.folder / "environment.json", {})
    assert toolkit("run", "report", "good", "--output", "page.html").out == "Wrote page.html\n"
    assert "<html" in Path("page.html").read_text()
    assert toolkit("run", "report", "good").out == "Wrote runs/good/report.html\n"
    assert json.loads((run.folder / "run.json").read_text())["status"] == "finished"
