"""`toolkit recipe launch`: prints, writes and submits; tests/plugins/test_launchers.py has what the files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import RECIPE, toolkit
from toolkit.commands import resolve
from toolkit.recipe.mix import sources_of

LAUNCH = ("recipe", "launch", "mine.yaml", "--on", "slurm")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("Once upon a time.")
    return tmp_path


def test_it_prints_the_job_and_the_resolved_recipe_beside_it(here: Path) -> None:
    printed = toolkit(*LAUNCH).out
    job, recipe = printed.split("==> mine.yaml <==\n")
    assert job.startswith("==> mine.sbatch <==\n#!/bin/bash\n")
    assert "--signal=B:USR1@120\n" in job
    elsewhere = resolve("mine.yaml").to_yaml(for_any_device=True).replace('"*.txt"', f"{here}/*.txt")
    assert recipe.strip() == elsewhere.replace("'*.txt'", f"{here}/*.txt").strip()
    assert "eval_fraction: 0.2 # line 5" in recipe
    files = toolkit(*LAUNCH, "--json").json
    assert list(files["files"]) == ["mine.sbatch", "mine.yaml"]
    assert files["submission"] == ["sbatch", "mine.sbatch"]


def test_files_and_folders_are_found_from_another_folder(here: Path) -> None:
    """What is named from the current directory, and plugins from the recipe's; a name that leads nowhere stays."""
    (here / "plugins/callback").mkdir(parents=True)
    (here / "more/callback").mkdir(parents=True)
    (here / "recipes").mkdir()
    ours = "{plugin: text-files, files: [a.txt, '/b/*.txt', missing.txt], eval_fraction: 0.5}"
    sources = f"sources: [{{name: ours, weight: 1, dataset: {ours}}}]"
    written = RECIPE.replace('plugin: text-files, files: "*.txt", eval_fraction: 0.2', f"plugin: mix, {sources}")
    (here / "recipes/mine.yaml").write_text(f"plugin_paths: [../plugins]\n{written}")
    launch = ("recipe", "launch", "recipes/mine.yaml", "--on", "slurm", "--plugins", "more", "--json")
    job = toolkit(*launch).json["files"]["mine.yaml"]
    (here / "job").mkdir()
    (here / "job/mine.yaml").write_text(job)
    moved = resolve(here / "job/mine.yaml").recipe
    (source,) = sources_of(moved).values()
    assert source.plugin.files == [str(here / "a.txt"), "/b/*.txt", "missing.txt"]
    assert moved.plugin_paths == (str(here / "recipes/../plugins"), str(here / "more"))
    toolkit("recipe", "validate", "job/mine.yaml")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no folders")
@pytest.mark.parametrize(
    "words",
    [
        (*LAUNCH, "--write", "/proc/x"),
        ("recipe", "sweep", "mine.yaml", "--set", "training.learning_rate=1e-3,2e-3", "--runs", "/proc/x"),
        ("recipe", "run", "mine.yaml", "--processes", "2", "--runs", "/proc/x"),
    ],
    ids=["launch", "sweep", "run"],
)
def test_where_no_folder_can_be_made_that_is_said(words: tuple[str, ...]) -> None:
    assert "cannot use /proc/x: no folder can be made there" in toolkit(*words, status=3).err


def test_an_elastic_run_may_start_with_fewer_hosts_if_all_numbers_share_its_batch() -> None:
    elastic = (*LAUNCH, "--set", "training.elastic=true", "--set", "memory=[]", "--gpus-per-node", "2")
    assert "--nnodes 1:2 " in toolkit(*elastic, "--nodes", "2").out
    assert "--nnodes 2 " in toolkit(*LAUNCH, "--nodes", "2").out
    refused = toolkit(*elastic, "--nodes", "4", "--set", "training.global_batch_size=8", status=2).err
    assert "6 processes with micro-batches of 1 cannot share 8 sequences" in refused


def test_without_a_device_the_memory_strategies_decide_where_it_runs(here: Path) -> None:
    (here / "mine.yaml").write_text(RECIPE.replace("- frequent-saves", "- mixed-precision"))
    for_t4 = toolkit(*LAUNCH, "--json", "--device", "t4", "--grace", "9").json["files"]["mine.yaml"]
    assert "precision: fp16 #" in for_t4
    (here / "job.yaml").write_text(toolkit(*LAUNCH, "--json").json["files"]["mine.yaml"])
    for device in ("t4", "h100"):
        toolkit("recipe", "validate", "job.yaml", "--device", device)
    (here / "job.yaml").write_text(for_t4)
    assert "precision" in toolkit("recipe", "validate", "job.yaml", "--device", "h100", status=2).err


def test_it_writes_them_and_overwrites_nothing(here: Path) -> None:
    assert "Next, in jobs: sbatch mine.sbatch" in toolkit(*LAUNCH, "--write", "jobs").out
    (here / "jobs/mine.sbatch").unlink()
    (here / "jobs/mine.yaml").write_text("mine")
    assert "jobs/mine.yaml already there, and not changed" in toolkit(*LAUNCH, "--write", "jobs", status=2).err
    assert [file.name for file in (here / "jobs").iterdir()] == ["mine.yaml"]
    toolkit(*LAUNCH, "--write", "jobs", "--force")
    assert toolkit("recipe", "validate", "jobs/mine.yaml").out == "jobs/mine.yaml is valid\n"


def test_submit_calls_the_engines_command_in_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    missing = toolkit(*LAUNCH, "--write", "jobs", "--submit", status=3).err
    assert "the command sbatch is not installed here" in missing
    (here / "sbatch").write_text('#!/bin/sh\necho "$1" > submitted\nexit 7\n')
    (here / "sbatch").chmod(0o755)
    toolkit(*LAUNCH, "--write", "jobs", "--force", "--submit", status=7)
    assert (here / "jobs/submitted").read_text() == "mine.sbatch\n"


def test_the_grace_is_what_an_earlier_run_needed(here: Path) -> None:
    (here / "runs/mine").mkdir(parents=True)
    record = {
        "id": "a",
        "recipe": "mine",
        "series": "mine",
        "created": "2026-01-01T00:00:00+00:00",
        "grace_seconds": 41,
    }
    rest = {"source": "mine.yaml", "task": "causal-lm", "status": "failed", "identity": {}, "attempts": []}
    (here / "runs/mine/run.json").write_text(json.dumps({**record, **rest, "results": None}))
    assert "--signal=B:USR1@41\n" in toolkit(*LAUNCH).out
    assert "--signal=B:USR1@300\n" in toolkit(*LAUNCH, "--grace", "300").out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--on", "slurmm"], "no launcher plugin is named 'slurmm'; did you mean 'slurm'?"),
        (["--on", "slurm", "--option", "partitoin=x"], "no such option; did you mean 'partition'?"),
        (["--on", "slurm", "--submit"], "add --write DIR"),
        (["--on", "slurm", "--json", "--write", "jobs"], "remove it, or --write"),
        (["--on", "slurm", "--hours", "nan"], "'--hours': nan is not a finite number"),
        (["--on", "compose", "--nodes", "2"], "compose starts one host"),
    ],
)
def test_wrong_words_are_explained(words: list[str], text: str) -> None:
    assert text in toolkit("recipe", "launch", "mine.yaml", *words, status=2).err
