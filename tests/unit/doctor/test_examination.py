"""What becomes of checks that fail or hang, what is said of the Hub, and the command as a person gives it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import toolkit
from tests.hub_server import HubServer
from toolkit.doctor.examination import Examination, Finding, examine
from toolkit.doctor.hub import hub
from toolkit.doctor.software import declared_requirements, versions
from toolkit.errors import UnavailableError

fits_the_ranges = pytest.mark.skipif(
    any(finding.level == "problem" for finding in versions(declared_requirements())),
    reason="doctor finds releases here that pyproject.toml excludes, as `make test-newest` may install",
)


def test_a_check_that_fails_or_hangs_is_a_finding_and_the_others_go_on() -> None:
    over = threading.Event()

    def hangs() -> Iterator[Finding]:
        over.wait()
        yield Finding("ok", "too late")

    def fails() -> Iterator[Finding]:
        raise ValueError("a file of the kernel with a new format")

    def refuses() -> Iterator[Finding]:
        raise UnavailableError("there is no cache; set TOOLKIT_CACHE")

    def works() -> Iterator[Finding]:
        yield Finding("ok", "fine")

    looks = {"hangs": hangs, "fails": fails, "refuses": refuses, "works": works}
    try:
        patience = {"hangs": 0.2}  # the others have the time that they need on a busy machine
        found = list(
            examine(Examination(name, "it", look, patience.get(name, 60), "problem") for name, look in looks.items())
        )
    finally:
        over.set()
    assert [
        (one.check, [(finding.level, finding.found, finding.cure) for finding in one.findings]) for one in found
    ] == [
        ("hangs", [("problem", "no answer within 0.2 seconds", "")]),
        ("fails", [("note", "could not be checked: ValueError: a file of the kernel with a new format", "")]),
        ("refuses", [("problem", "there is no cache", "set TOOLKIT_CACHE")]),
        ("works", [("ok", "fine", "")]),
    ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub without any repository."""
    server = HubServer()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
    server.start()
    yield server
    server.stop()


def test_the_hub_is_asked_without_the_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (found,) = hub({})
    assert (found.level, found.found) == ("ok", f"{server.endpoint} answers; a token is set")
    (offline,) = hub({"HF_DATASETS_OFFLINE": "1"})
    assert (offline.level, offline.cure) == ("note", "unset HF_DATASETS_OFFLINE")
    with server.failing(503):
        (failing,) = hub({})
    assert failing.level == "note"
    assert "answers with status 503" in failing.found
    (_, skewed) = hub({}, now=lambda: 0.0)
    assert "behind the Hub's" in skewed.found


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (found,) = hub({"HTTPS_PROXY": "http://user:secret@proxy"})
    assert found.level == "note"
    assert "http://127.0.0.1:9 cannot be reached through HTTPS_PROXY" in found.found
    assert "HF_HUB_OFFLINE=1" in found.cure
    assert "secret" not in str(found)


@fits_the_ranges
def test_the_command_tells_level_place_and_cure(here: Path) -> None:
    answer = toolkit("doctor", "--json", OMP_NUM_THREADS="many", HF_HUB_OFFLINE="1")
    assert answer.json["fit"] is True
    by_check = {finding["check"]: finding for finding in answer.json["findings"]}
    assert {"versions", "torch", "compiler", "memory", "launcher", "runs", "cache", "Hub"} <= by_check.keys()
    assert by_check["processors"]["level"] == "note"
    assert by_check["processors"]["looked_at"] == "cpu.max, OMP_NUM_THREADS"
    assert by_check["processors"]["cure"] == "unset OMP_NUM_THREADS"
    assert not (here / "runs").exists()


def test_a_problem_ends_it_with_status_three(here: Path) -> None:
    (here / "cache").write_text("a file where the cache should be")
    answer = toolkit("doctor", status=3, HF_HUB_OFFLINE="1", TOOLKIT_CACHE=str(here / "cache"))
    assert "problem  cache" in answer.out
    assert "-> set TOOLKIT_CACHE to another folder" in answer.out
    assert answer.out.rstrip().endswith("a run would fail here")


def test_a_recipe_that_is_invalid_here_is_a_finding(here: Path) -> None:
    words = ("--recipe", "mine.yaml", "--set", "memory=[nonesuch]")
    answer = toolkit("doctor", *words, "--json", status=3, HF_HUB_OFFLINE="1")
    assert any(found["check"] == "recipe" and "nonesuch" in found["found"] for found in answer.json["findings"])
    assert "'nonexistent'" in toolkit("doctor", "--recipe", "nonexistent", status=2).err


@fits_the_ranges
@pytest.mark.slow
def test_what_a_recipe_lacks_is_a_finding(here: Path) -> None:
    words = ("--recipe", "mine.yaml", "--set", "training.report_to=[wandb]")
    answer = toolkit("doctor", *words, "--json", status=3, HF_HUB_OFFLINE="1")
    problems = {found["check"]: found["found"] for found in answer.json["findings"] if found["level"] == "problem"}
    assert "wandb" in problems["trackers"]
    assert "*.txt" in problems["data"]  # there is no such file
    (here / "a.txt").write_text("Once upon a time there was a cat.\n" * 50)
    answer = toolkit("doctor", "--recipe", "mine.yaml", "--json", HF_HUB_OFFLINE="1")
    assert [found["level"] for found in answer.json["findings"] if found["check"] == "plan"] == ["ok", "ok"]
