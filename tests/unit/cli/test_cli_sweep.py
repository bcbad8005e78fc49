"""`toolkit recipe sweep` before the first trial, and its jobs; tests/faults/test_sweep.py trains."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.command_line import RECIPE, toolkit
from toolkit.lifecycle import sweep as sweeps
from toolkit.lifecycle import sweep_folder
from toolkit.lifecycle.sweep_study import SweepStudy
from toolkit.recipe.search_space import search_space

SWEEP = ("recipe", "sweep", "mine.yaml")
RATES = "--set=training.learning_rate=1e-3,2e-3"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("Once upon a time.")
    return tmp_path


def test_all_that_is_wrong_is_told_before_the_first_trial(here: Path) -> None:
    wrong = toolkit(*SWEEP, "--set", "training.learning_rate=1e-3,-1,-2", "--set", "model.hiden_size=1,2", status=2).err
    assert "learning_rate=-1" in wrong
    assert "learning_rate=-2" in wrong
    assert "hiden_size=2: model.hiden_size: no such option" in wrong
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "training.learning_rate=1e-3"], "nothing is varied: write a list"),
        ([RATES, "--trials", "3"], "these lists have 2 combinations"),
        (["--set", "tokenizer.vocab_size=300,400"], "losses per token cannot be compared"),
        ([RATES, "--processes", "3"], "cannot share 4 sequences"),
        ([RATES, "--processes", "some"], "--processes some: a number of processes, or auto"),
        ([RATES, "--on", "slurm", "--gpus-per-node", "8"], "8 processes with micro-batches of 2 cannot share 4"),
        ([RATES, "--on", "slurm", "--gpus-per-node", "8", "--processes", "0"], "--processes 0: a number"),
        (["--set", "training.learning_rate=1e-3,1e-3"], "all values are the same"),
        ([RATES, "--workers", "2"], "--workers is an option of a job"),
        ([RATES, "--on", "slurm", "--nodes", "2"], "--workers N lets N machines train one each"),
        ([RATES, "--on", "ray", "--runs-volume", "/r", "--cache-volume", "/c"], "Ray starts no sweep"),
        ([RATES, "--on", "kubeflow", "--image", "a"], "--option manifest=job"),
        ([RATES, "--name", "a/b"], "a run's name is that of a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], told: str, here: Path) -> None:
    assert told in toolkit(*SWEEP, *words, status=2).err
    assert not (here / "runs").exists()


def test_without_optuna_nothing_is_begun(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    told = toolkit(*SWEEP, RATES, status=3).err
    assert "pip install 'pretrain-toolkit[sweep]'" in told
    assert not (here / "runs").exists()


def test_a_worker_for_which_no_trial_is_left_has_not_failed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "PATIENCE_SECONDS", 0.0)
    space = search_space([RATES.removeprefix("--set=")])
    plan = sweeps.checked("mine.yaml", space, runs=Path("runs"))
    sweep_folder.begin(plan.folder, plan.identity(), print)
    other = SweepStudy(plan.folder, space, trials=2, seed=1, prune=True)
    with contextlib.ExitStack() as held:
        for claim in (other.claimed(), other.claimed()):
            assert claim
            held.enter_context(claim.lock)
        answer = toolkit(*SWEEP, RATES)
    assert "trial-000, trial-001: not finished yet, with other workers" in answer.err


@pytest.mark.parametrize(("file", "told"), [("notes", "is not empty and is not a sweep"), ("run.json", "is a run")])
def test_what_is_in_the_place_of_the_sweep_is_left_alone(file: str, told: str, here: Path) -> None:
    place = here / "runs/mine-sweep"
    place.mkdir(parents=True)
    (place / file).write_text("{}")
    (here / "runs/other").write_text("a file")
    assert told in toolkit(*SWEEP, RATES, status=2).err
    assert [path.name for path in place.iterdir()] == [file]
    assert "runs/other is a file" in toolkit(*SWEEP, RATES, "--name", "other", status=2).err


def test_a_job_array_of_slurm_shares_the_trials_out(here: Path) -> None:
    path = "--set=dataset.files=a.txt"
    files = toolkit(*SWEEP, RATES, path, "--on", "slurm", "--workers", "4", "--json", "--gpus-per-node", "2").json[
        "files"
    ]
    script = files["mine-sweep.sbatch"]
    assert "#SBATCH --array=0-3\n" in script
    assert "--output=mine-sweep-%A_%a.log" in script
    told = "exec toolkit recipe sweep ./mine-sweep.yaml --name=mine-sweep --processes=auto"
    assert f"{told} --set=training.learning_rate=1e-3,2e-3'" in script
    assert "torchrun" not in script
    assert "a.txt" not in script
    assert "learning_rate: 0.001" in files["mine-sweep.yaml"]
    assert f"files: {here}/a.txt" in files["mine-sweep.yaml"]


def test_each_worker_of_compose_has_gpus_of_its_own() -> None:
    printed = toolkit(*SWEEP, RATES, "--on", "compose", "--workers", "2", "--gpus-per-node", "2", "--json").json
    services = YAML(typ="safe").load(printed["files"]["mine-sweep.compose.yaml"])["services"]
    assert list(services) == ["prepare", "worker-0", "worker-1"]
    devices = [
        services[f"worker-{number}"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for number in range(2)
    ]
    assert devices == [["0", "1"], ["2", "3"]]


def test_the_workers_on_kubernetes_are_the_pods_of_a_job() -> None:
    words = ("--on", "kubeflow", "--option", "manifest=job", "--image", "a", "--workers", "3")
    text = toolkit(*SWEEP, "--set=model.dropout=0..0.2", "--trials=30", *words, "--json").json["files"]
    (job,) = [one for one in YAML(typ="safe").load_all(text["mine-sweep.k8s.yaml"]) if one["kind"] == "Job"]
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 3)
    command = job["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    assert command.endswith("--set=model.dropout=0..0.2 --trials=30")
