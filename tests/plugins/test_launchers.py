"""What launchers write; the conformance kit has tried that it is pure. tests/engines/ asks the engines themselves."""

from __future__ import annotations

import ast
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from toolkit.api import Job, Launcher, OptionError
from toolkit.registry import Registry
from toolkit.testing.bench import Bench, Fault
from toolkit.testing.launcher import command, files, secrets

ENGINES = ("slurm", "skypilot", "kubeflow", "ray", "compose")
RECIPE = "recipe: 1\ndescription: 'a $HOME and a \"quote\"'\n"


def launcher(name: str, **options: Any) -> Any:
    return Registry.discover().load("launcher", name).model_validate(options)


def job(**facts: Any) -> Job:
    return Job(**{"name": "My run_1", "recipe": RECIPE, "grace_seconds": 77, **facts})


def written(engine: str, options: dict[str, Any] | None = None, **facts: Any) -> str:
    made: Launcher = launcher(engine, **options or {})
    (text,) = made.files(job(**facts)).values()
    return text


def documents(engine: str, options: dict[str, Any] | None = None, **facts: Any) -> list[Any]:
    return list(YAML(typ="safe").load_all(written(engine, options, **facts)))


def test_a_name_becomes_a_dns_label() -> None:
    labels = [Job(name, "").label for name in ("My run_1", "7b.v2", "-x-", "größe", "a" * 99)]
    assert labels == ["my-run-1", "run-7b-v2", "x", "gr-e", "a" * 40]


def test_words_of_a_name_stay_words_of_shell(tmp_path: Path) -> None:
    """A recipe's file may have any name: it is one argument, and nothing in it is executed."""
    odd = job(name="a b'$(touch broken)")
    line = odd.train(head="localhost", node="0").replace("python -m", "printf '%s\\n'", 1)
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "./a b'$(touch broken).yaml"
    assert shlex.split(odd.prepare())[-1] == "./a b'$(touch broken).yaml"
    assert not list(tmp_path.iterdir())


def test_slurm_requeues_itself_before_the_time_limit() -> None:
    script = written("slurm", {"cpus_per_node": 8, "setup": "module load cuda"}, nodes=4, gpus_per_node=8, minutes=90)
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=4", "--gpus-per-node=8", "--time=90", "--cpus-per-task=8", "--ntasks-per-node=1"} <= set(
        directives
    )
    assert {"--signal=B:USR1@77", "--requeue", "--open-mode=append"} <= set(directives)
    assert (
        script.index("module load cuda") < script.index("toolkit recipe prepare") < script.index("torchrun --nnodes 4")
    )
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("facts", "itself"), [({}, "7"), ({"sweep": ("--set=training.learning_rate=1e-3,2e-3",), "workers": 3}, "7_2")]
)
def test_slurm_stops_and_requeues_no_other_worker(facts: dict[str, Any], itself: str, tmp_path: Path) -> None:
    """The last task of an array has the array's number as its own; by that, Slurm's commands mean all of its tasks."""
    commands = {
        "srun": "touch started; until [ -e stopped ]; do sleep 0.05; done; exit 143",
        "scancel": 'echo scancel "$@" >> calls; touch stopped',
        "scontrol": '[ "$1" = show ] || echo scontrol "$@" >> calls',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    numbers = {"JOB_ID": "7", "CPUS_ON_NODE": "1", "JOB_NODELIST": "host"}
    numbers |= {"ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2"}  # those of another job too, which sbatch passes on
    environment = {f"SLURM_{name}": value for name, value in numbers.items()}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    worker = subprocess.Popen(["bash", "-c", written("slurm", **facts)], cwd=tmp_path, env=environment)
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert worker.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    worker.send_signal(signal.SIGUSR1)
    assert worker.wait(timeout=60) == 143
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [f"scancel --signal=TERM {itself}", f"scontrol requeue {itself}"]


@pytest.mark.parametrize("manifest", ["trainjob", "job"])
def test_kubernetes_tells_an_interruption_from_an_invalid_recipe(manifest: str) -> None:
    objects = {
        one["kind"]: one
        for one in documents(
            "kubeflow", {"manifest": manifest}, image="toolkit:1", nodes=2, gpus_per_node=4, secrets=("HF_TOKEN",)
        )
    }
    assert objects["ConfigMap"]["data"] == {"recipe.yaml": RECIPE}
    if manifest == "trainjob":
        (node,) = objects["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
        spec, trainer = node["template"]["spec"], objects["TrainJob"]["spec"]["trainer"]
        assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
        command = trainer["command"]
    else:
        spec = objects["Job"]["spec"]
        assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
        command = spec["template"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["sh", "-c"]
    assert command[2].endswith("--no-python toolkit recipe run './My run_1.yaml'")
    rules = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in spec["podFailurePolicy"]["rules"]]
    assert rules == [("Ignore", None), ("Ignore", [143]), ("FailJob", [2])]
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 77
    assert pod["initContainers"][0]["command"][2] == "exec toolkit recipe prepare './My run_1.yaml'"
    assert pod["volumes"][2]["configMap"]["items"] == [{"key": "recipe.yaml", "path": "My run_1.yaml"}]
    (token,) = (one for one in pod["containers"][0]["env"] if one["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "pretrain-toolkit", "key": "HF_TOKEN"}


def test_skypilot_recovers_a_run_that_was_stopped() -> None:
    options = {"accelerator": "H100", "setup": "pip install pretrain-toolkit"}
    (task,) = documents("skypilot", options, nodes=2, gpus_per_node=8, runs="s3://bucket/runs", secrets=("HF_TOKEN",))
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 3, "recover_on_exit_codes": [143]}
    assert task["file_mounts"]["/runs"] == {"source": "s3://bucket/runs", "mode": "MOUNT_CACHED"}
    assert task["volumes"] == {"/cache": "cache"}
    assert task["secrets"] == {"HF_TOKEN": None}
    assert task["setup"].splitlines() == [options["setup"], "cd ~/pretrain", "toolkit recipe prepare './My run_1.yaml'"]
    assert launcher("skypilot", **options).submission(job(secrets=("HF_TOKEN",)))[-3:-1] == ("--secret", "HF_TOKEN")


def test_compose_starts_again_what_failed() -> None:
    (document,) = documents("compose", gpus_per_node=2, runs="./runs", secrets=("HF_TOKEN",))
    prepare, train = document["services"]["prepare"], document["services"]["train"]
    assert train["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    assert (train["restart"], train["stop_grace_period"]) == ("on-failure:3", "77s")
    assert "HF_TOKEN" in train["environment"]
    assert [one["type"] for one in prepare["volumes"]] == ["bind", "volume", "bind"]
    assert document["volumes"] == {"cache": {}}
    assert "$$((0 == 0))" in train["entrypoint"][2]  # compose itself would read a single one


def test_ray_gets_a_driver() -> None:
    driver = written("ray", nodes=2, runs="/shared/runs", cache="/shared/cache", secrets=("HF_TOKEN",))
    values = {
        target.id: value
        for node in ast.parse(driver).body
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
        for value in [ast.literal_eval(node.value)]
    }
    assert values["ENVIRONMENT"]["TOOLKIT_RUNS"] == "/shared/runs"
    assert values["SECRETS"] == ["HF_TOKEN"]
    assert "FailureConfig(max_failures=3)" in driver


@pytest.mark.parametrize(
    ("engine", "facts", "words"),
    [
        ("slurm", {"image": "toolkit:1"}, "remove the image"),
        ("kubeflow", {}, "name the image"),
        ("skypilot", {"gpus_per_node": 8}, "name the GPU"),
        ("skypilot", {"minutes": 5}, "no time limit"),
        ("compose", {"nodes": 2}, "one host"),
        ("ray", {}, "an absolute path"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(engine: str, facts: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        launcher(engine).files(job(**facts))


class Leaky(Launcher):
    """Writes down what it finds in the environment."""

    def files(self, job: Job) -> dict[str, str]:
        return {"leaky.sh": "".join(f"export {name}={os.environ.get(name)}\n" for name in job.secrets)}

    def submission(self, job: Job) -> tuple[str, ...]:
        return "sh", "leaky.sh"


def test_the_kit_finds_a_secret_and_a_run_that_is_not_started(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rehearsal=False)
    assert files(Leaky(), bench) == "leaky.sh; sh leaky.sh"
    with pytest.raises(Fault, match="holds the value of a secret"):
        secrets(Leaky(), bench)
    with pytest.raises(Fault, match=r"do not hold 'toolkit recipe prepare '"):
        command(Leaky(), bench)
