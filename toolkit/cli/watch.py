"""Shows the progress of a run: a live bar on a terminal, a line now and then elsewhere, nothing with --quiet.

A watcher is the listener that `lifecycle.launch.run` calls with events. On a terminal rich prints, because the bar has
to make way for every line; elsewhere `render` does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from toolkit import formatting
from toolkit.cli import render
from toolkit.report.lines import LogLines, filled, phase, progress, told
from toolkit.system import signals

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from toolkit.events import Event, Listener, Progressed, StepDone

STATIC_TERMINALS = frozenset({"", "dumb", "unknown", "xterm-color"})
"""Values of TERM for terminals that cannot move the cursor. IPython's kernel sets the last one for commands in its
cells: in Jupyter, Colab, Kaggle and VS Code alike, but not in the terminals that they open."""
SPINNER = "|/-\\"


@contextmanager
def watching(*, quiet: bool, on_standard_error: bool) -> Iterator[Listener]:
    """Yield the listener for a run; however the run ends, the terminal is restored."""
    stream = sys.stderr if on_standard_error else sys.stdout
    if quiet:
        yield lambda event: None
    elif can_repaint(stream):
        with _live(stream) as listener:
            yield listener
    else:
        yield LogLines(render.note if on_standard_error else render.text)


def can_repaint(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can move its cursor, so that a bar can be redrawn in place.

    A command in a notebook cell (`!toolkit ...`) also writes to a terminal, of 80 columns, but its output is
    append-only.
    """
    if not stream.isatty() or os.environ.get("TERM", "") in STATIC_TERMINALS:
        return False
    if os.environ.get("CI", "").lower() not in ("", "0", "false") or "JPY_PARENT_PID" in os.environ:
        return False
    # A container's log or a session recorder may be a terminal without a size.
    return os.get_terminal_size(stream.fileno()).columns > 0


class Bar:
    """A progress bar and the numbers of the latest step, below the lines printed so far."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._step: StepDone | None = None
        self._loss: float | None = None
        self._phase: Progressed | None = None
        self._phase_told = 0.0

    def __call__(self, event: Event) -> None:
        """Take the numbers of a step; print anything else above the bar."""
        from toolkit.events import Progressed, StepDone

        self._phase, self._phase_told = (event if isinstance(event, Progressed) else None), time.monotonic()
        if isinstance(event, StepDone):
            self._step = event
            self._loss = event.loss if event.loss is not None else self._loss
        for line in told(event, width=self._console.width):
            # Wrapped here; the terminal wraps only long words, so that a path stays whole for copying.
            for part in formatting.wrapped(line, self._console.width):
                self._console.print(part, soft_wrap=True)

    def __rich__(self) -> Text:
        """The current display below the lines; rich asks for it a few times a second."""
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
        """A bar as wide as the terminal; done and remaining differ in shape, for terminals without color."""
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
