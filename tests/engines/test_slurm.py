"""A real Slurm of one node takes the script, requeues the run before its time is up, and the run finishes.

A sweep's workers are requeued one by one.

Needs root, and slurm-wlm and munge installed (`apt-get install slurm-wlm munge`); nothing of a Slurm that is there
already is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.group import free_port
from tests.tiny import write_recipe

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(shutil.which(name) for name in DAEMONS), reason="needs root, slurm-wlm and munge"
    ),
]
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller}
SlurmdPort={node}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES
"""


def until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.2)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder, host = tmp_path / "slurm", socket.gethostname().partition(".")[0]
    munge = folder / "munge"
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True, mode=0o700)
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    ports = {"controller": free_port(), "node": free_port()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, **ports))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    subprocess.run(["munged", "--force", *(f"--{option}={munge / name}" for option, name in files.items())], check=True)
    subprocess.run(["slurmctld"], check=True)
    subprocess.run(["slurmd"], check=True)
    yield folder
    for file in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
        if (folder / file).exists():
            os.kill(int((folder / file).read_text()), signal.SIGTERM)


def submitted(jobs: Path, *words: str | Path) -> str:
    """Write the job that `toolkit recipe` makes of these words, and hand it to Slurm; its number there."""
    bin_folder = Path(sys.executable).parent
    subprocess.run(
        [
            *(bin_folder / "toolkit", "recipe", *words, "--on", "slurm", "--grace", "20", "--write", jobs),
            *("--option", "cpus_per_node=1", "--option", f"setup=export PATH={bin_folder}:$PATH"),
        ],
        check=True,
    )
    (script,) = jobs.glob("*.sbatch")
    subprocess.run(["sbatch", "--test-only", script.name], cwd=jobs, check=True)
    return subprocess.run(
        ["sbatch", "--parsable", script.name], cwd=jobs, capture_output=True, text=True, check=True
    ).stdout.strip()


def state(job: str) -> str:
    return slurm_says("scontrol", "show", "job", job).partition("JobState=")[2].split()[0]


def slurm_says(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_it_is_requeued_before_the_time_limit_and_finishes(slurm: Path, tmp_path: Path) -> None:
    until(lambda: "idle" in slurm_says("sinfo", "--noheader"))
    training = {"max_steps": 800, "eval_steps": None, "logging_steps": 20}
    recipe = write_recipe(tmp_path, "mine", training=training)
    jobs = tmp_path / "jobs"
    job = submitted(jobs, "launch", recipe)
    until((jobs / "runs/mine/metrics.jsonl").is_file)
    slurm_says("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the limit
    until(lambda: state(job) == "PENDING" and "idle" in slurm_says("sinfo", "--noheader"))  # its first life is over
    slurm_says("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
    until(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
    log = (jobs / f"mine-{job}.log").read_text()
    assert state(job) == "COMPLETED", log
    assert "Restarts=1" in slurm_says("scontrol", "show", "job", job)
    assert "stopped by SIGTERM" in log
    assert "resum" in log
    assert (jobs / "runs/mine/model/model.safetensors").is_file()


def test_a_worker_of_a_sweep_is_requeued_alone(slurm: Path, tmp_path: Path) -> None:
    until(lambda: "idle" in slurm_says("sinfo", "--noheader"))
    training = {"max_steps": 800, "eval_steps": None, "logging_steps": 20, "torch_compile": False}
    recipe = write_recipe(tmp_path, "mine", training=training)
    jobs, rates = tmp_path / "jobs", "--set=training.learning_rate=1e-3,2e-3,4e-3"
    array = submitted(jobs, "sweep", recipe, rates, "--workers", "2", "--no-pruning")
    other, last = f"{array}_0", f"{array}_1"
    sweep = jobs / "runs/mine-sweep"
    until(lambda: len(list(sweep.glob("trial-*/metrics.jsonl"))) == 2, seconds=300)
    assert f"JobId={array} ArrayJobId={array} ArrayTaskId=1" in slurm_says("scontrol", "show", "job", last)
    slurm_says("scancel", "--batch", "--signal=USR1", last)
    until(lambda: state(last) == "PENDING")
    slurm_says("scontrol", "update", f"JobId={last}", "StartTime=now")
    until(lambda: {state(other), state(last)} <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}, seconds=300)
    logs = {task: (jobs / f"mine-sweep-{task}.log").read_text() for task in (other, last)}
    for task, restarts in ((other, 0), (last, 1)):
        assert state(task) == "COMPLETED", logs
        assert f"Restarts={restarts} " in slurm_says("scontrol", "show", "job", task), logs
    records = [json.loads((sweep / f"trial-00{number}/run.json").read_text()) for number in range(3)]
    (stopped,) = (record["attempts"] for record in records if len(record["attempts"]) > 1)
    assert [attempt["how"] for attempt in stopped] == ["interrupted", "finished"]
    assert stopped[1]["from_step"] == stopped[0]["step"]
    assert any(
        all(f"trial-00{number}" in log.partition("HELD-OUT LOSS")[2] for number in range(3)) for log in logs.values()
    )
