"""Versions out of range, a torch that cannot be imported, compilers that are missing or cannot compile."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from toolkit.doctor import software
from toolkit.doctor.software import compiler, torch_facts, torch_works, versions

ON_CPU = {"version": "2.13.0+cpu", "cuda": None, "triton": None, "triton_error": "No module named 'triton'"}


def test_versions_are_held_against_the_declared_ranges() -> None:
    installed = {"torch": "2.10.1", "click": "8.3.0"}

    def version(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    (found,) = versions(["torch>=2.11,<2.14", "click>=8.2.1,<9", "peft>=0.19", "ruff; extra == 'dev'"], version)
    assert found.level == "problem"
    assert "torch 2.10.1 is not within" in found.found
    assert "peft is missing" in found.found
    assert "click" not in found.found
    assert "constraints.txt" in found.cure
    assert [finding.level for finding in versions(["click>=8.2.1"], version)] == ["ok"]
    assert [finding.level for finding in versions(None)] == ["problem"]


def test_torch_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    def python(script: str) -> str:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)

    broken = torch_facts(python("echo 'ImportError: libcudart.so.13: cannot open shared object file' >&2; exit 1"))
    (found,) = torch_works(broken)
    assert found.level == "problem"
    assert "libcudart.so.13" in found.found
    assert "ended with status 139" in torch_facts(python("exit 139"))["error"]
    assert "no end within" in torch_facts(python("exec sleep 30"), seconds=0.2)["error"]
    (fine,) = torch_works(torch_facts(python('echo \'{"version": "2.13.0", "cuda": "13.0"}\'')))
    assert (fine.level, fine.found) == ("ok", "torch 2.13.0, built for CUDA 13.0")


def test_the_question_is_one_that_torch_answers() -> None:
    facts = torch_facts(sys.executable, seconds=600)
    assert facts["version"].startswith("2.")
    assert {"cuda", "available", "count", "triton"} <= facts.keys()


@pytest.mark.parametrize("needed", [False, True])
def test_a_compiler_that_is_missing(needed: bool, tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path)}
    for on_gpu, facts, words in [
        (False, ON_CPU, "no C++ compiler (g++)"),
        (True, {**ON_CPU, "triton": "3.6.0"}, "no C compiler (cc, gcc, clang)"),
        (True, ON_CPU, "no Triton"),
    ]:
        (found,) = compiler(facts, on_gpu=on_gpu, needed=needed, environ=nowhere)
        assert found.level == ("problem" if needed else "note")
        assert found.found.startswith(words)
        assert ("does without torch.compile" in found.found) != needed
        assert "install" in found.cure


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", None),
        ("echo '<stdin>:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1", "finds no Python.h"),
        ("echo 'g++: fatal error: cannot execute cc1plus' >&2; exit 1", "cannot execute cc1plus"),
    ],
)
def test_a_compiler_that_cannot_compile(script: str, words: str | None, tmp_path: Path) -> None:
    file = tmp_path / "g++"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    (found,) = compiler(ON_CPU, on_gpu=False, needed=False, environ={"PATH": str(tmp_path)})
    assert (found.level == "ok") == (words is None)
    assert words is None or words in found.found


def test_what_the_toolkit_declares_is_known() -> None:
    declared = software.declared_requirements()
    assert declared is not None
    assert any(need.startswith("torch") for need in declared)
