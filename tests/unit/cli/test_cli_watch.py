"""What a person sees of a run: on a terminal, in a log, and with --quiet."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from toolkit.cli import render, watch
from toolkit.data.stats import DataAccount, SplitAccount
from toolkit.events import (
    CheckpointSaved,
    DataPrepared,
    Evaluated,
    Event,
    Exported,
    Message,
    Progressed,
    ProgressReporter,
    RunResult,
    StepDone,
    TrainingStarted,
)
from toolkit.report import lines
from toolkit.report.lines import LogLines

TRAIN = SplitAccount(
    documents=1200,
    empty_documents=3,
    characters=2_000_000,
    tokens=500_192,
    blocks=1953,
    tokens_in_blocks=499_968,
    tokens_dropped=224,
    frame_tokens=0,
    ends_learned=1195,
)
HELD_OUT = replace(
    TRAIN, documents=100, empty_documents=0, tokens=50_100, blocks=195, tokens_in_blocks=49_920, tokens_dropped=180
)
ACCOUNT = DataAccount(
    train=TRAIN,
    validation=HELD_OUT,
    block_size=256,
    vocabulary_size=8000,
    token_type="uint16",
    excerpt="the end of one document.<|endoftext|>The next one begins <b>here</b>",
    key="k",
)
PREPARED = DataPrepared(account=ACCOUNT, tokens_per_step=4096, epochs=2.5, total_steps=305, from_cache=False)
STARTED = TrainingStarted(
    folder=Path("runs/quickstart"),
    total_steps=1000,
    resumed_from=None,
    parameters=12_345_678,
    trainable_parameters=12_345_678,
    device="a processor",
    precision="bf16",
)
STEP = StepDone(
    step=420,
    total_steps=1000,
    tokens_seen=1_720_320,
    tokens_per_second=12_345.6,
    mfu=0.412,
    remaining_seconds=193.0,
    loss=3.21456,
    learning_rate=1e-3,
    last_save_step=400,
)
RESULT = RunResult(
    folder=Path("runs/quickstart"),
    name="quickstart",
    already_finished=False,
    steps=1000,
    tokens_seen=4_096_000,
    seconds=95.4,
    eval_loss=3.1234,
    perplexity=22.72,
    sample="Return the größte number.\nOr not.",
    peak_memory_bytes=1_234_000_000,
    planned_memory_bytes=1_300_000_000,
    memory_was_short=True,
    model_folder=Path("runs/quickstart/model"),
    load_line='model = AutoModelForCausalLM.from_pretrained("runs/quickstart/model")',
)


SAVED = CheckpointSaved(400, Path("c"), 0.1, 0.1)


def every_event() -> list[object]:
    return [
        Message("hello"),
        PREPARED,
        STARTED,
        STEP,
        Evaluated(420, 3.3, 27.1),
        CheckpointSaved(400, Path("c"), 0.1, 0.1),
    ]


def test_a_step_in_words() -> None:
    parts = ["step 420/1,000", "loss 3.2146", "12.3K tokens/s", "41% MFU", "3 min 13 s left", "saved at 400"]
    assert lines.progress(STEP, STEP.loss) == parts
    first = replace(STEP, loss=None, last_save_step=None)
    assert lines.progress(first, None) == [parts[0], *parts[2:5]]
    assert lines.progress(replace(first, mfu=None), None) == [parts[0], parts[2], parts[4]]


def test_the_account_of_the_data_adds_up() -> None:
    words = "\n".join(lines.told(PREPARED))
    assert "550,292 = 499,968 trained + 49,920 held out + 404 dropped" in words
    assert 499_968 + 49_920 + 404 == 550_292
    assert "1,300 (1,200 for training, 100 held out); 3 empty ones skipped" in words
    assert "1,195 of 1,200 document ends are training targets" in words
    assert "305 of 4,096 tokens: 2.5 epochs" in words
    assert "padding 0.0%" in words


def test_document_borders_stand_out_in_the_excerpt() -> None:
    shown = [line.strip() for line in lines.told(PREPARED)]
    at = shown.index("<|endoftext|>")
    assert shown[at - 1].endswith("the end of one document.")
    assert shown[at + 1] == "The next one begins <b>here</b>"


def test_a_cache_that_was_found_is_told() -> None:
    assert lines.told(replace(PREPARED, from_cache=True))[0] == "data, from the cache"


def test_where_training_begins() -> None:
    assert lines.told(STARTED) == [
        "training 12.3M parameters, in bf16 on a processor",
        "for 1,000 steps, in runs/quickstart",
    ]
    resumed = lines.told(replace(STARTED, resumed_from=400, trainable_parameters=1000))
    assert resumed == [
        "training 12.3M parameters, 1,000 trainable, in bf16 on a processor",
        "from step 400 of 1,000 steps, in runs/quickstart",
    ]


def test_exports_are_told() -> None:
    assert lines.told(Exported("model-folder", Path("r/model"))) == ["model-folder wrote r/model"]
    assert lines.told(Exported("push-to-hub", None)) == ["push-to-hub is done"]


class Clock:
    """A clock that moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(seconds_per_step: float, steps: int, every: int = 1) -> list[str]:
    clock, lines = Clock(), list[str]()
    listener = LogLines(lines.append, clock)
    listener(replace(STARTED, total_steps=steps))
    for step in range(1, steps + 1):
        clock.now += seconds_per_step
        listener(replace(STEP, step=step, total_steps=steps, loss=3.0 if step % every == 0 else None))
    return [line for line in lines if line.startswith("step")]


@pytest.mark.parametrize(
    ("seconds_per_step", "steps", "least", "most"),
    [
        (0.001, 1000, 1, 3),
        (1.0, 20, 3, 5),
        (0.1, 1200, 20, 30),
        (10.0, 50, 25, 40),
        (100.0, 50, 50, 50),
        (2.0, 7200, 230, 290),
    ],
)
def test_a_log_gets_a_line_now_and_then(seconds_per_step: float, steps: int, least: int, most: int) -> None:
    shown = lines_of(seconds_per_step, steps)
    assert least <= len(shown) <= most
    assert shown[-1].startswith(f"step {steps:,}/{steps:,}")


def test_a_log_gets_lines_of_a_phase_that_lasts() -> None:
    clock, shown = Clock(), list[str]()
    listener = LogLines(shown.append, clock)
    for _ in range(80):
        clock.now += 0.5
        done = min(400, int(clock.now * 20))
        listener(Progressed("training the tokenizer", done, 400, "documents", clock.now))
    listener(Progressed("tokenizing", 0, 9, "characters", 0.0))
    assert shown == [
        "training the tokenizer  40/400 documents  20 documents/s  18 s left",
        "training the tokenizer  340/400 documents  20 documents/s  3 s left",
        "training the tokenizer  400/400 documents  32 s so far",
    ]


def test_a_phase_whose_end_is_unknown_says_how_long_it_has_taken() -> None:
    words = lines.phase(Progressed("reading", 3_000_000, None, "characters", 10.0))
    assert words == ["reading", "3,000,000 characters", "300K characters/s", "10 s so far"]


def test_a_log_shows_steps_that_have_a_loss() -> None:
    assert [line.split()[1] for line in lines_of(60.0, 9, every=3)] == ["3/9", "6/9", "9/9"]


def test_a_log_counts_from_where_a_run_goes_on() -> None:
    lines: list[str] = []
    listener = LogLines(lines.append, Clock())
    listener(replace(STARTED, resumed_from=400))
    listener(replace(STEP, step=401))
    assert len(lines) == 2


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_the_live_display_fits_the_terminal(width: int, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, markup=False, highlight=False)
    bar = watch.Bar(console)
    console.print(bar)
    for event in every_event():
        bar(event)  # type: ignore[arg-type]  # a list of different events
    console.print(bar)
    stream.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    words = " ".join(" ".join(lines).split())
    for part in ("step 420/1,000", "loss 3.2146", "12.3K tokens/s", "3 min 13 s left", "saved at 400", "27.10"):
        assert part in words
    assert "?" not in words


def test_the_live_display_keeps_the_last_loss_that_was_logged() -> None:
    console = Console(file=io.StringIO(), width=100)
    bar = watch.Bar(console)
    bar(STEP)
    bar(replace(STEP, step=421, loss=None))
    console.print(bar)
    assert "3.2146" in console.file.getvalue().replace("\xa0", " ")  # type: ignore[attr-defined]  # a StringIO


def test_brackets_in_texts_are_no_markup() -> None:
    with watch._live(io.StringIO()) as listener:
        assert isinstance(listener, watch.Bar)
        listener(Message("[bold] [/] [red]"))
        assert "[bold] [/] [red]" in listener._console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with watch.watching(quiet=True, on_standard_error=False) as listener:
        for event in every_event():
            listener(event)  # type: ignore[arg-type]  # a list of different events
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("on_standard_error", [True, False])
def test_progress_goes_where_it_is_asked_for(on_standard_error: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with watch.watching(quiet=False, on_standard_error=on_standard_error) as listener:
        listener(Message("hello"))
    said = capsys.readouterr()
    assert (said.err if on_standard_error else said.out) == "hello\n"
    assert not (said.out if on_standard_error else said.err)


NOTEBOOK = {"TERM": "xterm-color", "PAGER": "cat", "GIT_PAGER": "cat", "CLICOLOR": "1", "FORCE_COLOR": "1"}
"""What IPython's kernel puts into the environment of the commands in its cells."""
TERMINAL = {"TERM": "xterm-256color"}


@contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[int, TextIO]]:
    """A pseudo-terminal: the descriptor that reads what is shown, and the stream that a command writes to."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    try:
        with open(writer, "w", encoding="utf-8") as stream:  # noqa: PTH123  # a descriptor, and no path
            yield reader, stream
    finally:
        os.close(reader)


def in_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("CI", "JPY_PARENT_PID", "TERM", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "columns", "repainted"),
    [
        (TERMINAL, 80, True),
        ({"TERM": "screen", "VSCODE_PID": "1", "COLAB_RELEASE_TAG": "a", "CI": "false"}, 80, True),
        (NOTEBOOK, 80, False),
        (TERMINAL | {"JPY_PARENT_PID": "1"}, 80, False),
        (TERMINAL | {"CI": "true"}, 80, False),
        (TERMINAL, 0, False),
        ({"TERM": "dumb"}, 80, False),
        ({}, 80, False),
    ],
)
def test_a_bar_is_for_terminals_that_move_the_cursor(
    variables: dict[str, str], columns: int, repainted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_environment(monkeypatch, variables)
    with terminal(columns) as (reader, stream):
        monkeypatch.setattr(sys, "stdout", stream)
        with watch.watching(quiet=False, on_standard_error=False) as listener:
            for event in every_event():
                listener(event)  # type: ignore[arg-type]  # a list of different events
        stream.close()
        shown = all_of(reader)
    assert ("\x1b" in shown) == repainted
    assert "perplexity 27.10" in shown


@pytest.mark.slow
def test_a_run_in_a_cell_of_a_notebook_prints_lines_with_the_loss(here: Path) -> None:
    """A real run on a terminal as a cell is one; IPython reads what it prints in the same way."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS")} | NOTEBOOK
    for number in range(10):
        (here / f"{number}.txt").write_text(f"The number {number} is what this document is about. " * 20)
    command = [sys.executable, "-m", "toolkit", "recipe", "run", "./mine.yaml", "--set", "training.logging_steps=1"]
    with terminal() as (reader, stream):
        run = subprocess.Popen(command, cwd=here, env=environment, stdout=stream, stderr=stream)
        stream.close()
        shown = all_of(reader)
        assert run.wait() == 0, shown
    assert "\x1b" not in shown
    lines = shown.split("\r\n")
    assert not any("\r" in line for line in lines)
    assert 1 <= sum(bool(re.match(r"step \d/5  loss \d", line)) for line in lines) <= 5
    assert len(lines) < 50


def all_of(terminal: int) -> str:
    """What is shown until nobody writes any more; at the end Linux has an error."""
    shown = b""
    with suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown += piece
    return shown.decode()


def test_what_was_reached(capsys: pytest.CaptureFixture[str]) -> None:
    render.result(RESULT, recipe="quickstart", rehearsed=False)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Finished: quickstart",
        "validation  loss 3.1234, perplexity 22.72",
        "trained     1,000 steps, 4,096,000 tokens, 1 min 35 s",
        "memory      peak 1.23 GB; planned 1.30 GB",
        "sample      Return the größte number.",
        "            Or not.",
        "model       runs/quickstart/model",
        "report      toolkit run report quickstart",
        "load it with",
        '  model = AutoModelForCausalLM.from_pretrained("runs/quickstart/model")',
    ]


def test_a_long_sample_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    render.result(replace(RESULT, sample="\n".join("abcdefg") + " word" * 200), recipe="quickstart", rehearsed=False)
    render.result(replace(RESULT, sample="a word " * 200), recipe="quickstart", rehearsed=False)
    shown = capsys.readouterr().out.splitlines()
    samples = [line for line, words in enumerate(shown) if words.startswith("sample")]
    assert len(samples) == 2
    for first in samples:
        assert shown[first + 2].endswith(" ...")
        assert shown[first + 3].startswith("model")
    assert max(map(len, shown)) <= 104


def test_a_run_that_was_finished_before_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    render.result(replace(RESULT, already_finished=True), recipe="quickstart", rehearsed=False)
    assert "quickstart has already finished; nothing was changed" in capsys.readouterr().out


def test_a_rehearsal_is_not_taken_for_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    render.result(replace(RESULT, eval_loss=None, perplexity=None, sample=None), recipe="quickstart", rehearsed=True)
    out = capsys.readouterr().out
    assert "runs/quickstart holds a test, not a result." in out
    assert "validation" not in out


@pytest.mark.parametrize("columns", [40, 80])
def test_tables_and_pairs_fit_narrow_terminals(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    render.table(["NAME", "STATUS", "WHAT"], [["a-long-name", "finished", "some words " * 20], ["b", "", "short"]])
    render.pairs({"the name of it": "more words " * 20, "b": "c"})
    render.paragraphs("even more words " * 20)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()).count("words") == 60


def test_a_path_in_a_table_stays_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    render.table(["NAME", "WHAT"], [["a", f"see /{'long/' * 20}path there"]])
    assert f"/{'long/' * 20}path" in capsys.readouterr().out


def test_tables_do_not_wrap_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["NAME", "WHAT"], [["a", "some words " * 30]])
    assert len(capsys.readouterr().out.splitlines()) == 2


def phases_shown(*events: Event) -> list[str]:
    shown = list[str]()
    listener = LogLines(shown.append, Clock())
    for event in events:
        listener(event)
    return [line for line in shown if line.startswith("evaluating")]


EVALUATING = Progressed("evaluating", 12, 50, "batches", 4.0)


def test_a_log_is_told_of_an_evaluation_that_takes_long_or_ends_the_run() -> None:
    assert phases_shown(STARTED, STEP, EVALUATING) == []
    slow = phases_shown(STARTED, STEP, replace(EVALUATING, seconds=6.0), replace(EVALUATING, done=13, seconds=6.5))
    assert slow == ["evaluating  12/50 batches  2 batches/s  19 s left"]
    assert len(phases_shown(STARTED, replace(STEP, step=1000), EVALUATING)) == 1


def test_the_live_display_says_how_far_an_evaluation_has_come() -> None:
    console = Console(file=io.StringIO(), width=100)
    bar = watch.Bar(console)
    bar(STEP)
    bar(EVALUATING)
    console.print(bar)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert " 42%" in shown
    assert "evaluating  12/50 batches  3 batches/s  13 s left" in shown
    assert "step" not in shown


def test_a_phase_without_a_count_is_named() -> None:
    console = Console(file=io.StringIO(), width=100)
    bar = watch.Bar(console)
    bar(Progressed("planning memory", 0, None, "", 0.0))
    console.print(bar)
    assert console.file.getvalue().strip(" \n|") == "planning memory  0 s"  # type: ignore[attr-defined]  # a StringIO


def test_a_phase_that_begins_again_is_timed_anew() -> None:
    clock, events = Clock(), list[Event]()
    progress = ProgressReporter(events.append, clock)
    for begun in (100.0, 900.0):
        for done in range(3):
            clock.now = begun + done
            progress("evaluating", done, 2, unit="batches")
    assert [event.seconds for event in events if isinstance(event, Progressed)] == [0, 1, 2, 0, 1, 2]
