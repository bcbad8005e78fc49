"""What the trials with faults share: the compiled watcher of file operations, and a server of commands."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.command_server import CommandServer
from tests.faults.trials import Bench


@pytest.fixture(scope="session")
def server() -> Iterator[CommandServer]:
    with CommandServer() as server:
        yield server


@pytest.fixture(scope="session")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("file operations are caught by Linux's seccomp, with the registers of x86-64")
    if not (compiler := shutil.which("cc")):
        pytest.skip("there is no C compiler to compile file_operations.c with")
    library = tmp_path_factory.mktemp("watcher") / "file_operations.so"
    source = Path(__file__).with_name("file_operations.c")
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
    return library


@pytest.fixture(scope="session")
def bench(server: CommandServer, watcher: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(server, watcher, tmp_path_factory.mktemp("bench"))
