"""Small pieces that all pages are made of: cards, headings, buttons, numbers as people read them."""

from __future__ import annotations

from PySide6.QtCore import QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QFrame, QLabel, QPushButton, QVBoxLayout, QWidget

from zemosaic_gui_text import tr

GAP = 16


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


def label(name: str = "", *, wrap: bool = False) -> QLabel:
    """Return an empty label in one of the styles of `zemosaic_gui_theme`."""
    made = QLabel(wordWrap=wrap)
    made.setObjectName(name)
    return made


def make_primary(button: QPushButton, primary: bool = True) -> None:
    """Give a button the look of the one that leads on, or take it away."""
    button.setProperty("primary", primary)
    button.style().unpolish(button)
    button.style().polish(button)


def show_folder(path: object) -> None:
    """Open a folder or a page in the program that the system has for it."""
    QDesktopServices.openUrl(QUrl.fromLocalFile(str(path)))


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
    return tr("size.gb", n=f"{n_bytes / 1e9:.1f}" if n_bytes < 1e10 else f"{n_bytes / 1e9:.0f}")


def bytes_range(low: float, high: float) -> str:
    """Return a range of memory or disk."""
    first, last = bytes_text(low), bytes_text(high)
    return first if first == last else tr("time.range", low=first, high=last)
