"""Whoever reads what a command writes may go away or have no room for it: a run goes on, and keeps its own log."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.command_line import toolkit
from tests.tiny import wait_for, write_recipe
from toolkit.cli.output import Output
from toolkit.errors import UnavailableError
from toolkit.events import AttemptBegun, Message
from toolkit.report.run_log import RunLog
from toolkit.system.files import read_json

MAIN = "from toolkit.cli.main import main; main()"
HANGUP_HEARD = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
"""Of a process whose parent has perhaps been started by nohup."""
FULL = Path("/dev/full")


def test_a_run_outlives_the_reader_of_its_output_and_a_full_disk_and_a_hangup_saves_it(tmp_path: Path) -> None:
    # On a machine that is slow enough, steps would be compiled to save time.
    recipe = write_recipe(tmp_path, training={"max_steps": 3000, "eval_steps": 3000, "torch_compile": False})
    with FULL.open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{HANGUP_HEARD}; {MAIN}", "recipe", "run", str(recipe)],
            cwd=tmp_path,
            env={**os.environ, "TOOLKIT_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    run = tmp_path / "runs" / "tiny"
    wait_for('"step": 3', process, run / "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=180) == 128 + signal.SIGHUP
    (saved,) = (run / "checkpoints").iterdir()
    step = saved.name.removeprefix("checkpoint-")
    log = (run / "run.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  ", line) for line in log)
    assert log[-1].endswith(f"error: stopped by SIGHUP; step {step} is saved; the same command resumes from there")
    assert any("a model of" in line for line in log)  # said before the run had a folder
    assert read_json(run / "run.json")["attempts"][-1]["how"] == "interrupted"


def test_the_log_has_what_quiet_leaves_out_and_a_finished_run_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, training={"max_steps": 2, "eval_steps": 2})
    words = ("recipe", "run", str(recipe), "--runs", str(tmp_path / "runs"), "--quiet", "--json")
    log = tmp_path / "runs" / "tiny" / "run.log"
    run = toolkit(*words).json["folder"]
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "step 2/2" in line]
    assert lines[-1].endswith("  finished")
    before = log.read_bytes()
    assert toolkit(*words).json["already_finished"]
    assert log.read_bytes() == before
    assert Path(run) == log.parent


def test_the_log_goes_on_over_attempts(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        log = RunLog()
        log(Message(f"of the {attempt}, before it has a folder"))
        log(AttemptBegun(tmp_path / "run.log"))
        log.end(f"end of the {attempt}")
    lines = [line.partition("  ")[2] for line in (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()]
    assert lines == [
        "of the first, before it has a folder",
        "end of the first",
        "of the second, before it has a folder",
        "end of the second",
    ]


def test_a_log_that_cannot_be_written_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, training={"max_steps": 2, "eval_steps": 2})
    words = ("recipe", "run", str(recipe), "--runs", str(tmp_path / "runs"), "--quiet", "--json")
    monkeypatch.setattr("toolkit.storage.run_directory.RunDirectory.log", FULL)
    assert toolkit(*words).json["steps"] == 2


@pytest.mark.parametrize(
    ("redirection", "status", "err"),
    [
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("> /dev/full", 3, "error: cannot write to standard output: No space left on device\n"),
        ("> /dev/full 2>&1", 3, ""),
        ("| true", 1, ""),
    ],
)
def test_a_command_that_only_prints_ends_in_words_or_quietly(
    redirection: str, status: int, err: str, tmp_path: Path
) -> None:
    for words in ("plugin list", "plugin --help"):
        line = f"set -o pipefail; sleep 0.3 | {sys.executable} -c '{MAIN}' {words} {redirection}"
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (status, err), words


def test_what_is_not_needed_is_lost_without_a_word() -> None:
    reading, writing = os.pipe()
    stream = io.TextIOWrapper(io.BufferedWriter(Output(writing, needed=False)), line_buffering=True)
    os.close(reading)
    for _ in range(3):
        print("lost", file=stream, flush=True)
    stream.close()
    os.close(writing)


def test_what_is_needed_fails_once() -> None:
    with FULL.open("wb") as full:
        output = Output(full.fileno(), needed=True)
        with pytest.raises(UnavailableError, match="No space left on device"):
            output.write(b"lost")
        assert output.write(b"to nowhere") == len(b"to nowhere")


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text, read = b"x" * 2**20, bytearray()
    stream = io.BufferedWriter(Output(writing, needed=True))

    def drain() -> None:
        while chunk := os.read(reading, 2**16):
            read.extend(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    stream.write(text)
    stream.flush()
    os.close(writing)
    thread.join()
    os.close(reading)
    assert bytes(read) == text
