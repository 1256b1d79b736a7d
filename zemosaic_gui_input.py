"""The first page: which frames, where the results go, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QFileDialog,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QStackedWidget,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from zemosaic_events import PhaseProgress, SurveyDone, SurveyFrame, SurveyFrames
from zemosaic_gui_frame_card import FrameCard
from zemosaic_gui_lazy import LazyWidget
from zemosaic_gui_parts import (
    GAP,
    PROGRESS_MS,
    Card,
    Later,
    ScrollArea,
    bytes_range,
    bytes_text,
    duration_range,
    duration_text,
    label,
)
from zemosaic_gui_sentences import told
from zemosaic_gui_settings import Settings
from zemosaic_gui_text import number_text, tr
from zemosaic_gui_theme import FollowsLanguage

_SUMMARY_WIDTH = 330
_WORTH_TELLING = 1.05  # more frames than were summed up last; tens of thousands are not counted for every batch


class Found:
    """What a survey has found so far."""

    def __init__(self) -> None:
        self.frames: dict[str, SurveyFrame] = {}
        self.done: SurveyDone | None = None
        self.trouble = ""

    def add(self, frames: Iterable[SurveyFrame]) -> None:
        """Take frames in; one that is known is replaced."""
        self.frames |= {frame.frame_id: frame for frame in frames}

    def usable(self, excluded: frozenset[str]) -> list[SurveyFrame]:
        """Return the frames that a run will try."""
        return [frame for frame in self.frames.values() if frame.usable and frame.frame_id not in excluded]


class FolderRow(QWidget):
    """A folder: typed, dropped, or chosen; `chosen` has its path."""

    chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.line, self.button = QLineEdit(), QPushButton()
        self.line.setMinimumHeight(30)
        self.line.editingFinished.connect(lambda: self.chosen.emit(self.line.text().strip()))
        self.button.clicked.connect(self.ask)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.line, 1)
        row.addWidget(self.button)

    def ask(self) -> None:
        """Let the user choose a folder."""
        folder = QFileDialog.getExistingDirectory(self, self.line.accessibleName(), self.line.text())
        if folder:
            self.line.setText(folder)
            self.chosen.emit(folder)


class DropZone(QPushButton):
    """What there is before a folder is chosen: a place to drop one, and a button to choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("drop")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._title, self._text = label("title"), label("faint", wrap=True)
        column = QVBoxLayout(self)
        column.addStretch(2)
        for widget in (self._title, self._text):
            widget.setAlignment(Qt.AlignmentFlag.AlignCenter)
            column.addWidget(widget)
        column.addStretch(3)

    def set_over(self, over: bool) -> None:
        """Show that what hovers over the window may be dropped."""
        self.setProperty("over", over)
        self.style().unpolish(self)
        self.style().polish(self)

    def retranslate(self) -> None:
        """Take the words anew."""
        self._title.setText(tr("input.drop"))
        self._text.setText(tr("input.drop.more"))
        self.setAccessibleName(tr("input.drop"))
        self.setAccessibleDescription(tr("input.drop.more"))


class Summary(Card):
    """What was found, in words and numbers, and what a run will cost."""

    _FACTS = ("frames", "exposure", "filters", "instruments", "canvas", "tiles")
    _COSTS = ("time", "memory", "disk")

    def __init__(self) -> None:
        super().__init__(spacing=6)
        self._heading, self._cost_heading = label("heading"), label("heading")
        self.progress = QProgressBar(textVisible=False)
        self.status = label("faint", wrap=True)
        self._names: dict[str, QLabel] = {}
        self.values: dict[str, QLabel] = {}
        self.notes = label("faint", wrap=True)
        self.trouble = label("error", wrap=True)
        self._progress = 0, 0
        self._soon = Later(self, PROGRESS_MS, self._show_progress)
        for widget in (self._heading, self.progress, self.status):
            self.column.addWidget(widget)
        self.column.addLayout(self._form(self._FACTS))
        self.column.addSpacing(6)
        self.column.addWidget(self._cost_heading)
        self.column.addLayout(self._form(self._COSTS))
        self.column.addWidget(self.trouble)
        self.column.addWidget(self.notes)

    def _form(self, names: tuple[str, ...]) -> QFormLayout:
        form = QFormLayout()
        form.setVerticalSpacing(5)
        form.setHorizontalSpacing(12)
        for name in names:
            self._names[name], self.values[name] = label("faint"), label(wrap=True)
            form.addRow(self._names[name], self.values[name])
        return form

    def show_found(self, found: Found, excluded: frozenset[str]) -> None:
        """Show what a survey has found."""
        usable = found.usable(excluded)
        n_out = len(found.frames) - len(usable)
        text = tr("found.frames", n=len(usable))
        self._say("frames", text + (" · " + tr("found.out", n=n_out) if n_out else "") if found.frames else "")
        seconds = sum(frame.exposure_s or 0.0 for frame in usable)
        self._say("exposure", duration_text(seconds) if seconds else "")
        self._say("filters", _counted(frame.filter for frame in usable))
        self._say("instruments", _counted(frame.instrument for frame in usable))
        self._show_done(found.done)
        full = found.done is not None and found.done.disk_bytes[1] > found.done.free_bytes
        trouble = told(found.trouble) or (tr("found.full") if full else "")
        self.trouble.setText(trouble)
        self.trouble.setVisible(bool(trouble))

    def _show_done(self, done: SurveyDone | None) -> None:
        placed = done is not None and done.shape[0] > 0
        for name in ("canvas", "tiles", *self._COSTS):
            self._say(name, "–")
        notes = done.notes if done else ()
        self.notes.setText("\n\n".join(f"{note[:1].upper()}{note[1:]}." for note in map(told, notes)))
        self.notes.setVisible(bool(notes))
        if not placed:
            return
        ny, nx = done.shape
        self._say("canvas", tr("found.canvas", nx=nx, ny=ny, scale=number_text(done.scale_arcsec, ".2f")))
        kind = "tiles" if done.pipeline == "grid" else "masters"
        self._say("tiles", tr(f"found.{kind}", n=len(done.tiles)))
        self._say("time", duration_range(*done.wall_s))
        self._say("memory", bytes_range(*done.memory_bytes))
        free = tr("found.free", free=bytes_text(done.free_bytes))
        self._say("disk", f"{bytes_range(*done.disk_bytes)} ({free})")

    def show_progress(self, done: int, total: int) -> None:
        """Show, soon, how many frames have been looked at."""
        self._progress = done, total
        self._soon.soon()

    def _show_progress(self) -> None:
        done, total = self._progress
        self.progress.show()
        self.progress.setRange(0, total)
        self.progress.setValue(done)
        self.status.setText(tr("input.looking", done=done, total=total) if total else tr("input.scanning", n=done))

    def show_rest(self, text: str = "") -> None:
        """Show that nothing is going on."""
        self._soon.stop()
        self.progress.hide()
        self.status.setText(text)
        self.status.setVisible(bool(text))

    def _say(self, name: str, text: str) -> None:
        self.values[name].setText(text or "–")

    def retranslate(self) -> None:
        """Take the words anew."""
        self._heading.setText(tr("found.heading"))
        self._cost_heading.setText(tr("found.costs"))
        for name, widget in self._names.items():
            widget.setText(tr(f"found.name.{name}"))


def _counted(values: Iterable[str]) -> str:
    """Return the words that occur, the most frequent first, with their numbers if there are several."""
    counts = Counter(value for value in values if value)
    if len(counts) == 1:
        return next(iter(counts))
    shown = [f"{value} ({n})" for value, n in counts.most_common(4)]
    return ", ".join([*shown, "…"] if len(counts) > 4 else shown)


class InputPage(FollowsLanguage, QWidget):
    """The page of the frames. `folder_chosen` tells of another input folder, `rescan` asks to look again."""

    folder_chosen = Signal(str)
    excluded_changed = Signal(frozenset)
    rescan = Signal()

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self.found, self.excluded = Found(), frozenset()
        self._folder, self._selected, self._summed_up = "", "", 0
        self.input, self.output = FolderRow(), FolderRow()
        self._input_label, self._output_label = label(), label()
        self.again = QPushButton()
        self.drop, self.summary, self.frame = DropZone(), Summary(), FrameCard()
        self.map = LazyWidget("zemosaic_gui_skymap", "SkyMap", self._with_map)
        self.table = LazyWidget("zemosaic_gui_frames", "FramesTable", self._with_table)
        self.tabs, self.stack = QTabWidget(), QStackedWidget()
        self.setAcceptDrops(True)
        self._lay_out()
        self._connect()
        self.retranslate()
        self.show_settings()

    # ---- building ----------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        folders = Card()
        grid = QGridLayout()
        grid.setHorizontalSpacing(12)
        for k, (name, row) in enumerate(((self._input_label, self.input), (self._output_label, self.output))):
            grid.addWidget(name, k, 0)
            grid.addWidget(row, k, 1)
        folders.column.addLayout(grid)
        self.tabs.addTab(self.map, "")
        self.tabs.addTab(self.table, "")
        self.tabs.setCornerWidget(self.again)
        side = QWidget()
        column = QVBoxLayout(side)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(GAP)
        column.addWidget(self.summary)
        column.addWidget(self.frame, 1)
        column.addStretch(0)
        content = QWidget()
        row = QHBoxLayout(content)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(GAP)
        row.addWidget(self.tabs, 1)
        row.addWidget(ScrollArea(side, _SUMMARY_WIDTH))
        self.stack.addWidget(self.drop)
        self.stack.addWidget(content)
        page = QVBoxLayout(self)
        page.setContentsMargins(GAP, GAP, GAP, GAP)
        page.setSpacing(GAP)
        page.addWidget(folders)
        page.addWidget(self.stack, 1)

    def _connect(self) -> None:
        self.input.chosen.connect(self.choose)
        self.output.chosen.connect(lambda path: self._settings.set("output_dir", path))
        self.drop.clicked.connect(self.input.ask)
        self.again.clicked.connect(self.rescan)
        self.frame.wished.connect(self._wish)
        self._settings.replaced.connect(self.show_settings)

    def _with_map(self, sky_map: QWidget) -> None:
        sky_map.frame_clicked.connect(self.select)
        sky_map.set_frames(self.found.frames.values())
        sky_map.set_excluded(self.excluded)
        if self.found.done is not None:
            sky_map.set_canvas(self.found.done.corners_deg)
            sky_map.set_tiles(self.found.done.tiles)

    def _with_table(self, table: QWidget) -> None:
        table.set_frames(self.found.frames.values())
        table.set_excluded(self.excluded)
        table.frame_selected.connect(self.select)
        table.excluded_changed.connect(self.set_excluded)

    # ---- folders -----------------------------------------------------------------------------------------

    def show_settings(self) -> None:
        """Show the folders of the settings, and look at their frames."""
        self.output.line.setText(self._settings.value("output_dir"))
        folder = self._settings.value("input_dir")
        self._take(folder)
        self.stack.setCurrentIndex(bool(folder))

    def _take(self, folder: str) -> None:
        """Show the folder of frames; what was left out of another one says nothing of it."""
        if folder != self._folder:
            self.set_excluded(frozenset())
        self._folder = folder
        self.input.line.setText(folder)

    def choose(self, folder: str) -> None:
        """Take a folder of frames; the results go beside it, unless the user has said where."""
        before = self._settings.value("input_dir")
        if not folder or folder == before:
            return
        self._take(folder)
        if self._settings.value("output_dir") in ("", _beside(before) if before else ""):
            self._settings.set("output_dir", _beside(folder))
            self.output.line.setText(_beside(folder))
        self._settings.set("input_dir", folder)
        self.stack.setCurrentIndex(1)
        self.folder_chosen.emit(folder)

    def dragEnterEvent(self, event: object) -> None:
        """Welcome a folder, or a file in one."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()
            self.drop.set_over(True)

    def dragLeaveEvent(self, event: object) -> None:
        """See it go."""
        super().dragLeaveEvent(event)
        self.drop.set_over(False)

    def dropEvent(self, event: object) -> None:
        """Take the folder that was dropped, or the folder of the file."""
        self.drop.set_over(False)
        path = Path(next(url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()))
        self.choose(str(path if path.is_dir() else path.parent))

    # ---- what was found ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A survey starts."""
        self.found, self._summed_up = Found(), 0
        self.map.do(lambda sky_map: sky_map.clear())
        self.map.do(lambda sky_map: sky_map.set_excluded(self.excluded))
        self.table.do(lambda table: table.set_frames(()))
        self.select("")
        self.summary.show_found(self.found, self.excluded)
        self.summary.status.show()
        self.summary.show_progress(0, 0)

    def hear(self, event: object) -> None:
        """Take in what a survey tells."""
        if isinstance(event, SurveyFrames):
            self.found.add(event.frames)
            for place in (self.map, self.table):
                place.do(lambda widget: widget.add_frames(event.frames))
            if len(self.found.frames) > _WORTH_TELLING * self._summed_up:
                self._summed_up = len(self.found.frames)
                self.summary.show_found(self.found, self.excluded)
        elif isinstance(event, SurveyDone):
            self.found.done = event
            self.map.do(lambda sky_map: sky_map.set_canvas(event.corners_deg))
            self.map.do(lambda sky_map: sky_map.set_tiles(event.tiles))
            self.summary.show_found(self.found, self.excluded)
        elif isinstance(event, PhaseProgress):
            self.summary.show_progress(event.done, event.total)

    def end(self, trouble: str = "") -> None:
        """A survey has ended; `trouble` says why it has found nothing."""
        self.found.trouble = trouble
        self.summary.show_found(self.found, self.excluded)
        self.summary.show_rest()

    @property
    def ready(self) -> bool:
        """Whether there are frames that a run can try."""
        return any(f.usable and f.frame_id not in self.excluded for f in self.found.frames.values())

    def select(self, frame_id: str) -> None:
        """Look at a frame: on the map, in the table, and in words."""
        self._selected = frame_id
        self.map.do(lambda sky_map: sky_map.highlight(frame_id or None))
        if frame_id:
            self.table.do(lambda table: table.select(frame_id))
        self.frame.show_frame(self.found.frames.get(frame_id), frame_id in self.excluded)

    def _wish(self, frame_id: str, out: bool) -> None:
        self.set_excluded(self.excluded | {frame_id} if out else self.excluded - {frame_id})

    def set_excluded(self, frame_ids: frozenset[str]) -> None:
        """Leave out these frames and no others."""
        if frame_ids == self.excluded:
            return
        self.excluded = frame_ids
        for place in (self.map, self.table):
            place.do(lambda widget: widget.set_excluded(frame_ids))
        self.frame.show_frame(self.found.frames.get(self._selected), self._selected in frame_ids)
        self.summary.show_found(self.found, frame_ids)
        self.excluded_changed.emit(frame_ids)

    def shutdown(self) -> None:
        """End what the page has started."""
        self.summary.show_rest()
        self.map.shutdown()
        self.table.shutdown()
        self.frame.shutdown()

    def retranslate(self) -> None:
        """Take the words anew."""
        for row, name, words in (
            (self.input, "frames", self._input_label),
            (self.output, "output", self._output_label),
        ):
            words.setText(tr(f"input.{name}"))
            row.line.setAccessibleName(tr(f"input.{name}"))
            row.button.setText(tr("input.browse"))
            row.line.setPlaceholderText(tr(f"input.{name}.hint"))
        self.again.setText(tr("input.again"))
        self.tabs.setTabText(0, tr("input.map"))
        self.tabs.setTabText(1, tr("input.table"))
        self.drop.retranslate()
        self.summary.retranslate()
        self.summary.show_found(self.found, self.excluded)
        self.frame.show_frame(self.found.frames.get(self._selected), self._selected in self.excluded)


def _beside(folder: str) -> str:
    """Return where the results of a folder go by default."""
    path = Path(folder)
    return str(path.with_name(f"{path.name}_mosaic")) if path.name else ""
