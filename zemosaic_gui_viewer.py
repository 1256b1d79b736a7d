"""The mosaic viewer: pan, zoom, stretch, channels, coverage, and what lies under the cursor.

Two pictures are shown: the whole mosaic, coarse, and above it what is in view at the scale of the screen, read and
stretched in a thread whenever the view or the stretch changes. The file is never read whole into memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QKeyEvent, QPainter, QPalette
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from zemosaic_events import CancelToken
from zemosaic_gui_background import Background
from zemosaic_gui_legend import Ramp
from zemosaic_gui_parts import FocusRing, FoldingRow, Later, is_for_all, move_by_key
from zemosaic_gui_pyramid import (
    MODES,
    ImageInfo,
    Part,
    Stretch,
    Tones,
    describe_image,
    picture_of,
    read_part,
    step_for,
    tones_of,
)
from zemosaic_gui_sentences import told
from zemosaic_gui_sky import dec_text, ra_text
from zemosaic_gui_text import number_text, tr
from zemosaic_gui_theme import FollowsLook
from zemosaic_types import FrameError, Rect

_OVERVIEW_PX = 700
_MAX_PICTURE_PX = 2200
_SETTLE_MS = 60
_CLOSEST = 8  # image pixels across the window at the closest
_COVERAGE_OPACITY = 0.6
_COLOUR_MAP = "viridis"
_SLIDER_STEPS = 100
_SLIDERS = {"black": (-4.0, 8.0), "white": (-6.0, 4.0), "strength": (-2.0, 2.0)}


@dataclass(frozen=True)
class _Layer:
    """A file and what is in memory of it: the whole, coarse, and what is in view."""

    info: ImageInfo
    whole: Part
    tones: Tones
    view: Part | None = None

    def at(self, x: float, y: float) -> tuple[np.ndarray, int] | None:
        """Return the values at a position and how many pixels a side they are means of."""
        for part in (self.view, self.whole):
            values = None if part is None else part.at(x, y)
            if values is not None:
                return values, part.step
        return None


def _load(path: Path, cancel: CancelToken) -> _Layer:
    info = describe_image(path)
    step = 2 * step_for(info.rect, (_OVERVIEW_PX, _OVERVIEW_PX))
    whole = read_part(info, info.rect, step, cancel)
    return _Layer(info, whole, tones_of(whole.pixels))


class MosaicViewer(FollowsLook, QWidget):
    """Shows a mosaic of any size.

    The wheel zooms, dragging moves; with the keyboard: arrows, plus, minus, Home or 0 for all, 1 for one to one.
    `opened` has the path when the picture is there, `failed` says why it is not.
    """

    opened = Signal(str)
    failed = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layer: _Layer | None = None
        self._coverage: _Layer | None = None
        self._coverage_path: Path | None = None
        self._cancel = CancelToken()
        self._reading = CancelToken()
        self._background = Background(self)
        self._settle = Later(self, _SETTLE_MS, self._read_view)
        self._message = ("viewer.empty", {})
        self._build()
        self.retranslate()
        self._paint_theme()
        self._enable()

    # ---- what is shown -----------------------------------------------------------------------------------

    def open(self, path: Path | str) -> None:
        """Show a mosaic, with the coverage beside it if there is one; returns at once."""
        path = Path(path)
        self.close_file()
        beside = path.with_name(f"{path.stem}_coverage{path.suffix}")
        self._coverage_path = beside if beside.is_file() and beside != path else None
        self._say("viewer.loading", name=path.name)
        cancel = self._cancel = CancelToken()
        self._background.ask("open", lambda: _load(path, cancel), self._show_layer, self._on_error)

    def close_file(self) -> None:
        """Show nothing."""
        self._cancel.cancel()
        self._reading.cancel()
        for name in ("open", "view", "coverage", "paint"):
            self._background.forget(name)
        self._layer = self._coverage = self._coverage_path = None
        for item in (self._whole_item, self._view_item, self._coverage_item):
            item.clear()
        self._say("viewer.empty")
        self._readout.setText("")
        self._enable()

    def shutdown(self) -> None:
        """End the thread and the timers; the viewer is of no use afterwards."""
        self._settle.stop()
        self._cancel.cancel()
        self._reading.cancel()
        self._background.close()

    @property
    def busy(self) -> bool:
        """Whether something is still to be shown."""
        return self._background.busy or self._settle.isActive()

    def fit(self) -> None:
        """Show the whole mosaic."""
        if self._layer is not None:
            _, ny, nx = self._layer.info.shape
            self._view.setRange(QRectF(-0.5, -0.5, nx, ny), padding=0.02)

    def one_to_one(self) -> None:
        """Show a pixel of the mosaic on a pixel of the screen."""
        x, y = self._view.viewRect().center().toTuple()
        ratio = self.devicePixelRatioF()
        width, height = self._view.width() * ratio, self._view.height() * ratio
        self._view.setRange(QRectF(x - width / 2, y - height / 2, width, height), padding=0)

    def stretch(self) -> Stretch:
        """Return the stretch that the controls ask for."""
        values = {}
        for name, (low, high) in _SLIDERS.items():
            share = self._sliders[name].value() / _SLIDER_STEPS
            values[name] = share * (high if share > 0 else -low)
        return Stretch(self._mode.currentData(), **values)

    def reset_stretch(self) -> None:
        """Stretch as fits the image."""
        for slider in self._sliders.values():
            slider.setValue(0)

    def zoom(self) -> float:
        """Return how many pixels of the screen a pixel of the mosaic has."""
        return self._view.width() * self.devicePixelRatioF() / max(self._view.viewRect().width(), 1e-9)

    def retranslate(self) -> None:
        """Take the words anew, after the language has changed."""
        self._plot.setAccessibleName(tr("viewer.name"))
        self._plot.setAccessibleDescription(tr("viewer.help"))
        self._fit_button.setText(tr("viewer.fit"))
        self._one_button.setText(tr("viewer.one_to_one"))
        self._reset_button.setText(tr("viewer.reset"))
        self._coverage_box.setText(tr("viewer.coverage"))
        self._channel.setAccessibleName(tr("viewer.channel"))
        self._mode.setAccessibleName(tr("viewer.mode"))
        for k in range(self._channel.count()):
            self._channel.setItemText(k, tr(f"viewer.channel.{('rgb', 'red', 'green', 'blue')[k]}"))
        for k, mode in enumerate(MODES):
            self._mode.setItemText(k, tr(f"viewer.mode.{mode}"))
        for name, label in self._slider_labels.items():
            label.setText(tr(f"viewer.{name}"))
            self._sliders[name].setAccessibleName(tr(f"viewer.{name}"))
            self._sliders[name].setToolTip(tr(f"viewer.help.{name}"))
        self._say(self._message[0], **self._message[1])

    # ---- building ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._plot = pg.GraphicsView()
        self._plot.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self._view = pg.ViewBox(lockAspect=True, enableMenu=False)
        self._plot.setCentralItem(self._view)
        items = [pg.ImageItem(axisOrder="row-major") for _ in range(3)]
        self._whole_item, self._view_item, self._coverage_item = items
        self._coverage_item.setColorMap(pg.colormap.get(_COLOUR_MAP))
        self._coverage_item.setOpacity(_COVERAGE_OPACITY)
        for level, item in enumerate(items):
            item.setZValue(level)
            self._view.addItem(item, ignoreBounds=True)
        self._view.sigRangeChanged.connect(self._on_view)
        self._plot.scene().sigMouseMoved.connect(self._on_hover)
        self._plot.installEventFilter(self)
        FocusRing(self._plot)
        self._note = QLabel(self._plot, alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True)
        self._readout, self._zoom_label = QLabel(), QLabel()
        self._readout.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._bar())
        column.addWidget(self._plot, 1)
        column.addLayout(self._foot())

    def _bar(self) -> FoldingRow:
        self._fit_button, self._one_button, self._reset_button = QPushButton(), QPushButton(), QPushButton()
        self._fit_button.clicked.connect(self.fit)
        self._one_button.clicked.connect(self.one_to_one)
        self._reset_button.clicked.connect(self.reset_stretch)
        self._channel, self._mode = QComboBox(), QComboBox()
        for channel in (None, 0, 1, 2):
            self._channel.addItem("", channel)
        for mode in MODES:
            self._mode.addItem("", mode)
        self._channel.currentIndexChanged.connect(self._paint)
        self._mode.currentIndexChanged.connect(self._paint)
        views, sliders = QHBoxLayout(), QHBoxLayout()
        for widget in (self._fit_button, self._one_button, self._channel, self._mode):
            views.addWidget(widget)
        views.addStretch(0)
        self._sliders = {name: self._slider() for name in _SLIDERS}
        self._slider_labels = {name: QLabel(buddy=slider) for name, slider in self._sliders.items()}
        for name, slider in self._sliders.items():
            sliders.addWidget(self._slider_labels[name])
            sliders.addWidget(slider, 1)
        sliders.addWidget(self._reset_button)
        return FoldingRow(views, sliders, wide=1)

    def _slider(self) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal, minimum=-_SLIDER_STEPS, maximum=_SLIDER_STEPS)
        slider.setMinimumWidth(60)
        slider.valueChanged.connect(self._paint)
        return slider

    def _foot(self) -> QHBoxLayout:
        self._coverage_box = QCheckBox()
        self._coverage_box.toggled.connect(self._on_coverage)
        self._ramp = Ramp(pg.colormap.get(_COLOUR_MAP).getLookupTable(0.0, 1.0, 64))
        self._ramp.hide()
        foot = QHBoxLayout()
        foot.setContentsMargins(8, 2, 8, 4)
        foot.addWidget(self._coverage_box)
        foot.addWidget(self._ramp)
        foot.addSpacing(12)
        foot.addWidget(self._readout, 1)
        foot.addWidget(self._zoom_label)
        return foot

    def _paint_theme(self) -> None:
        self._plot.setBackground(self.palette().color(QPalette.ColorRole.Base))

    def _enable(self) -> None:
        there = self._layer is not None
        colour = there and self._layer.info.shape[0] == 3
        for widget in (self._fit_button, self._one_button, self._reset_button, *self._sliders.values()):
            widget.setEnabled(there)
        self._channel.setVisible(colour)
        self._mode.setVisible(colour)
        self._coverage_box.setVisible(self._coverage_path is not None)
        self._ramp.setVisible(self._coverage is not None and self._coverage_box.isChecked())

    def _say(self, key: str, **values: object) -> None:
        """Put a sentence in the middle of the picture; none for an empty key."""
        self._message = key, values
        words = {name: told(value) if name == "reason" else value for name, value in values.items()}
        self._note.setText(tr(key, **words) if key else "")
        self._note.setVisible(bool(key))
        self._note.resize(self._plot.size())

    # ---- pictures ----------------------------------------------------------------------------------------

    def _show_layer(self, layer: _Layer) -> None:
        self._layer = layer
        _, ny, nx = layer.info.shape
        self._view.setLimits(minXRange=_CLOSEST, minYRange=_CLOSEST, maxXRange=20 * nx, maxYRange=20 * ny)
        self._say("")
        self._enable()
        self.fit()
        self._paint()
        self._settle.start()
        if self._coverage_box.isChecked():
            self._on_coverage()
        self.opened.emit(str(layer.info.path))

    def _on_error(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, FrameError) else f"{type(error).__name__}: {error}"
        self._say("viewer.failed", reason=reason)
        self.failed.emit(reason)

    def _on_view(self) -> None:
        percent = tr("number.percent", n=number_text(100.0 * self.zoom(), ".3g"))
        self._zoom_label.setText(percent if self._layer is not None else "")
        # Close up a pixel is a square; far out its neighbours soften it.
        self._plot.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, self.zoom() < 1.5)
        if self._layer is not None:
            self._settle.start()

    def _wanted(self) -> tuple[Rect, int]:
        """Return the pixels in view, and how many a side one pixel of the screen stands for."""
        box, ratio = self._view.viewRect(), self.devicePixelRatioF()
        rect = Rect(int(box.top()) - 1, int(box.bottom()) + 2, int(box.left()) - 1, int(box.right()) + 2)
        size = tuple(min(_MAX_PICTURE_PX, round(s * ratio)) for s in (self._view.height(), self._view.width()))
        return rect.intersect(self._layer.info.rect), step_for(rect, size)

    def _read_view(self) -> None:
        """Read what is in view at the scale of the screen, in the thread, unless the overview is as fine."""
        if self._layer is None:
            return
        rect, step = self._wanted()
        self._reading.cancel()
        cancel = self._reading = CancelToken()
        if rect.empty or step >= self._layer.whole.step:
            self._layer = replace(self._layer, view=None)
            self._view_item.clear()
            self._background.forget("view")
            return
        layer, coverage = self._layer, self._coverage if self._coverage_box.isChecked() else None

        def work() -> tuple[Part, Part | None]:
            part = read_part(layer.info, rect, step, cancel)
            return part, None if coverage is None else read_part(coverage.info, rect, step, cancel)

        self._background.ask("view", work, self._show_view, self._on_error)

    def _show_view(self, parts: tuple[Part, Part | None]) -> None:
        self._layer = replace(self._layer, view=parts[0])
        if parts[0].rect == self._layer.info.rect:  # a finer picture of the whole than there was
            self._layer = replace(self._layer, whole=parts[0], view=None)
        if self._coverage is not None and parts[1] is not None:
            self._coverage = replace(self._coverage, view=parts[1])
            self._draw_coverage()
        self._paint()

    def _paint(self) -> None:
        """Stretch what is in memory, in the thread, and show it."""
        if self._layer is None:
            return
        layer, stretch, channel = self._layer, self.stretch(), self._channel.currentData()
        if layer.info.shape[0] == 1:
            channel = None

        def work() -> list[tuple[Part, np.ndarray]]:
            parts = [part for part in (layer.whole, layer.view) if part is not None]
            return [(part, picture_of(part.pixels, layer.tones, stretch, channel)) for part in parts]

        self._background.ask("paint", work, self._show_pictures, self._on_error)

    def _show_pictures(self, pictures: list[tuple[Part, np.ndarray]]) -> None:
        for item, (part, picture) in zip((self._whole_item, self._view_item), pictures, strict=False):
            if picture.size:
                item.setImage(picture, levels=(0, 255))
                item.setRect(_box(part))
        if len(pictures) == 1:
            self._view_item.clear()

    # ---- coverage ----------------------------------------------------------------------------------------

    def _on_coverage(self) -> None:
        self._coverage_item.setVisible(self._coverage_box.isChecked())
        if self._coverage_box.isChecked() and self._coverage is None and self._coverage_path is not None:
            path, cancel = self._coverage_path, self._cancel
            self._background.ask("coverage", lambda: _load(path, cancel), self._show_coverage, self._on_error)
        elif self._coverage_box.isChecked():
            self._settle.start()
        self._enable()

    def _show_coverage(self, layer: _Layer) -> None:
        self._coverage = layer
        self._draw_coverage()
        self._enable()
        self._settle.start()

    def _draw_coverage(self) -> None:
        deepest = float(np.nan_to_num(self._coverage.whole.pixels).max())
        part = self._coverage.view or self._coverage.whole
        if part.pixels.size:
            depth = part.pixels.max(axis=0)
            self._coverage_item.setImage(np.where(depth > 0, depth, np.nan), levels=(0.0, max(deepest, 1.0)))
            self._coverage_item.setRect(_box(part))
        self._ramp.set_range(0, round(deepest))

    # ---- mouse and keys ----------------------------------------------------------------------------------

    def _on_hover(self, scene_place: QPointF) -> None:
        if self._layer is not None and self._view.sceneBoundingRect().contains(scene_place):
            place = self._view.mapSceneToView(scene_place)
            self._readout.setText(self.describe(place.x(), place.y()))

    def describe(self, x: float, y: float) -> str:
        """Return what lies at a pixel position of the mosaic (0-based): place, sky, values, frames."""
        if self._layer is None:
            return ""
        info, found = self._layer.info, self._layer.at(x, y)
        if found is None:
            return ""
        texts = [f"x {round(x) + 1}  y {round(y) + 1}"]
        sky = info.sky(x, y)
        if sky is not None:
            texts.append(f"{ra_text(sky[0])}  {dec_text(sky[1])}")
        values, step = found
        numbers = "  ".join("—" if np.isnan(value) else f"{value:.5g}" for value in values)
        texts.append(("≈ " if step > 1 else "") + f"{numbers} {info.unit}".strip())
        depth = None if self._coverage is None else self._coverage.at(x, y)
        if depth is not None:
            n = float(depth[0].max())
            texts.append(tr("viewer.depth", n=int(n) if n.is_integer() else f"{n:.1f}"))
        return "   ·   ".join(texts)

    def eventFilter(self, watched: object, event: QEvent) -> bool:
        """Move the picture by keys; keep the sentence in its middle."""
        if watched is self._plot:
            if event.type() == QEvent.Type.Resize:
                self._note.resize(self._plot.size())
            elif event.type() == QEvent.Type.KeyPress and self._on_key(event):
                return True
        return super().eventFilter(watched, event)

    def _on_key(self, event: QKeyEvent) -> bool:
        if move_by_key(event, self._view):
            return True
        if is_for_all(event):
            self.fit()
        elif event.key() == Qt.Key.Key_1:
            self.one_to_one()
        else:
            return False
        return True


def _box(part: Part) -> QRectF:
    """Return where a part lies, in pixel positions whose centres are whole numbers."""
    _, height, width = part.pixels.shape
    return QRectF(part.rect.x0 - 0.5, part.rect.y0 - 0.5, width * part.step, height * part.step)
