"""The frame that the user looks at: its picture, what it is, and why it is in or out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QImage, QPixmap
from PySide6.QtWidgets import QLabel, QPushButton, QSizePolicy

from zemosaic_events import SurveyFrame
from zemosaic_gui_background import Background
from zemosaic_gui_parts import Card, breakable, date_text, label
from zemosaic_gui_sentences import told
from zemosaic_gui_text import number_text, tr
from zemosaic_types import FrameError

_LEAST_PX = 84  # so much room has the card on a laptop's screen
_SHARP_PX = 600  # twice as wide as a card, since frames are shrunk by whole numbers


class FrameGlimpse(QLabel):
    """A small picture of one frame after another; of a file that cannot be read, nothing."""

    def __init__(self) -> None:
        super().__init__(alignment=Qt.AlignmentFlag.AlignCenter)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.MinimumExpanding)
        self._path = ""
        self._image = QImage()
        self._background = Background(self)

    @property
    def busy(self) -> bool:
        """Whether a picture is still to come."""
        return self._background.busy

    def show_frame(self, path: str) -> None:
        """Show the picture of a file as soon as it is read; an empty path shows none."""
        if path == self._path:
            return
        self._path = path
        self.clear()
        self._background.forget("picture")
        self.setVisible(bool(path))
        if path:
            self.setText(tr("lazy.loading"))
            size = round(_SHARP_PX * self.devicePixelRatioF())
            self._background.ask("picture", lambda: _read(path, size), self._show, self._show_none)

    def sizeHint(self) -> QSize:
        """Ask for little; there may be more."""
        return QSize(0, _LEAST_PX)

    def resizeEvent(self, event: object) -> None:
        """Use the room there is."""
        super().resizeEvent(event)
        if not self.pixmap().isNull():
            self._fit()

    def _show(self, rgba: Any) -> None:
        ny, nx = rgba.shape[:2]
        self._image = QImage(rgba.tobytes(), nx, ny, 4 * nx, QImage.Format.Format_RGBA8888).copy()
        self._fit()

    def _fit(self) -> None:
        ratio = self.devicePixelRatioF()
        smooth = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        pixmap = QPixmap.fromImage(self._image).scaled(self.size() * ratio, *smooth)
        pixmap.setDevicePixelRatio(ratio)
        self.setPixmap(pixmap)

    def _show_none(self, error: Exception) -> None:
        if not isinstance(error, FrameError):
            raise error
        self.clear()
        self.hide()  # why the frame cannot be read is said beside it

    def shutdown(self) -> None:
        """End the thread."""
        self._background.close()


class FrameCard(Card):
    """The frame that the user looks at: what it is, and why it is in or out; `wished` (id, out) changes that."""

    wished = Signal(str, bool)

    def __init__(self) -> None:
        super().__init__(spacing=6)
        self._frame: SurveyFrame | None = None
        self._out = False
        self.name, self.text = label("heading", wrap=True), label("faint", wrap=True)
        self.button, self.picture = QPushButton(), FrameGlimpse()
        self.button.clicked.connect(lambda: self.wished.emit(self._frame.frame_id, not self._out))
        for widget in (self.name, self.text, self.picture, self.button):
            self.column.addWidget(widget, widget is self.picture)
        self.column.addStretch(0)
        self.hide()

    def show_frame(self, frame: SurveyFrame | None, out: bool) -> None:
        """Show a frame, or none; `out` if the user leaves it out."""
        self._frame, self._out = frame, out
        self.setVisible(frame is not None)
        self.picture.show_frame(frame.path if frame else "")
        if frame is None:
            return
        self.name.setText(breakable(frame.frame_id))
        exposure = "" if frame.exposure_s is None else tr("time.seconds", n=number_text(frame.exposure_s, "g"))
        facts = " · ".join(filter(None, (exposure, frame.filter, frame.instrument, date_text(frame.date))))
        state = tr("frame.excluded") if out else told(frame.reason) or tr("frame.in")
        self.text.setText("\n".join(filter(None, (facts, state))))
        self.button.setText(tr("frame.take_in" if out else "frame.leave_out"))
        self.button.setVisible(frame.usable or out)

    def shutdown(self) -> None:
        """End what the card has running."""
        self.picture.shutdown()


def _read(path: str, size: int) -> Any:
    from zemosaic_frame_picture import frame_picture  # numerical libraries: not before they are needed

    return frame_picture(Path(path), size)
