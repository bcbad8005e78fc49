"""Shows a run while it goes on: a live bar on a terminal, now and then a line elsewhere, nothing with --quiet.

A watcher is the listener that `train.run` calls with events. On a terminal rich prints, because the bar has to
move out of the way of every line; elsewhere `render` does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from toolkit import formatting, signals
from toolkit.cli import render
from toolkit.cli.lines import filled, phase, progress, told

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from toolkit.progress import Event, Listener, Progressed, StepDone

LEAST_SECONDS = 5.0
"""Where each step shown is a line of its own, the lines are at least this far apart, ..."""
SHARE = 0.05
"""... and by this share of the time trained, so that a long run does not fill its log, ..."""
MOST_SECONDS = 60.0
"""... but no further than this, for whoever waits for the next."""
FIRST_PHASE_SECONDS = 2.0
"""A phase that is no training, such as tokenizing, has its first line when it has lasted so long, ..."""
PHASE_SECONDS = 15.0
"""... and then a line this often."""
STATIC_TERMINALS = frozenset({"", "dumb", "unknown", "xterm-color"})
"""Values of TERM where the cursor does not move. IPython's kernel sets the last one for the commands in its cells: in
Jupyter, Colab, Kaggle and VS Code alike, and not in the terminals that they open."""
SPINNER = "|/-\\"


@contextmanager
def watching(*, quiet: bool, on_standard_error: bool) -> Iterator[Listener]:
    """Give the listener for a run; however the run ends, the terminal is then as it was."""
    stream = sys.stderr if on_standard_error else sys.stdout
    if quiet:
        yield lambda event: None
    elif can_repaint(stream):
        with _live(stream) as listener:
            yield listener
    else:
        yield LogLines(render.note if on_standard_error else render.text)


def can_repaint(stream: TextIO) -> bool:
    """Whether the stream is a terminal that moves its cursor, so that a bar can be painted over the one before.

    A command in a notebook's cell (`!toolkit ...`) writes to a terminal too, of 80 columns, but its output only grows.
    """
    if not stream.isatty() or os.environ.get("TERM", "") in STATIC_TERMINALS:
        return False
    if os.environ.get("CI", "").lower() not in ("", "0", "false") or "JPY_PARENT_PID" in os.environ:
        return False
    # A container's log or a recorder may be a terminal without a window.
    return os.get_terminal_size(stream.fileno()).columns > 0


class LogLines:
    """One line for each thing that happens, and a line now and then for the steps."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._began = self._shown_at = clock()
        self._shown_phase: str | None = None
        self._in_training = False

    def __call__(self, event: Event) -> None:
        """Show an event, or not."""
        from toolkit.progress import Progressed, StepDone, TrainingStarted

        if isinstance(event, TrainingStarted):
            self._began = self._shown_at = self._clock()
            self._in_training = True
        if isinstance(event, StepDone):
            self._in_training, self._shown_phase = event.step < event.total_steps, None
        if isinstance(event, Progressed):
            if self._is_worth_a_line(event):
                self._shown_phase, self._shown_at = event.phase, self._clock()
                self._write("  ".join(phase(event)))
            return
        if not isinstance(event, StepDone):
            for line in told(event):
                self._write(line)
        elif event.loss is not None and self._is_due(event):
            self._shown_at = self._clock()
            self._write("  ".join(progress(event, event.loss)))

    def _is_worth_a_line(self, event: Progressed) -> bool:
        """A phase is named when it turns out to last, or at once where it tells no more; and then now and then."""
        if event.phase == self._shown_phase:
            return self._clock() - self._shown_at >= PHASE_SECONDS
        if self._in_training:
            return event.seconds >= LEAST_SECONDS
        return not event.unit or event.seconds >= FIRST_PHASE_SECONDS

    def _is_due(self, event: StepDone) -> bool:
        now = self._clock()
        apart = min(max(LEAST_SECONDS, SHARE * (now - self._began)), MOST_SECONDS)
        return event.step == event.total_steps or now - self._shown_at >= apart


class Bar:
    """A bar and the numbers of the newest step, below the lines of what has happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._step: StepDone | None = None
        self._loss: float | None = None
        self._phase: Progressed | None = None
        self._phase_told = 0.0

    def __call__(self, event: Event) -> None:
        """Take the numbers of a step; print anything else above the bar."""
        from toolkit.progress import Progressed, StepDone

        self._phase, self._phase_told = (event if isinstance(event, Progressed) else None), time.monotonic()
        if isinstance(event, StepDone):
            self._step = event
            self._loss = event.loss if event.loss is not None else self._loss
        for line in told(event, width=self._console.width):
            # Wrapped here, and by the terminal only what a person may copy: a long path stays whole.
            for part in render.wrapped(line, self._console.width):
                self._console.print(part, soft_wrap=True)

    def __rich__(self) -> Text:
        """What stands below the lines now; rich asks a few times a second."""
        from rich.text import Text

        now = time.monotonic()
        elapsed = now - self._began
        spinner = SPINNER[int(elapsed * 4) % len(SPINNER)]
        if self._phase is not None:
            parts = phase(self._phase)
            if not self._phase.unit:
                parts.append(formatting.duration(int(now - self._phase_told)))
        elif self._step is not None:
            parts = progress(self._step, self._loss)
        else:
            parts = [formatting.duration(int(elapsed))]
        lines = Text("\n".join(filled([spinner, *parts], self._console.width)))
        if self._step is None:
            return lines
        return Text("\n").join([self._bar(self._step.step / self._step.total_steps), lines])

    def _bar(self, share: float) -> Text:
        """The share done, as wide as the terminal; told apart by shape, for terminals without color."""
        from rich.text import Text

        done, rest = "\u2501\u2500" if self._console.encoding.startswith("utf") else "#."
        width = max(1, self._console.width - len(" 100%"))
        cells = round(width * share)
        return Text.assemble((done * cells, "green"), (rest * (width - cells), "dim"), f" {share:>4.0%}")


@contextmanager
def _live(stream: TextIO) -> Iterator[Listener]:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    bar = Bar(console)
    with (
        Live(bar, console=console, refresh_per_second=4, transient=True) as live,
        signals.at_forced_end(lambda _: live.stop()),
    ):
        yield bar
