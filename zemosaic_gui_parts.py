"""Small pieces that all pages are made of: cards, headings, buttons, numbers as people read them."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, QRectF, QSize, Qt, QTimer, QUrl
from PySide6.QtGui import QDesktopServices, QFontMetricsF, QKeyEvent
from PySide6.QtWidgets import (
    QApplication,
    QBoxLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from zemosaic_gui_text import number_text, tr

GAP = 16
_LETTERS_PX = 15  # height of a line in the font for which widths are given here
PROGRESS_MS = 60  # between two pictures of a progress: a bar that is set paints its window at once

_STEP = 0.1  # of what is in view, for a key that moves
_ZOOM = 1.25  # for a key that zooms
_MOVES = {
    Qt.Key.Key_Left: (-_STEP, 0.0),
    Qt.Key.Key_Right: (_STEP, 0.0),
    Qt.Key.Key_Up: (0.0, _STEP),
    Qt.Key.Key_Down: (0.0, -_STEP),
}
_ZOOMS = {Qt.Key.Key_Plus: 1 / _ZOOM, Qt.Key.Key_Equal: 1 / _ZOOM, Qt.Key.Key_Minus: _ZOOM}


class TileState(enum.Enum):
    """What a tile of the mosaic is doing."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Later(QTimer):
    """Calls a slot once, some time after it was started; started anew, it begins to wait anew.

    Parameters
    ----------
    parent : QObject
    interval_ms : int
    slot : callable
        A method of a widget; a lambda would hold what it names.
    """

    def __init__(self, parent: QObject, interval_ms: int, slot: Callable[[], None]) -> None:
        super().__init__(parent, singleShot=True, interval=interval_ms)
        self.timeout.connect(slot)

    def soon(self) -> None:
        """Start unless it waits already: what comes in a stream must not put it off."""
        if not self.isActive():
            self.start()


class Card(QFrame):
    """A raised surface with a column of widgets."""

    def __init__(self, *widgets: QWidget, spacing: int = 8) -> None:
        super().__init__()
        self.setObjectName("card")
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(GAP, 14, GAP, 14)
        self.column.setSpacing(spacing)
        for widget in widgets:
            self.column.addWidget(widget)


class FoldingRow(QWidget):
    """Rows of widgets beside each other; where that is too wide, below each other.

    Parameters
    ----------
    rows : QHBoxLayout
    wide : int
        The place of the row that has the room to spare.
    spacing : int
        Between them, in pixels.
    """

    def __init__(self, *rows: QHBoxLayout, wide: int, spacing: int = 8) -> None:
        super().__init__()
        self._rows = rows
        self._box = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(spacing)
        for k, row in enumerate(rows):
            self._box.addLayout(row, k == wide)

    def minimumSizeHint(self) -> QSize:
        """Ask for the width of the widest row."""
        widest = max(row.minimumSize().width() for row in self._rows)
        return QSize(widest, self._box.minimumSize().height())

    def resizeEvent(self, event: QEvent) -> None:
        """Fold or unfold."""
        super().resizeEvent(event)
        self._fold()

    def event(self, event: QEvent) -> bool:
        """Fold or unfold when what is in the rows changes."""
        done = super().event(event)
        if event.type() == QEvent.Type.LayoutRequest:
            self._fold()
        return done

    def _fold(self) -> None:
        wanted = sum(row.minimumSize().width() for row in self._rows) + self._box.spacing() * (len(self._rows) - 1)
        directions = QBoxLayout.Direction
        self._box.setDirection(directions.LeftToRight if wanted <= self.width() else directions.TopToBottom)


class FocusRing(QFrame):
    """Shows that a picture has the keyboard's focus; a border of its own would take room from what it draws."""

    def __init__(self, picture: QWidget) -> None:
        super().__init__(picture)
        self.setObjectName("ring")
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.hide()
        picture.installEventFilter(self)

    def eventFilter(self, picture: QWidget, event: QEvent) -> bool:
        """Follow the picture."""
        if event.type() == QEvent.Type.Resize:
            self.resize(picture.size())
        elif event.type() in (QEvent.Type.FocusIn, QEvent.Type.FocusOut):
            self.setVisible(event.gotFocus())
            self.raise_()
        return super().eventFilter(picture, event)


def label(name: str = "", *, wrap: bool = False) -> QLabel:
    """Return an empty label in one of the styles of `zemosaic_gui_theme`."""
    made = QLabel(wordWrap=wrap)
    made.setObjectName(name)
    return made


def sized(px: int) -> int:
    """Return a length that holds as many letters where the system's font is larger."""
    return max(px, round(px * QFontMetricsF(QApplication.font()).height() / _LETTERS_PX))


class ScrollArea(QScrollArea):
    """Scrolls a widget up and down; the tab key stops at it where keys are needed for that.

    Parameters
    ----------
    inside : QWidget
    width : int, optional
        A fixed width, in pixels; for `sized`.
    stops : bool
        Whether the tab key may stop at it: not where it stops at every line inside.
    """

    def __init__(self, inside: QWidget, width: int | None = None, *, stops: bool = True) -> None:
        super().__init__(widgetResizable=True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        if width is not None:
            self.setFixedWidth(sized(width))
        self.setWidget(inside)
        if stops:
            self.verticalScrollBar().rangeChanged.connect(self._allow_focus)

    def minimumSizeHint(self) -> QSize:
        """Ask for the width that the widget inside needs; it is scrolled up and down only."""
        hint = super().minimumSizeHint()
        needed = self.widget().minimumSizeHint().width() + self.verticalScrollBar().sizeHint().width()
        return QSize(max(hint.width(), needed), hint.height())

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Hear of the widget inside that it needs another width."""
        if watched is self.widget() and event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return super().eventFilter(watched, event)

    def _allow_focus(self, low: int, high: int) -> None:
        policies = Qt.FocusPolicy
        self.setFocusPolicy(policies.StrongFocus if high > low else policies.NoFocus)


def move_by_key(event: QKeyEvent, view: object) -> bool:
    """Move (arrows) or zoom (plus, minus) the view box of a picture; return whether the key does that.

    Parameters
    ----------
    event : QKeyEvent
    view : pyqtgraph.ViewBox
    """
    box: QRectF = view.viewRect()
    if event.key() in _MOVES:
        dx, dy = _MOVES[event.key()]
        view.translateBy((dx * box.width(), dy * box.height()))
    elif event.key() in _ZOOMS:
        view.scaleBy((_ZOOMS[event.key()],) * 2)
    else:
        return False
    return True


def is_for_all(event: QKeyEvent) -> bool:
    """Whether a key asks for everything to be shown: Home, or 0."""
    return event.key() in (Qt.Key.Key_Home, Qt.Key.Key_0)


def make_primary(button: QPushButton, primary: bool = True) -> None:
    """Give a button the look of the one that leads on, or take it away."""
    button.setProperty("primary", primary)
    button.style().unpolish(button)
    button.style().polish(button)


def breakable(name: str) -> str:
    """Return the name of a file so that a label can break it into lines; Qt breaks at spaces only, mostly."""
    return re.sub(r"([_.\-/\\])", "\\1\u200b", name)


def show_folder(path: object) -> None:
    """Open a folder or a page in the program that the system has for it."""
    QDesktopServices.openUrl(QUrl.fromLocalFile(str(path)))


def date_text(date: str) -> str:
    """Return a date of a header, DATE-OBS, to the second."""
    return date.replace("T", " ")[:19]


def duration_text(seconds: float) -> str:
    """Return a time, rounded to what matters."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return tr("time.seconds", n=max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5))
    minutes = round(seconds / 60)
    if minutes < 90:
        return tr("time.minutes", n=minutes)
    hours, rest = divmod(minutes, 60)
    if hours < 10:
        return tr("time.hours_minutes", hours=hours, minutes=f"{10 * (rest // 10):02d}")
    return tr("time.hours", n=round(minutes / 60))


def duration_range(low: float, high: float) -> str:
    """Return a range of time."""
    first, last = duration_text(low), duration_text(high)
    return first if first == last else tr("time.range", low=first, high=last)


def bytes_text(n_bytes: float) -> str:
    """Return an amount of memory or disk."""
    if n_bytes < 1e9:
        return tr("size.mb", n=f"{n_bytes / 1e6:.0f}")
    return tr("size.gb", n=number_text(n_bytes / 1e9, ".1f" if n_bytes < 1e10 else ".0f"))


def bytes_range(low: float, high: float) -> str:
    """Return a range of memory or disk."""
    first, last = bytes_text(low), bytes_text(high)
    return first if first == last else tr("time.range", low=first, high=last)
