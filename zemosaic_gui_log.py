"""What a run says: lines with a level, filtered by level and words; and the list of what went wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import NamedTuple

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt, Signal
from PySide6.QtGui import QColor, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QPlainTextEdit,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from zemosaic_gui_parts import Later
from zemosaic_gui_sentences import told
from zemosaic_gui_text import tr
from zemosaic_gui_theme import FollowsLanguage

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_MOST_LINES = 5000
_GATHER_MS = 30  # lines that come meanwhile are shown together
_AT_A_TIME = 300  # lines of the log; more would keep the window waiting
_COLOURS = {"WARNING": "#c47f17", "ERROR": "#d2453a"}  # readable on light and dark


#: A sentence of a run, in English, or what says something in the language in use.
Words = str | Callable[[], str]


def _spoken(words: Words) -> Callable[[], str]:
    return partial(told, words) if isinstance(words, str) else words


def _format(colour: str) -> QTextCharFormat:
    made = QTextCharFormat()
    made.setForeground(QColor(colour))
    return made


_PLAIN, _FORMATS = QTextCharFormat(), {level: _format(colour) for level, colour in _COLOURS.items()}


class LogLine(NamedTuple):
    """A line of the log; it is said anew each time it is shown."""

    time: str
    level: str
    say: Callable[[], str]

    @property
    def text(self) -> str:
        """The line in the language in use."""
        return self.say()


class LogView(FollowsLanguage, QWidget):
    """The log of a run; the last `_MOST_LINES` lines of it, all are in the file beside the mosaic."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[LogLine] = deque(maxlen=_MOST_LINES)
        self._coming: deque[LogLine] = deque(maxlen=_MOST_LINES)  # to be shown
        self._soon = Later(self, _GATHER_MS, self._show_some)
        self.level, self.search = QComboBox(), QLineEdit(clearButtonEnabled=True)
        self.level.addItems([""] * len(LEVELS))
        self.level.setCurrentIndex(LEVELS.index("INFO"))
        self.view = QPlainTextEdit(readOnly=True, maximumBlockCount=_MOST_LINES)
        self.view.setLineWrapMode(QPlainTextEdit.LineWrapMode.WidgetWidth)
        self.level.currentIndexChanged.connect(self._show_all)
        self.search.textChanged.connect(self._show_all)
        top = QHBoxLayout()
        top.addWidget(self.level)
        top.addWidget(self.search, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(10, 10, 10, 10)
        column.addLayout(top)
        column.addWidget(self.view, 1)
        self.retranslate()

    def add(self, words: Words, level: str = "INFO") -> None:
        """Add a line."""
        time = datetime.now().strftime("%H:%M:%S")
        line = LogLine(time, level if level in LEVELS else "INFO", _spoken(words))
        self.lines.append(line)
        if self._wanted(line):
            self._show_soon([line])

    def clear(self) -> None:
        """Forget all lines."""
        self.lines.clear()
        self._coming.clear()
        self.view.clear()

    def shutdown(self) -> None:
        """Show nothing more."""
        self._soon.stop()

    @property
    def busy(self) -> bool:
        """Whether there are lines still to be shown."""
        return bool(self._coming)

    def _wanted(self, line: LogLine) -> bool:
        if LEVELS.index(line.level) < self.level.currentIndex():
            return False
        words = self.search.text().casefold().split()
        return not words or all(word in line.text.casefold() for word in words)

    def _show_all(self) -> None:
        self.view.clear()
        self._coming.clear()
        self._show_soon(line for line in self.lines if self._wanted(line))

    def _show_soon(self, lines: Iterable[LogLine]) -> None:
        self._coming.extend(lines)
        if self._coming:
            self._soon.soon()

    def _show_some(self) -> None:
        """Put some of the lines that have come below the others; go along with them if the end was in view."""
        bar = self.view.verticalScrollBar()
        at_end = bar.value() == bar.maximum()
        cursor = QTextCursor(self.view.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.beginEditBlock()
        for _ in range(min(_AT_A_TIME, len(self._coming))):
            line = self._coming.popleft()
            if not self.view.document().isEmpty():
                cursor.insertBlock()
            cursor.insertText(f"{line.time}  {line.text}", _FORMATS.get(line.level, _PLAIN))
        cursor.endEditBlock()
        if at_end:
            bar.setValue(bar.maximum())
        if self._coming:
            self._soon.start()

    def retranslate(self) -> None:
        """Take the words anew."""
        for k, level in enumerate(LEVELS):
            self.level.setItemText(k, tr(f"log.level.{level}"))
        self.level.setAccessibleName(tr("log.level"))
        self.search.setPlaceholderText(tr("log.search"))
        self.search.setAccessibleName(tr("log.search"))
        self.view.setAccessibleName(tr("run.log"))
        if self.lines:
            self._show_all()


_Row = tuple[Callable[[], str], Callable[[], str]]


class _Rows(QAbstractTableModel):
    """What went wrong, as a table for Qt, which asks for the few rows that it shows."""

    _PARENT = QModelIndex()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.rows: list[_Row] = []

    def add(self, rows: list[_Row]) -> None:
        """Show these rows too, below the others."""
        self.beginInsertRows(QModelIndex(), len(self.rows), len(self.rows) + len(rows) - 1)
        self.rows += rows
        self.endInsertRows()

    def clear(self) -> None:
        """Forget all rows."""
        self.beginResetModel()
        self.rows = []
        self.endResetModel()

    def words_changed(self) -> None:
        """Say everything anew."""
        self.headerDataChanged.emit(Qt.Orientation.Horizontal, 0, 1)
        if self.rows:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self.rows) - 1, 1))

    def rowCount(self, parent: QModelIndex | QPersistentModelIndex = _PARENT) -> int:
        """Return the number of rows."""
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: QModelIndex | QPersistentModelIndex = _PARENT) -> int:
        """Return the number of columns: what, and why."""
        return 0 if parent.isValid() else 2

    def data(self, index: QModelIndex | QPersistentModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """Return the text of a cell; the same as its tip, because it may be long."""
        wanted = role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole)
        return self.rows[index.row()][index.column()]() if wanted else None

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> object:
        """Return the title of a column."""
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return tr(("problems.what", "problems.why")[section])
        return None


class Problems(FollowsLanguage, QTableView):
    """What is missing from the mosaic, as it comes: what it is, and why; `counted` has their number."""

    counted = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._rows = _Rows(self)
        self._coming: list[_Row] = []
        self._soon = Later(self, _GATHER_MS, self.show_now)
        self.setModel(self._rows)
        self.setAlternatingRowColors(True)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTabKeyNavigation(False)  # the tab key leaves the table
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 6)
        self.horizontalHeader().resizeSection(0, 170)
        self.horizontalHeader().setStretchLastSection(True)
        self.horizontalHeader().setHighlightSections(False)
        self.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.retranslate()

    def add(self, what: Words, why: Words) -> None:
        """Add a line, soon."""
        self._coming.append((_spoken(what), _spoken(why)))
        self._soon.soon()

    def show_now(self) -> None:
        """Show what has come."""
        self._soon.stop()
        coming, self._coming = self._coming, []
        if coming:
            self._rows.add(coming)
            self.counted.emit(self.count())

    def count(self) -> int:
        """Return how many lines there are to be seen."""
        return len(self._rows.rows)

    def clear(self) -> None:
        """Forget all lines."""
        self.shutdown()
        self._rows.clear()
        self.counted.emit(0)

    def shutdown(self) -> None:
        """Show nothing more."""
        self._soon.stop()
        self._coming.clear()

    def retranslate(self) -> None:
        """Take the words anew."""
        self.setAccessibleName(tr("problems.name"))
        self._rows.words_changed()
