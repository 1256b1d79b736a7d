"""The frames' table: what each frame is, whether it is in the mosaic and why not; frames are left out by a tick.

The same table shows the frames of a survey and, after a run, its ledger, the most harmful frames first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QEvent,
    QItemSelectionModel,
    QModelIndex,
    QPersistentModelIndex,
    QSortFilterProxyModel,
    Qt,
    Signal,
)
from PySide6.QtGui import QColor, QKeyEvent, QPalette
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from zemosaic_events import SurveyFrame
from zemosaic_gui_background import Background, let_others_on
from zemosaic_gui_parts import Later, date_text
from zemosaic_gui_sentences import told
from zemosaic_gui_text import number_text, tr
from zemosaic_gui_theme import FollowsLook
from zemosaic_ledger import judge, read_ledger, root_mean_square
from zemosaic_outputs import LedgerRow

_SEARCH_MS = 150  # after the last letter
_RESORT_MS = 250  # after frames have come
_COUNT_MS = 200  # between two counts while frames come
_MANY = 1000  # lines are made in a thread
_LOOKED_AT = 60  # rows, for the widths of the columns
_MAX_WIDTH, _PADDING = 320, 14  # of columns, in pixels
_ENTER = (Qt.Key.Key_Return, Qt.Key.Key_Enter)
_OUT = "out"
_STATES = ("in", "waits", "suggested", "excluded", "out")
_LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
_PLAIN = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemNeverHasChildren
_CHECKABLE = _PLAIN | Qt.ItemFlag.ItemIsUserCheckable
_Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True, slots=True)
class Line:
    """A frame as the table shows it; numbers are NaN where they are not known.

    `searched` is what the search looks through. `state` is ``"in"``, ``"suggested"`` (in, and the mosaic would be
    better without it), ``"waits"`` (for a plate solver) or ``"out"`` (it cannot be used, or was not).
    """

    frame_id: str
    path: str
    state: str
    reason: str
    values: dict[str, float | str]
    searched: str


@dataclass(frozen=True)
class _Column:
    """A column: key of its values and of its words, how a value reads, on which side it stands."""

    key: str
    text: Callable[[Any], str] = str
    number: bool = False


def _digits(form: str) -> Callable[[float], str]:
    return lambda value: "" if math.isnan(value) else number_text(value, form)


_EXPOSURE = _Column("exposure", _digits("g"), number=True)
_SURVEY_COLUMNS = (
    _Column("frame"),
    _EXPOSURE,
    _Column("filter"),
    _Column("date"),
    _Column("instrument"),
    _Column("state"),
    _Column("reason"),
)
_LEDGER_COLUMNS = (
    _Column("frame"),
    _Column("harm", _digits(".2f"), number=True),
    _Column("state"),
    _Column("reason"),
    _Column("fwhm", _digits(".2f"), number=True),
    _Column("elongation", _digits(".2f"), number=True),
    _Column("transparency", _digits(".0%"), number=True),
    _Column("noise", _digits(".3g"), number=True),
    _Column("stars", _digits(".0f"), number=True),
    _Column("rejected", _digits(".2%"), number=True),
    _EXPOSURE,
    _Column("filter"),
    _Column("date"),
)


# ---- lines from what is known ------------------------------------------------------------------------------


def line_of(frame: SurveyFrame) -> Line:
    """Return a frame of a survey as a line."""
    state = _OUT if not frame.usable else "in" if frame.corners_deg else "waits"
    values = {
        "exposure": math.nan if frame.exposure_s is None else frame.exposure_s,
        "filter": frame.filter,
        "date": date_text(frame.date),
        "instrument": frame.instrument,
    }
    return _line(frame.frame_id, frame.path, state, frame.reason, values)


def lines_of_ledger(path: Path) -> list[Line]:
    """Return the frames of a finished run, the most harmful first, then those that are not in the mosaic.

    Harm is that of `zemosaic_ledger.judge`, in percent: how much better the mosaic would be without the frame.

    Raises
    ------
    PlanError
        If there is no ledger, or it is not one.
    """
    rows, n_channels = read_ledger(path, between=let_others_on)
    judgement = judge(rows, n_channels)
    columns = judgement.columns
    noise, width = root_mean_square(columns.noise()), columns.single("fwhm_px")
    harm, suggested = 100.0 * judgement.harm.total, set(judgement.suggested)
    used = []
    for k, row in enumerate(judgement.rows):
        measured = {"harm": float(harm[k]), "noise": float(noise[k]), "fwhm": float(width[k])}
        reason = "; ".join(filter(None, (row.reason, judgement.remarks[k])))
        used.append(_ledger_line(row, "suggested" if k in suggested else "in", reason, measured))
    used.sort(key=lambda line: (_descending(line.values["harm"]), line.frame_id))
    nothing = dict.fromkeys(("harm", "noise", "fwhm"), math.nan)
    out = [_ledger_line(row, _OUT, row.reason, nothing) for row in rows if not row.used]
    return used + sorted(out, key=lambda line: line.frame_id)


def _ledger_line(row: LedgerRow, state: str, reason: str, measured: dict[str, float]) -> Line:
    values = {
        "exposure": _known(row.exptime_s),
        "filter": row.filter,
        "date": date_text(row.date_obs),
        "elongation": _known(row.elongation),
        "transparency": _known(row.transparency),
        "stars": _known(row.n_stars),
        "rejected": _known(row.rejected_fraction),
    }
    return _line(row.frame_id or row.path, row.path, state, reason, values | measured)


def _line(frame_id: str, path: str, state: str, reason: str, values: dict[str, float | str]) -> Line:
    texts = (value for value in values.values() if isinstance(value, str))
    return Line(frame_id, path, state, reason, values, " ".join((frame_id, reason, *texts)).casefold())


def _descending(value: float) -> float:
    return math.inf if math.isnan(value) else -value


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)


# ---- the model -------------------------------------------------------------------------------------------


class FramesModel(QAbstractTableModel):
    """Lines as a table for Qt; the first column has a box whose tick says that the frame is wanted.

    It sorts by itself, by keys that are made once: tens of thousands of comparisons through Qt take seconds.
    """

    excluded_changed = Signal(frozenset)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.columns: tuple[_Column, ...] = _SURVEY_COLUMNS
        self.lines: list[Line] = []
        self.excluded: frozenset[str] = frozenset()
        self._row_of: dict[str, int] = {}
        self._order: tuple[int, Qt.SortOrder] | None = None
        self.colours: dict[str, QColor] = {}

    def replace_all(self, lines: Iterable[Line], columns: tuple[_Column, ...]) -> None:
        """Show these lines, sorted as the user has sorted these columns; other columns are not sorted yet."""
        self.beginResetModel()
        if columns is not self.columns:
            self._order = None
        self.lines, self.columns = list(lines), columns
        self._number_rows()
        self.endResetModel()
        self.sort_again()

    def add(self, lines: Iterable[Line]) -> None:
        """Show these lines too, below the others; one that is known by its id is replaced where it stands."""
        new = []
        for line in lines:
            row = self._row_of.get(line.frame_id)
            if row is None:
                new.append(line)
            else:
                self.lines[row] = line
                self.dataChanged.emit(self.index(row, 0), self.index(row, len(self.columns) - 1))
        if new:
            first = len(self.lines)
            self.beginInsertRows(QModelIndex(), first, first + len(new) - 1)
            self.lines += new
            self._number_rows(first)
            self.endInsertRows()

    def row_of(self, frame_id: str) -> int | None:
        """Return where a frame stands."""
        return self._row_of.get(frame_id)

    def state_of(self, line: Line) -> str:
        """Return what a frame is, the user's wish included."""
        return "excluded" if line.frame_id in self.excluded else line.state

    def can_be_excluded(self, line: Line) -> bool:
        """Whether a wish about the frame makes a difference."""
        return line.state != _OUT or line.frame_id in self.excluded

    def exclude(self, frame_ids: Iterable[str], out: bool = True) -> None:
        """Leave out frames, or take them in again; tells if that changes anything."""
        self.set_excluded(self.excluded | set(frame_ids) if out else self.excluded - set(frame_ids))

    def set_excluded(self, frame_ids: Iterable[str]) -> None:
        """Leave out these frames and no others; tells if that changes anything."""
        wanted = frozenset(frame_ids)
        if wanted != self.excluded:
            self.excluded = wanted
            if self.lines:
                self.dataChanged.emit(self.index(0, 0), self.index(len(self.lines) - 1, len(self.columns) - 1))
            self.excluded_changed.emit(wanted)

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column; what is not known stands last in either order, equals stay as they are.

        A column that is none (-1) ends the sorting: lines stay where they are.
        """
        if not 0 <= column < len(self.columns):
            self._order = None
            return
        self._order = column, order
        down = order == Qt.SortOrder.DescendingOrder
        keys = self._keys(column)
        known = [k for k, key in enumerate(keys) if key == key and key != ""]
        unknown = [k for k, key in enumerate(keys) if key != key or key == ""]
        known.sort(key=keys.__getitem__, reverse=down)
        self.layoutAboutToBeChanged.emit()
        before = self.persistentIndexList()
        names = [self.lines[index.row()].frame_id for index in before]
        self.lines = [self.lines[k] for k in (*known, *unknown)]
        self._number_rows()
        after = [self.index(self._row_of[n], i.column()) for n, i in zip(names, before, strict=True)]
        self.changePersistentIndexList(before, after)
        self.layoutChanged.emit()

    def sort_again(self) -> None:
        """Sort as before, after lines have come."""
        if self._order is not None:
            self.sort(*self._order)

    def _number_rows(self, first: int = 0) -> None:
        """Note where the lines from `first` on stand; those before it must stand where they stood."""
        if first == 0:
            self._row_of = {}
        self._row_of.update((line.frame_id, row) for row, line in enumerate(self.lines[first:], first))

    def _keys(self, column: int) -> list[float] | list[str]:
        """Return what the lines are sorted by: NaN or an empty text where it is not known."""
        key = self.columns[column].key
        if key == "frame":
            return [line.frame_id.casefold() for line in self.lines]
        if key == "reason":
            return [told(line.reason).casefold() for line in self.lines]
        if key == "state":
            words = {state: tr(f"frames.state.{state}").casefold() for state in _STATES}
            return [words[self.state_of(line)] for line in self.lines]
        values = [line.values[key] for line in self.lines]
        return values if self.columns[column].number else [value.casefold() for value in values]

    def _value(self, line: Line, column: int) -> float | str:
        key = self.columns[column].key
        if key == "frame":
            return line.frame_id
        if key == "state":
            return tr(f"frames.state.{self.state_of(line)}")
        return told(line.reason) if key == "reason" else line.values[key]

    # ---- what Qt asks ------------------------------------------------------------------------------------

    def rowCount(self, parent: _Index = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        """Return the number of frames."""
        return 0 if parent.isValid() else len(self.lines)

    def columnCount(self, parent: _Index = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        """Return the number of columns."""
        return 0 if parent.isValid() else len(self.columns)

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> object:
        """Return a column's title, its side, and what it means."""
        if orientation == Qt.Orientation.Horizontal and 0 <= section < len(self.columns):
            if role == Qt.ItemDataRole.DisplayRole:
                return tr(f"frames.column.{self.columns[section].key}")
            if role == Qt.ItemDataRole.ToolTipRole:
                return tr(f"frames.help.{self.columns[section].key}")
            if role == Qt.ItemDataRole.TextAlignmentRole:
                return _RIGHT if self.columns[section].number else _LEFT
        return None

    def flags(self, index: _Index) -> Qt.ItemFlag:
        """Return what can be done with a cell."""
        if index.column() == 0 and self.can_be_excluded(self.lines[index.row()]):
            return _CHECKABLE
        return _PLAIN

    def data(self, index: _Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """Return a cell's text, box, side or colour."""
        line, column = self.lines[index.row()], self.columns[index.column()]
        if role == Qt.ItemDataRole.DisplayRole:
            return column.text(self._value(line, index.column()))
        if role == Qt.ItemDataRole.CheckStateRole and index.column() == 0:
            wanted = line.state != _OUT and line.frame_id not in self.excluded
            return Qt.CheckState.Checked if wanted else Qt.CheckState.Unchecked
        if role == Qt.ItemDataRole.TextAlignmentRole and column.number:
            return _RIGHT
        if role == Qt.ItemDataRole.ForegroundRole:
            return self.colours.get(self.state_of(line))
        if role == Qt.ItemDataRole.ToolTipRole:
            return told(line.reason) or line.path
        return None

    def setData(self, index: _Index, value: object, role: int = Qt.ItemDataRole.EditRole) -> bool:
        """Take a tick of the user."""
        if role != Qt.ItemDataRole.CheckStateRole or index.column() != 0:
            return False
        self.exclude([self.lines[index.row()].frame_id], Qt.CheckState(value) == Qt.CheckState.Unchecked)
        return True


class _Filter(QSortFilterProxyModel):
    """Shows the lines that hold some words and are in a state; sorting is left to the model."""

    def __init__(self, model: FramesModel, parent: QWidget) -> None:
        super().__init__(parent)
        self._model = model
        self._words: list[str] = []
        self._state, self._everything = "", True
        self.setDynamicSortFilter(False)
        self.setSourceModel(model)

    def look_for(self, text: str, state: str) -> None:
        """Show lines that hold all words of a text, in any case, and are in a state (any if it is empty)."""
        self.beginFilterChange()
        self._words, self._state = text.casefold().split(), state
        self._everything = not (self._words or state)
        self.endFilterChange()

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Let the model sort."""
        self._model.sort(column, order)

    def filterAcceptsRow(self, row: int, _parent: _Index) -> bool:
        """Whether a line is shown."""
        return self._everything or self._accepts(self._model.lines[row])

    def line(self, row: int) -> Line:
        """Return the line at a row that is shown."""
        # Where all are shown they stand as in the model; to ask Qt for each of thousands takes long.
        return self._model.lines[row if self._everything else self.mapToSource(self.index(row, 0)).row()]

    def _accepts(self, line: Line) -> bool:
        if self._state and self._model.state_of(line) != self._state:
            return False
        return all(word in line.searched or word in told(line.reason).casefold() for word in self._words)


# ---- the widget ------------------------------------------------------------------------------------------


class FramesTable(FollowsLook, QWidget):
    """The table with its search box, and what can be done with the frames selected.

    `frame_selected` has the id of the frame that the user goes to, `excluded_changed` all that are left out.
    """

    frame_selected = Signal(str)
    excluded_changed = Signal(frozenset)
    failed = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model = FramesModel(self)
        self._filter = _Filter(self.model, self)
        self._background = Background(self)
        self._silent = False
        self._coming: list[SurveyFrame] | None = None
        self._build()
        self.retranslate()
        self._paint_theme()
        self.model.excluded_changed.connect(self.excluded_changed)
        for signal in (self.model.excluded_changed, self.model.modelReset):
            signal.connect(self._count)
        self.model.rowsInserted.connect(self._counting.soon)  # all are counted, so not for every batch
        self._count()

    # ---- what is shown -----------------------------------------------------------------------------------

    def set_frames(self, frames: Iterable[SurveyFrame]) -> None:
        """Show the frames of a survey, and no others."""
        frames = tuple(frames)
        self._coming = [] if len(frames) > _MANY else None
        if len(frames) > _MANY:
            self._background.ask("lines", lambda: [line_of(frame) for frame in frames], self._show_survey)
        else:
            self._background.forget("lines")
            self._show_survey([line_of(frame) for frame in frames])

    def _show_survey(self, lines: list[Line]) -> None:
        self._show(lines, _SURVEY_COLUMNS)
        coming, self._coming = self._coming, None
        if coming:
            self.add_frames(coming)

    def add_frames(self, frames: Iterable[SurveyFrame]) -> None:
        """Show frames of a survey too; one that is known by its id is replaced."""
        if self._coming is not None:  # those before them are still being made ready
            self._coming += frames
            return
        if self.model.columns is not _SURVEY_COLUMNS:
            self.set_frames(())
        first = not self.model.lines
        self.model.add(map(line_of, frames))
        self._resort.start()
        if first:
            self._settle_columns()

    def set_ledger(self, path: Path) -> None:
        """Show the frames of a finished run, the most harmful first; read in a thread, `failed` says why not."""
        self._coming = None
        self._background.ask("lines", lambda: lines_of_ledger(path), self._show_ledger, self._on_error)

    def _show_ledger(self, lines: list[Line]) -> None:
        self._view.scrollToTop()
        self._unsort()  # the most harmful first, whatever was looked for in another ledger
        self._show(lines, _LEDGER_COLUMNS)

    def _show(self, lines: list[Line], columns: tuple[_Column, ...]) -> None:
        if columns is not self.model.columns:
            self._unsort()
        self.model.replace_all(lines, columns)
        self._settle_columns()

    def _unsort(self) -> None:
        self._view.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)

    def _on_error(self, error: Exception) -> None:
        self._counts.setText(told(str(error)))
        self.failed.emit(str(error))

    def excluded(self) -> frozenset[str]:
        """Return the ids of the frames that the user leaves out."""
        return self.model.excluded

    def set_excluded(self, frame_ids: Iterable[str]) -> None:
        """Leave out these frames and no others."""
        self.model.set_excluded(frame_ids)

    def suggested(self) -> frozenset[str]:
        """Return the ids of the frames that the mosaic would be better without."""
        return frozenset(line.frame_id for line in self.model.lines if line.state == "suggested")

    def select(self, frame_id: str) -> None:
        """Go to a frame, without `frame_selected`; nothing happens if it is not shown."""
        row = self.model.row_of(frame_id)
        index = QModelIndex() if row is None else self._filter.mapFromSource(self.model.index(row, 0))
        if index.isValid():
            self._silent = True
            try:
                flags = QItemSelectionModel.SelectionFlag
                how = flags.ClearAndSelect | flags.Rows
                self._view.selectionModel().setCurrentIndex(index, how)
            finally:
                self._silent = False
            self._view.scrollTo(index)

    def path_of(self, frame_id: str) -> str:
        """Return the file of a frame, an empty text if the table does not have it."""
        row = self.model.row_of(frame_id)
        return "" if row is None else self.model.lines[row].path

    def shutdown(self) -> None:
        """End the thread and the timers; the table is of no use afterwards."""
        for timer in self._timers():
            timer.stop()
        self._background.close()

    @property
    def busy(self) -> bool:
        """Whether something is still to be shown."""
        return self._background.busy or any(timer.isActive() for timer in self._timers())

    def _timers(self) -> tuple[Later, ...]:
        return self._search_timer, self._resort, self._counting

    def retranslate(self) -> None:
        """Take the words anew, after the language has changed."""
        self._search.setPlaceholderText(tr("frames.search"))
        self._search.setAccessibleName(tr("frames.search"))
        self._state.setAccessibleName(tr("frames.which"))
        self._view.setAccessibleName(tr("frames.name"))
        self._view.setAccessibleDescription(tr("frames.keys"))
        self._leave_out.setText(tr("frames.leave_out"))
        self._take_in.setText(tr("frames.take_in"))
        for k, state in enumerate(("", *_STATES)):
            self._state.setItemText(k, tr(f"frames.state.{state}" if state else "frames.state.all"))
        self.model.headerDataChanged.emit(Qt.Orientation.Horizontal, 0, len(self.model.columns) - 1)
        self._view.viewport().update()
        self._look()

    # ---- building ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._search = QLineEdit(clearButtonEnabled=True)
        self._state = QComboBox()
        for state in ("", *_STATES):
            self._state.addItem("", state)
        self._counts = QLabel()
        self._leave_out, self._take_in = QPushButton(), QPushButton()
        self._leave_out.clicked.connect(self._leave_out_selected)
        self._take_in.clicked.connect(self._take_in_selected)
        self._search_timer = Later(self, _SEARCH_MS, self._look)
        self._resort = Later(self, _RESORT_MS, self.model.sort_again)
        self._counting = Later(self, _COUNT_MS, self._count)
        self._search.textChanged.connect(self._on_search)
        self._state.currentIndexChanged.connect(self._look)
        self._view = self._table()
        bar = QHBoxLayout()
        bar.addWidget(self._search, 1)
        bar.addWidget(self._state)
        bar.addWidget(self._leave_out)
        bar.addWidget(self._take_in)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(bar)
        column.addWidget(self._view, 1)
        column.addWidget(self._counts)

    def _table(self) -> QTableView:
        view = QTableView()
        view.setModel(self._filter)
        view.setSortingEnabled(True)
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        view.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        view.setAlternatingRowColors(True)
        view.setShowGrid(False)
        view.setWordWrap(False)
        view.setTabKeyNavigation(False)  # the tab key leaves the table
        view.verticalHeader().hide()
        view.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        view.verticalHeader().setDefaultSectionSize(view.fontMetrics().height() + 8)
        view.horizontalHeader().setSortIndicatorClearable(True)
        view.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        view.horizontalHeader().setStretchLastSection(True)
        view.horizontalHeader().setHighlightSections(False)
        # A selection of its own, always empty: of the table's it would look at every cell when it is painted.
        view.horizontalHeader().setSelectionModel(QItemSelectionModel(self._filter, view))
        view.selectionModel().currentRowChanged.connect(self._on_current)
        view.installEventFilter(self)
        return view

    def _settle_columns(self) -> None:
        self._view.horizontalHeader().setResizeContentsPrecision(_LOOKED_AT)
        self._view.resizeColumnsToContents()
        metrics = self._view.fontMetrics()
        words = max(metrics.horizontalAdvance(tr(f"frames.state.{state}")) for state in _STATES)
        for k, column in enumerate(self.model.columns):
            wanted = max(self._view.columnWidth(k), words + _PADDING if column.key == "state" else 0)
            self._view.setColumnWidth(k, min(wanted, _MAX_WIDTH))

    def _paint_theme(self) -> None:
        palette = self.palette()
        dark = palette.color(QPalette.ColorRole.Base).lightness() < 128
        faint = palette.color(QPalette.ColorRole.PlaceholderText)
        warm = QColor("#e69f00" if dark else "#a35200")
        self.model.colours = {"out": faint, "excluded": faint, "suggested": warm, "waits": warm}

    # ---- what the user does ------------------------------------------------------------------------------

    # Slots are methods: a lambda would hold the table, which then never goes.

    def _on_search(self) -> None:
        self._search_timer.start()

    def _leave_out_selected(self) -> None:
        self._wish(out=True)

    def _take_in_selected(self) -> None:
        self._wish(out=False)

    def _look(self) -> None:
        self._search_timer.stop()
        self._filter.look_for(self._search.text(), self._state.currentData())
        self._count()

    def _on_current(self, index: QModelIndex) -> None:
        if index.isValid() and not self._silent:
            self.frame_selected.emit(self._line(index).frame_id)

    def _line(self, index: QModelIndex) -> Line:
        return self._filter.line(index.row())

    def _wish(self, *, out: bool) -> None:
        """Leave out the frames selected, or take them in."""
        # Not by `selectedRows`, which looks at each cell.
        ranges = self._view.selectionModel().selection()
        rows = {row for part in ranges for row in range(part.top(), part.bottom() + 1)}
        lines = [self._filter.line(row) for row in rows]
        self.model.exclude([line.frame_id for line in lines if self.model.can_be_excluded(line)], out)

    def eventFilter(self, watched: object, event: QEvent) -> bool:
        """Let the space bar turn the ticks of all frames selected, as the current one's; Ctrl and Enter sort."""
        if watched is self._view and event.type() == QEvent.Type.KeyPress and self._on_key(event):
            return True
        return super().eventFilter(watched, event)

    def _on_key(self, event: QKeyEvent) -> bool:
        current = self._view.currentIndex()
        if event.key() == Qt.Key.Key_Space:
            if current.isValid():
                self._wish(out=self._line(current).frame_id not in self.model.excluded)
            return True
        sorts = event.modifiers() & Qt.KeyboardModifier.ControlModifier and event.key() in _ENTER
        if sorts and current.isValid():
            header = self._view.horizontalHeader()
            again = header.sortIndicatorSection() == current.column()
            down = again and header.sortIndicatorOrder() == Qt.SortOrder.AscendingOrder
            order = Qt.SortOrder.DescendingOrder if down else Qt.SortOrder.AscendingOrder
            header.setSortIndicator(current.column(), order)
        return bool(sorts)

    def _count(self) -> None:
        self._counting.stop()
        lines, excluded = self.model.lines, self.model.excluded
        n_in = sum(line.state != _OUT and line.frame_id not in excluded for line in lines)
        n_mine = sum(line.frame_id in excluded for line in lines)
        self._counts.setText(
            tr("frames.counts", shown=self._filter.rowCount(), n=len(lines), used=n_in, mine=n_mine)
        )
