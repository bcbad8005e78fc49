"""A process that has imported everything, and forks a child for each `toolkit` command that it is asked to run.

Importing torch and transformers takes seconds and a tiny run takes half of one, so hundreds of killed runs are only
affordable when the imports are shared. A child is what the command would be: the same `main`, its own arguments,
folder, output and exit status; what it inherits is modules. Before the first command the server trains a tiny recipe,
so that nothing is left to be imported late.

`CommandServer` is the side of the tests; this file run as a program is the other one. They speak JSON lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parents[2]
CRASHED = 70
"""Exit status of a child that died of an exception that is no person's error: EX_SOFTWARE of sysexits.h."""


@dataclass(frozen=True)
class Fault:
    """What to do at which file operation under the command's folder; see file_operations.c."""

    watcher: str
    """The compiled file_operations.c."""
    journal: str
    kept: str
    at: int = 0
    action: int = 0
    """0 counts only, 1 kills, 2 lets the operation fail once, 3 lets it fail and those after it."""
    error: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    """The exit status, or minus the signal's number."""
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run's folder, as the command's JSON names it."""
        return Path(json.loads(self.out)["folder"])


class Command:
    """A command that was started."""

    def __init__(self, server: CommandServer, process: int, output: Path) -> None:
        self.server = server
        self.process = process
        self.output = output

    def kill(self, number: signal.Signals) -> None:
        """Send a signal; that it has ended meanwhile is no matter, for the server has not yet been asked."""
        os.kill(self.process, number)

    @property
    def has_ended(self) -> bool:
        """Whether it is a zombie, as it stays until the server is asked to wait for it."""
        return bool(psutil.Process(self.process).status() == psutil.STATUS_ZOMBIE)

    def wait(self) -> Outcome:
        """Wait for its end."""
        status = self.server.ask({"wait": self.process})["status"]
        out, err = (self.output / name for name in ("out", "err"))
        return Outcome(status, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


class CommandServer:
    """Starts `toolkit` commands in children that have nothing left to import."""

    def __init__(self, **environment: str) -> None:
        offline = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            cwd=ROOT,
            env={**os.environ, **offline, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self._answer() == {"ready": True}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send one question and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(self, words: Sequence[str], *, folder: Path, output: Path, fault: Fault | None = None) -> Command:
        """Start `toolkit` with these words in a folder; its cache is there too, and its output goes elsewhere."""
        output.mkdir(exist_ok=True)
        for name in ("out", "err"):
            # A new file: what the orphans of a killed command still write is not this one's. And here, because a
            # command may be killed before it opens it.
            (output / name).unlink(missing_ok=True)
            (output / name).touch()
        question = {
            "words": list(words),
            "folder": str(folder),
            "output": str(output),
            "fault": asdict(fault) if fault else None,
        }
        return Command(self, self.ask(question)["process"], output)


def wait_for_orphans(folder: Path, *, seconds: float = 300) -> None:
    """Wait until the processes that killed commands have left in a folder have noticed it, and ended too."""
    end = time.monotonic() + seconds
    while orphans := [process.pid for process in psutil.process_iter() if works_in(folder, process)]:
        assert time.monotonic() < end, f"{orphans} have not ended within {seconds:g} s"
        time.sleep(0.05)


def works_in(folder: Path, process: psutil.Process) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder.resolve())
    except psutil.Error:  # it has ended, or is somebody else's
        return False


def serve() -> None:
    """Answer questions until there are no more."""
    # The answers keep the pipe; what a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import_everything()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            answer = {"process": os.fork()}
            if not answer["process"]:
                answers.close()
                run(**question)
        print(json.dumps(answer), file=answers, flush=True)


def import_everything() -> None:
    """Train a tiny recipe, on which every module is met that a run needs."""
    import gc
    import tempfile

    import torch

    import toolkit.lifecycle.launch
    from tests.tiny import train, write_recipe
    from toolkit.cli.main import be_quiet

    be_quiet()
    torch.set_num_threads(1)  # a process with threads of OpenMP must not be forked
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOOLKIT_CACHE"] = str(Path(folder, "cache"))
        result, _ = train(write_recipe(Path(folder), training={"max_steps": 2, "save_steps": 1, "eval_steps": 1}))
    # To plan a tiny run takes as long as the run, and writes nothing: the children take the plan of this one.
    toolkit.lifecycle.launch.peak_bytes = lambda *_, **__: result.planned_memory_bytes or 0
    gc.collect()
    gc.freeze()  # the Trainer collects garbage, and looking through all modules would take a third of a child's time


def run(*, words: list[str], folder: str, output: str, fault: dict[str, Any] | None) -> None:
    """In the child: become the command, and end as it ends."""
    import traceback

    from toolkit.cli.main import main

    os.chdir(folder)
    os.environ["TOOLKIT_CACHE"] = str(Path(folder, "cache"))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["toolkit", *words]
    status: Any = 0
    try:
        if fault:
            arm(Path(folder), Fault(**fault))
        main()
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - whatever it is, the test has to see it
        traceback.print_exc()
        status = CRASHED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def arm(folder: Path, fault: Fault) -> None:
    """Let file_operations.c watch a folder."""
    import ctypes

    library = ctypes.CDLL(fault.watcher)
    names = (os.fsencode(name) for name in (folder, fault.journal, fault.kept))
    if number := library.arm(*names, ctypes.c_long(fault.at), fault.action, fault.error):
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    serve()
