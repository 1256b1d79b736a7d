"""The fourth page: the mosaic, what is in it, and what spoiled it."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QPushButton, QTabWidget, QVBoxLayout, QWidget

from zemosaic_gui_background import Background, let_others_on
from zemosaic_gui_frame_card import FrameGlimpse
from zemosaic_gui_helper import Helper
from zemosaic_gui_lazy import LazyWidget
from zemosaic_gui_parts import GAP, Card, Later, ScrollArea, duration_text, label, show_folder
from zemosaic_gui_sentences import told
from zemosaic_gui_text import tr
from zemosaic_gui_theme import FollowsLanguage
from zemosaic_types import PlanError, RunResult

_SIDE_WIDTH = 300
_SETTLED_MS = 150  # until the page is painted


class ResultPage(FollowsLanguage, QWidget):
    """The page of the result.

    `again` asks for a run without the frames that spoil the mosaic; `excluded_changed` has the frames that the
    user leaves out from now on.
    """

    again = Signal()
    excluded_changed = Signal(frozenset)

    def __init__(self) -> None:
        super().__init__()
        self.result: RunResult | None = None
        self._path: Path | None = None
        self._excluded: frozenset[str] = frozenset()
        self._took_s, self._n_worst = 0.0, 0
        self._unread = self._writing = False
        self._background = Background(self)
        self._soon = Later(self, _SETTLED_MS, self._read_ledger)
        self.viewer = LazyWidget("zemosaic_gui_viewer", "MosaicViewer", self._with_viewer)
        self.table = LazyWidget("zemosaic_gui_frames", "FramesTable", self._with_new_table)
        self.tabs = QTabWidget()
        self.heading, self.summary, self.missing = label("heading"), label(wrap=True), label("warning", wrap=True)
        self.place = label("faint", wrap=True)
        self.place.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.report, self.without, self.other = QPushButton(), QPushButton(), QPushButton()
        self.trouble, self.picture = label("error", wrap=True), FrameGlimpse()
        self._helper = Helper(self)
        self._helper.done.connect(lambda _said: self._show_report())
        self._helper.failed.connect(self._show_no_report)
        self._helper.not_started.connect(self._show_no_report)
        self.report.clicked.connect(self.make_report)
        self.without.clicked.connect(self.again)
        self.other.clicked.connect(self._ask_other)
        self._lay_out()
        self.retranslate()

    def _lay_out(self) -> None:
        self.tabs.addTab(self.viewer, "")
        self.tabs.addTab(self.table, "")
        side = Card(self.heading, self.summary, self.missing, self.place)
        side.column.addSpacing(8)
        for widget in (self.report, self.without, self.other, self.trouble):
            side.column.addWidget(widget)
        self.trouble.hide()
        self.picture.hide()
        self.picture.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(side)
        column.addWidget(self.picture, 1)
        column.addStretch(0)
        row = QHBoxLayout(self)
        row.setContentsMargins(GAP, GAP, GAP, GAP)
        row.setSpacing(GAP)
        row.addWidget(self.tabs, 1)
        row.addWidget(ScrollArea(inside, _SIDE_WIDTH))

    def _with_viewer(self, viewer: QWidget) -> None:
        if self._path is not None:
            viewer.open(self._path)

    def _with_new_table(self, table: QWidget) -> None:
        table.excluded_changed.connect(self.excluded_changed)
        table.frame_selected.connect(lambda frame_id: self.picture.show_frame(table.path_of(frame_id)))
        self._with_table(table)

    def _with_table(self, table: QWidget) -> None:
        if self._has_ledger():
            table.set_ledger(self._path.parent / "ledger.csv")
        else:
            table.set_frames(())
        table.set_excluded(self._excluded)

    def set_excluded(self, frame_ids: frozenset[str]) -> None:
        """Show which frames the user leaves out."""
        self._excluded = frame_ids
        self.table.do(lambda table: table.set_excluded(frame_ids))

    @property
    def folder(self) -> Path | None:
        """The folder of the result."""
        return None if self._path is None else self._path.parent

    def show_result(self, result: RunResult, took_s: float) -> None:
        """Show what a run of so many seconds has left behind."""
        self.result, self._took_s = result, took_s
        self._open(Path(result.mosaic_path))

    def open_mosaic(self, path: Path) -> None:
        """Show a mosaic of an earlier run."""
        self.result = None
        self.tabs.setCurrentWidget(self.viewer)
        self._open(path)

    def _open(self, path: Path) -> None:
        self._path = path
        self.trouble.hide()
        self.picture.show_frame("")
        self.viewer.do(self._with_viewer)
        self._n_worst, self._unread = 0, True
        self._background.forget("worst")
        if self.isVisible():
            self._soon.soon()
        self._show_words()

    def _read_ledger(self) -> None:
        """Read what became of the frames: once, and when somebody looks, since it keeps the interpreter busy."""
        self._unread = False
        self.table.do(self._with_table)
        if self._has_ledger():
            ledger = self._path.with_name("ledger.csv")
            self._background.ask("worst", lambda: _count_worst(ledger), self._show_worst)

    def showEvent(self, event: object) -> None:
        """Show what has come while the page was hidden."""
        super().showEvent(event)
        if self._unread:
            self._soon.soon()

    def _show_worst(self, n: int) -> None:
        self._n_worst = n
        self._show_words()

    def _has_ledger(self) -> bool:
        return self._path is not None and (self._path.parent / "ledger.csv").is_file()

    def _show_words(self) -> None:
        there = self._path is not None
        self.heading.setText(self._path.name if there else tr("result.none"))
        self.place.setText(str(self._path.parent) if there else "")
        self._offer_report(self._writing)
        n = self._n_worst
        self.without.setEnabled(bool(n and self.result))
        self.without.setText(tr("result.without.n", n=n) if n else tr("result.without"))
        self.without.setToolTip(tr("result.without.help" if n else "result.without.none"))
        result = self.result
        if result is None:
            self.summary.setText("" if there else tr("result.none.more"))
            self.missing.hide()
            return
        used = tr("result.used", used=result.n_used, planned=result.n_planned)
        self.summary.setText(f"{used}\n{tr('run.took', time=duration_text(self._took_s))}")
        n_missed = sum(item.missed for item in result.left_out)
        missing = [tr("result.left_out", n=n_missed)] if n_missed else []
        missing += [tr("result.tiles_failed", n=len(result.failed_tiles))] if result.failed_tiles else []
        self.missing.setText("\n".join(missing))
        self.missing.setVisible(bool(missing))

    def _ask_other(self) -> None:
        start = str(self.folder or "")
        path, _ = QFileDialog.getOpenFileName(self, tr("result.other"), start, "FITS (*.fits *.fit)")
        if path:
            self.open_mosaic(Path(path))

    def make_report(self) -> None:
        """Write the report in a process of its own, then show it."""
        self.trouble.hide()
        self._offer_report(writing=True)
        self._helper.call("zemosaic_cli.main", ["report", str(self.folder)])

    def _offer_report(self, writing: bool = False) -> None:
        """Offer the report where there can be one; while it is written, say so instead."""
        self._writing = writing
        self.report.setEnabled(self._has_ledger() and not writing)
        self.report.setText(tr("result.report.writing" if writing else "result.report"))

    def _show_report(self) -> None:
        self._offer_report()
        show_folder(self.folder / "report.html")

    def _show_no_report(self, words: str) -> None:
        self._offer_report()
        self.trouble.setText(told(words) or tr("result.report.failed"))
        self.trouble.show()

    def shutdown(self) -> None:
        """End what the page has running."""
        self._helper.shutdown()
        self._soon.stop()
        self._background.close()
        self.viewer.shutdown()
        self.table.shutdown()
        self.picture.shutdown()

    def retranslate(self) -> None:
        """Take the words anew."""
        self.tabs.setTabText(0, tr("result.mosaic"))
        self.tabs.setTabText(1, tr("result.frames"))
        self.other.setText(tr("result.other"))
        self._show_words()


def _count_worst(ledger: Path) -> int:
    """Return how many frames a ledger suggests to leave out."""
    from zemosaic_ledger import judge, read_ledger  # numerical libraries: not before they are needed

    try:
        return len(judge(*read_ledger(ledger, between=let_others_on)).suggested)
    except PlanError:  # the table of the frames says why it cannot be read
        return 0
