"""How a run looks in a terminal: a progress bar on a screen, plain lines anywhere else."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm

from zemosaic_events import Event, FrameLeftOut, Message, PhaseProgress, RunFinished, TileFailed, describe

_LINES_A_PHASE = 10


class TerminalReporter:
    """Listener that shows the events of a run.

    Parameters
    ----------
    quiet : bool
        Show warnings and errors only.
    stream : text stream
        Where to write; a bar is drawn if it is a terminal.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self._on_screen = self.stream.isatty()
        self._bar: tqdm | None = None
        self._phase = ""
        self._said = -1

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case PhaseProgress():
                if not self.quiet:
                    self._progress(event)
            case RunFinished():
                self._close_bar()
            case FrameLeftOut() | TileFailed():
                self._line(describe(event)[0])
            case Message(text, level):
                if not self.quiet or level != "INFO":
                    self._line(text)

    def _progress(self, event: PhaseProgress) -> None:
        if self._on_screen:
            self._draw_bar(event)
            return
        step = event.done * _LINES_A_PHASE // max(event.total, 1)
        if event.phase != self._phase or step > self._said:
            self._phase, self._said = event.phase, step
            self._line(describe(event)[0])

    def _draw_bar(self, event: PhaseProgress) -> None:
        """Move the bar of the phase; a new phase gets a new bar, which tells its own time left."""
        if self._bar is None or event.phase != self._phase:
            self._close_bar()
            self._phase = event.phase
            self._bar = tqdm(total=event.total, desc=f"{event.phase:9}", unit=event.unit, file=self.stream)
        self._bar.total = event.total
        self._bar.update(event.done - self._bar.n)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self.stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()
