"""The picture of the frame that the user looks at, read beside the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtGui import QImage, QPixmap
from PySide6.QtWidgets import QLabel, QSizePolicy

from zemosaic_gui_background import Background
from zemosaic_gui_text import tr
from zemosaic_types import FrameError

_HEIGHT = 190


class FrameGlimpse(QLabel):
    """A small picture of one frame after another; of a file that cannot be read, nothing."""

    def __init__(self) -> None:
        super().__init__(alignment=Qt.AlignmentFlag.AlignCenter)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setFixedHeight(_HEIGHT)
        self._path = ""
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
            size = round(2 * _HEIGHT * self.devicePixelRatioF())
            self._background.ask("picture", lambda: _read(path, size), self._show, self._show_none)

    def _show(self, rgba: Any) -> None:
        ny, nx = rgba.shape[:2]
        image = QImage(rgba.tobytes(), nx, ny, 4 * nx, QImage.Format.Format_RGBA8888)
        ratio = self.devicePixelRatioF()
        smooth = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        pixmap = QPixmap.fromImage(image).scaled(self.size() * ratio, *smooth)
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


def _read(path: str, size: int) -> Any:
    from zemosaic_frame_picture import frame_picture  # numerical libraries: not before they are needed

    return frame_picture(Path(path), size)
