"""Small pieces of legends: a swatch with a word, a ramp of colours with its ends."""

from __future__ import annotations

import numpy as np
from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QBrush, QColor, QImage, QPainter, QPen, QPixmap
from PySide6.QtWidgets import QHBoxLayout, QLabel, QWidget

_SWATCH_PX = 14
_RAMP_PX = 110


class Swatch(QWidget):
    """A coloured square with a word beside it."""

    def __init__(self, colour: str, pattern: Qt.BrushStyle, *, dashed: bool = False) -> None:
        super().__init__()
        self._picture, self._label = QLabel(), QLabel()
        self._picture.setPixmap(_swatch(QColor(colour), pattern, dashed, self.devicePixelRatioF()))
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(5)
        row.addWidget(self._picture)
        row.addWidget(self._label)

    def set_text(self, text: str) -> None:
        """Put a word beside the square."""
        self._label.setText(text)


def _swatch(colour: QColor, pattern: Qt.BrushStyle, dashed: bool, ratio: float) -> QPixmap:
    pixmap = QPixmap(QSize(_SWATCH_PX, _SWATCH_PX) * ratio)
    pixmap.setDevicePixelRatio(ratio)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setPen(QPen(colour, 1.6, Qt.PenStyle.DashLine if dashed else Qt.PenStyle.SolidLine))
    fill = QColor(colour)
    fill.setAlpha(170)
    painter.setBrush(QBrush(fill, pattern))
    painter.drawRect(1, 1, _SWATCH_PX - 3, _SWATCH_PX - 3)
    painter.end()
    return pixmap


class Ramp(QWidget):
    """A strip of colours with a number at either end.

    Parameters
    ----------
    colours : ndarray of uint8, shape (n, 3) or (n, 4)
    """

    def __init__(self, colours: np.ndarray) -> None:
        super().__init__()
        self._low, strip, self._high = QLabel(), QLabel(), QLabel()
        row = np.ascontiguousarray(colours[None, :, :3], dtype=np.uint8)
        image = QImage(row.data, row.shape[1], 1, 3 * row.shape[1], QImage.Format.Format_RGB888)
        strip.setPixmap(QPixmap.fromImage(image.scaled(_RAMP_PX, _SWATCH_PX - 2)))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(5)
        for widget in (self._low, strip, self._high):
            layout.addWidget(widget)

    def set_range(self, low: float, high: float) -> None:
        """Show the numbers that the ends stand for."""
        self._low.setText(f"{low:g}")
        self._high.setText(f"{high:g}")

    def range_shown(self) -> tuple[str, str]:
        """Return the numbers at the ends, as they are shown."""
        return self._low.text(), self._high.text()
