"""The third page: a run is started, watched and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QTabWidget, QVBoxLayout, QWidget

from zemosaic_events import (
    PERCENT,
    FinishReason,
    FrameLeftOut,
    PhaseProgress,
    PlannedTile,
    RunFinished,
    SurveyFrame,
    TileDone,
    TileFailed,
    TilesPlanned,
    TileStarted,
    describe,
)
from zemosaic_gui_eta import Outlook, RunClock
from zemosaic_gui_lazy import LazyWidget
from zemosaic_gui_log import LogView, Problems
from zemosaic_gui_parts import GAP, PROGRESS_MS, Card, Later, TileState, duration_range, duration_text, label
from zemosaic_gui_sentences import told
from zemosaic_gui_text import tr
from zemosaic_gui_theme import FollowsLanguage
from zemosaic_types import LeftOut, RunDied

_TICK_MS = 500
_STEPS = 1000
_PHASES = (
    *("headers", "solve", "align", "canvas", "measure", "refine", "flat", "match"),
    *("group", "stack", "coadd", "add", "assemble"),
)
_LINES_AT_MOST = 3  # of a reason, in the status; the log has it all


@dataclass
class _Loss:
    """Why a frame is missing: the first reason, and how many more there are; called, it says so."""

    reason: str
    more: int = 0

    def __call__(self) -> str:
        return told(self.reason) + (tr("problems.more", n=self.more) if self.more else "")


class RunPage(FollowsLanguage, QWidget):
    """The page of a run; it shows what it hears and starts nothing itself."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = RunClock(time.monotonic())
        self._frames: tuple[SurveyFrame, ...] = ()
        self._excluded: frozenset[str] = frozenset()
        self._tiles: dict[int, PlannedTile] = {}
        self._states: dict[int, TileState] = {}
        self._losses: dict[str, _Loss] = {}
        self._status = ("run.ready", {})
        self._details, self._facts, self._over = _nothing, _no_facts, False
        self.took_s: float | None = None
        self.status, self.detail = label("title"), label("faint", wrap=True)
        self.eta = label("number")
        self.eta_note = label("faint")
        self.progress = QProgressBar(textVisible=False, maximum=_STEPS)
        self.facts = label("faint", wrap=True)
        self.map = LazyWidget("zemosaic_gui_skymap", "SkyMap", self._with_map)
        self.log, self.problems = LogView(), Problems()
        self.tabs = QTabWidget()
        self._tick = QTimer(self, interval=_TICK_MS)
        self._tick.timeout.connect(self._show_eta)
        self._soon = Later(self, PROGRESS_MS, self._show_progress)
        self._lay_out()
        self.problems.counted.connect(lambda _: self._name_tabs())
        self.retranslate()

    def _lay_out(self) -> None:
        top = Card(spacing=8)
        words = QVBoxLayout()
        words.addWidget(self.status)
        words.addWidget(self.detail)
        times = QVBoxLayout()
        times.addWidget(self.eta)
        times.addWidget(self.eta_note)
        row = QHBoxLayout()
        row.addLayout(words, 1)
        row.addLayout(times)
        top.column.addLayout(row)
        top.column.addWidget(self.progress)
        top.column.addWidget(self.facts)
        self.tabs.addTab(self.log, "")
        self.tabs.addTab(self.problems, "")
        sky = Card()
        sky.column.setContentsMargins(0, 0, 0, 0)
        sky.column.addWidget(self.map, 1)
        below = QHBoxLayout()
        below.setSpacing(GAP)
        below.addWidget(sky, 6)
        below.addWidget(self.tabs, 5)
        page = QVBoxLayout(self)
        page.setContentsMargins(GAP, GAP, GAP, GAP)
        page.setSpacing(GAP)
        page.addWidget(top)
        page.addLayout(below, 1)

    def _with_map(self, sky_map: QWidget) -> None:
        sky_map.set_frames(self._frames)
        sky_map.set_excluded(self._excluded)
        sky_map.set_tiles(self._tiles.values())
        for tile, state in self._states.items():
            sky_map.set_tile_state(tile, state)

    def show_frames(
        self, frames: Iterable[SurveyFrame], tiles: Iterable[PlannedTile], excluded: frozenset[str]
    ) -> None:
        """Show where the frames and the tiles of the run to come lie."""
        self._frames, self._excluded = tuple(frames), excluded
        self._tiles, self._states = {tile.tile: tile for tile in tiles}, {}
        self.map.do(self._with_map)

    def show_plan(self, facts: Callable[[bool], str], trouble: str = "") -> None:
        """Say what a run would do, or what is in its way.

        `facts` says it in the language in use; it is told whether the run is over.
        """
        self._facts, self._over = facts, False
        self._show_facts()
        self._say("run.blocked" if trouble else "run.ready", trouble)

    # ---- a run -------------------------------------------------------------------------------------------

    def begin(self, pipeline: str, expected_s: tuple[float, float] | None) -> None:
        """A run starts; `expected_s` is the range of its time, if that was estimated."""
        self._clock = RunClock(time.monotonic(), expected_s, pipeline)
        self._states, self._losses, self.took_s = {}, {}, None
        self.log.clear()
        self.problems.clear()
        self.map.do(lambda sky_map: sky_map.set_tiles(self._tiles.values()))
        self.progress.setRange(0, _STEPS)
        self.progress.setValue(0)
        self._say("run.starting")
        self._tick.start()
        self._show_eta()

    def hear(self, event: object) -> None:
        """Show an event of the run."""
        match event:
            case PhaseProgress():
                self._on_progress(event)
                return
            case TilesPlanned(_, tiles):
                self._tiles, self._states = {tile.tile: tile for tile in tiles}, {}
                self.map.do(lambda sky_map: sky_map.set_tiles(tiles))
            case TileStarted(tile):
                self._mark(tile, TileState.RUNNING)
            case TileDone(tile):
                self._mark(tile, TileState.DONE)
            case TileFailed(tile, reason):
                self._mark(tile, TileState.FAILED)
                self.problems.add(partial(tr, "problems.tile", tile=tile), reason)
            case FrameLeftOut(left_out) if left_out.missed:
                self._lose(left_out)
        text, _, level = describe(event)
        self.log.add(text, level)

    def _lose(self, item: LeftOut) -> None:
        """List a frame that is missing, once: one that cannot be read is missing from each of its tiles."""
        if (loss := self._losses.get(item.path)) is not None:
            loss.more += 1
            self.problems.viewport().update()
            return
        self._losses[item.path] = loss = _Loss(item.reason)
        self.problems.add(Path(item.path).name, loss)

    def _on_progress(self, event: PhaseProgress) -> None:
        phase, done, total, unit = event.phase, event.done, event.total, event.unit
        if phase != self._clock.phase:
            self.log.add(partial(_phase, phase))
        self._clock.hear(event)
        self._status = (f"phase.{phase}" if phase in _PHASES else "run.phase", {"phase": phase})
        self._details = partial(tr, "run.percent" if unit == PERCENT else "run.of", done=done, total=total)
        self._soon.soon()

    def _show_progress(self) -> None:
        self.progress.setValue(max(self.progress.value(), round(_STEPS * self._clock.fraction)))
        self._show_status()

    def _mark(self, tile: int, state: TileState) -> None:
        self._states[tile] = state
        self.map.do(lambda sky_map: sky_map.set_tile_state(tile, state))

    def states(self) -> list[str]:
        """Return the states of the tiles that a worker has taken."""
        return [state.name for state in self._states.values()]

    def stopping(self) -> None:
        """The run was asked to stop."""
        self._say("run.stopping")
        self.log.add(partial(tr, "run.stopping"))

    def end(self, event: RunFinished, outcome: object) -> None:
        """The run has ended."""
        self._tick.stop()
        self._soon.stop()
        self.took_s, self._over = self._clock.elapsed(time.monotonic()), True
        self._show_facts()
        self._show_times()
        names = {
            FinishReason.COMPLETE: "run.complete",
            FinishReason.WITH_FAILURES: "run.with_failures",
            FinishReason.CANCELLED: "run.cancelled",
            FinishReason.ERROR: "run.died" if isinstance(outcome, RunDied) else "run.failed",
        }
        good = event.reason in (FinishReason.COMPLETE, FinishReason.WITH_FAILURES)
        self.progress.setValue(_STEPS if good else self.progress.value())
        reason = str(outcome) if event.reason is FinishReason.ERROR else ""
        if reason:
            self.problems.add(partial(tr, "problems.run"), reason)
        self.problems.show_now()
        self.log.add(partial(_ending, names[event.reason], reason), "INFO" if good else "ERROR")
        self._say(names[event.reason], reason)

    def _say(self, key: str, details: str = "") -> None:
        self._status, self._details = (key, {}), partial(_first_lines, details)
        self._show_status()

    def _show_status(self) -> None:
        key, values = self._status
        self.status.setText(tr(key, **values))
        details = self._details()
        self.detail.setText(details)
        self.detail.setVisible(bool(details))

    def _show_facts(self) -> None:
        self.facts.setText(self._facts(self._over))

    def _show_times(self) -> None:
        if self.took_s is not None:
            self.eta.setText("")
            self.eta_note.setText(tr("run.took", time=duration_text(self.took_s)))
        elif self._tick.isActive():
            self._show_eta()

    def _show_eta(self) -> None:
        now = time.monotonic()
        outlook = self._clock.outlook(now)
        self.eta.setText(eta_text(outlook))
        elapsed = tr("run.elapsed", time=duration_text(self._clock.elapsed(now)))
        self.eta_note.setText(f"{elapsed} · {tr('eta.late')}" if outlook and outlook.late else elapsed)

    def shutdown(self) -> None:
        """End what the page has running."""
        self._tick.stop()
        self._soon.stop()
        for part in (self.map, self.log, self.problems):
            part.shutdown()

    def _name_tabs(self) -> None:
        self.tabs.setTabText(0, tr("run.log"))
        n = self.problems.count()
        self.tabs.setTabText(1, tr("run.problems.some", n=n) if n else tr("run.problems"))

    def retranslate(self) -> None:
        """Take the words anew."""
        self._name_tabs()
        self._show_facts()
        self._show_status()
        self._show_times()


def _no_facts(_over: bool) -> str:
    return ""


def _nothing() -> str:
    return ""


def _first_lines(reason: str) -> str:
    return told("\n".join(reason.splitlines()[:_LINES_AT_MOST]))


def _phase(phase: str) -> str:
    return tr(f"phase.{phase}") if phase in _PHASES else tr("run.phase", phase=phase)


def _ending(key: str, reason: str) -> str:
    return "\n".join(filter(None, (tr(key), told(reason))))


def eta_text(outlook: Outlook | None) -> str:
    """Return what is left of a run, in words."""
    if outlook is None:
        return tr("eta.unknown")
    return tr("eta.left", range=duration_range(outlook.low, outlook.high))
