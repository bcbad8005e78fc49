"""The software: versions against the ranges that the toolkit declares, torch, and the compiler of torch.compile."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from toolkit import __version__, formatting
from toolkit.doctor.examination import Finding, Level

DISTRIBUTION = "pretrain-toolkit"
TORCH_SECONDS = 60.0
"""Seconds that torch may take to be imported and to look at the GPUs; from a cold network disk it takes many."""
LOOK = r"""
import json, sys
import torch
facts = {"version": torch.__version__, "cuda": torch.version.cuda, "available": False, "error": "", "count": 0}
try:
    import triton
    facts["triton"] = triton.__version__
except Exception as error:
    facts["triton"], facts["triton_error"] = None, str(error)
if facts["cuda"]:
    try:
        facts["driver"] = torch._C._cuda_getDriverVersion()
        torch.cuda.init()
        facts["available"], facts["count"] = torch.cuda.is_available(), torch.cuda.device_count()
    except Exception as error:
        facts["error"] = str(error).strip().splitlines()[0]
    facts["architectures"] = torch.cuda.get_arch_list()
    numbers = range(facts["count"])
    facts["capabilities"] = [torch.cuda.get_device_capability(number) for number in numbers]
    facts["peers"] = all(torch.cuda.can_device_access_peer(one, other)
                         for one in numbers for other in numbers if one != other)
    facts["nccl"] = (".".join(map(str, torch.cuda.nccl.version()))
                     if torch.distributed.is_available() and torch.distributed.is_nccl_available() else None)
json.dump(facts, sys.stdout)
"""
"""What torch itself says, in a process that may crash or hang."""


def versions(declared: Sequence[str] | None, installed: Callable[[str], str] = metadata.version) -> Iterator[Finding]:
    """The installed packages against the ranges that the toolkit declares (`declared`, as in pyproject.toml)."""
    if declared is None:
        yield Finding("problem", "the toolkit itself is not installed here", "pip install .")
        return
    needed = [need for need in map(Requirement, declared) if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = []
    for need in needed:
        try:
            version = installed(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version} is not within {need.specifier}")
    if wrong:
        yield Finding("problem", "; ".join(wrong), f"pip install '{DISTRIBUTION}' again, with -c constraints.txt")
        return
    python = f"Python {platform.python_version()}"
    count = formatting.counted(len(needed), "package")
    yield Finding("ok", f"toolkit {__version__}, {python}, {count} within their ranges")


def declared_requirements() -> list[str] | None:
    """What the installed toolkit says that it needs; None if it is not installed."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None


def torch_facts(python: str = sys.executable, seconds: float = TORCH_SECONDS) -> Mapping[str, Any]:
    """What torch says of itself and of the GPUs; only {"error": why} if it cannot be imported."""
    # -P: a file named torch.py in the present folder is not torch.
    command = [python, "-P", "-c", LOOK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no end within {seconds:g} seconds"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"its process ended with status {done.returncode}"}
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def torch_works(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether torch can be imported."""
    if "version" not in facts:
        yield Finding(
            "problem",
            f"torch cannot be imported: {facts['error']}",
            "install it again: pip install --force-reinstall -c constraints.txt torch",
        )
        return
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built for CPUs"
    yield Finding("ok", f"torch {facts['version']}, {build}")


def compiler(
    facts: Mapping[str, Any], *, on_gpu: bool, needed: bool, environ: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """What torch.compile generates code with: a C++ compiler and Python.h on a CPU; on a GPU Triton, and a C compiler.

    Args:
        facts: those of torch.
        on_gpu: whether steps would be compiled for a GPU.
        needed: whether the recipe wants its steps compiled; otherwise a run does without.
        environ: may name the compilers, CXX and CC.
    """
    level: Level = "problem" if needed else "note"
    without = "" if needed else ", so a run does without torch.compile"
    if on_gpu and not facts.get("triton"):
        why = facts.get("triton_error") or "it is not installed"
        yield Finding(level, f"no Triton{without}: {why}", "pip install triton, in the version that torch asks for")
        return
    # inductor asks for these names, and Triton for the second ones.
    names = [environ.get("CC") or "cc", "gcc", "clang"] if on_gpu else [environ.get("CXX") or "g++"]
    path = environ.get("PATH")
    found = next((where for name in names if (where := shutil.which(name, path=path))), None)
    language = "C" if on_gpu else "C++"
    cure = "apt install g++ python3-dev (or conda install gxx); CXX and CC name another compiler"
    if found is None:
        yield Finding(level, f"no {language} compiler ({', '.join(dict.fromkeys(names))}){without}", cure)
        return
    include = sysconfig.get_path("include")
    tried = subprocess.run(
        [found, "-x", "c" if on_gpu else "c++", "-fsyntax-only", f"-I{include}", "-"],
        input="#include <Python.h>\n#include <stdint.h>\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if tried.returncode == 0:
        yield Finding("ok", f"{found} compiles against Python's headers" + (", Triton is there" if on_gpu else ""))
    elif "Python.h" in tried.stderr:
        yield Finding(level, f"{found} finds no Python.h in {include}{without}", "apt install python3-dev")
    else:
        why = next((line for line in tried.stderr.splitlines() if "error" in line), f"status {tried.returncode}")
        yield Finding(level, f"{found} cannot compile{without}: {why.strip()}", cure)
