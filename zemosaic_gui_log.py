"""What a run says: lines with a level, filtered by level and words; and the list of what went wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial
from html import escape
from typing import NamedTuple

from PySide6.QtCore import Signal
from PySide6.QtGui import QTextCursor
from PySide6.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QPlainTextEdit,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from zemosaic_gui_sentences import told
from zemosaic_gui_text import tr
from zemosaic_gui_theme import FollowsLanguage

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_MOST_LINES = 5000
_COLOURS = {"WARNING": "#c47f17", "ERROR": "#d2453a"}  # readable on light and dark


#: A sentence of a run, in English, or what says something in the language in use.
Words = str | Callable[[], str]


def _spoken(words: Words) -> Callable[[], str]:
    return partial(told, words) if isinstance(words, str) else words


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
            self.view.appendHtml(_html(line))

    def clear(self) -> None:
        """Forget all lines."""
        self.lines.clear()
        self.view.clear()

    def _wanted(self, line: LogLine) -> bool:
        if LEVELS.index(line.level) < self.level.currentIndex():
            return False
        words = self.search.text().casefold().split()
        return not words or all(word in line.text.casefold() for word in words)

    def _show_all(self) -> None:
        self.view.clear()
        wanted = [_html(line) for line in self.lines if self._wanted(line)]
        if wanted:
            self.view.appendHtml("<br>".join(wanted))
        self.view.moveCursor(QTextCursor.MoveOperation.End)

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


def _html(line: LogLine) -> str:
    text = escape(f"{line.time}  {line.text}").replace("\n", "<br>")
    colour = _COLOURS.get(line.level)
    return f'<span style="color:{colour}">{text}</span>' if colour else f"<span>{text}</span>"


class Problems(FollowsLanguage, QTreeWidget):
    """What is missing from the mosaic, as it comes: what it is, and why; `counted` has their number."""

    counted = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._words: list[tuple[Callable[[], str], Callable[[], str]]] = []
        self.setRootIsDecorated(False)
        self.setUniformRowHeights(True)
        self.setAlternatingRowColors(True)
        self.setColumnCount(2)
        self.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Interactive)
        self.header().resizeSection(0, 170)
        self.retranslate()

    def add(self, what: Words, why: Words) -> None:
        """Add a line."""
        self._words.append((_spoken(what), _spoken(why)))
        self._say(QTreeWidgetItem(self), *self._words[-1])
        self.counted.emit(self.topLevelItemCount())

    def clear(self) -> None:
        """Forget all lines."""
        super().clear()
        self._words.clear()
        self.counted.emit(0)

    def retranslate(self) -> None:
        """Take the words anew."""
        self.setHeaderLabels([tr("problems.what"), tr("problems.why")])
        self.setAccessibleName(tr("problems.name"))
        for row, words in enumerate(self._words):
            self._say(self.topLevelItem(row), *words)

    @staticmethod
    def _say(item: QTreeWidgetItem, *words: Callable[[], str]) -> None:
        for column, say in enumerate(words):
            item.setText(column, say())
            item.setToolTip(column, say())
