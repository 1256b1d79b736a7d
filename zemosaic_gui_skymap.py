"""The sky map: where the frames lie, how deep they cover the sky, and what becomes of the mosaic's tiles.

However many frames there are, the map draws a fixed number of items: their depth is one picture, made in a thread
for what is in view, and their outlines, drawn where few are in view, are one path.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain, islice

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QBrush, QColor, QKeyEvent, QPainterPath, QPalette, QPen, QPolygonF
from PySide6.QtWidgets import QGraphicsPathItem, QHBoxLayout, QLabel, QToolTip, QVBoxLayout, QWidget

from zemosaic_events import PlannedTile, SurveyFrame
from zemosaic_gui_background import Background
from zemosaic_gui_legend import Ramp, Swatch
from zemosaic_gui_parts import FocusRing, FoldingRow, Later, TileState, is_for_all, move_by_key, sized
from zemosaic_gui_sentences import told
from zemosaic_gui_sky import SkyGrid, TangentPlane, covering, dec_text, depth_image, middle_of, ra_text, sky_grid
from zemosaic_gui_text import number_text, tr
from zemosaic_gui_theme import FollowsLook

MAX_OUTLINES = 400  # in view; beyond, depth alone tells more

_SETTLE_MS = 60  # after the last movement of the view, before the depth is drawn anew
_BATCH_MS = 100  # after frames have come
_MAX_RASTER = 700
_MARGIN = 0.04
_AXIS_WIDTH = 92  # room for degrees, minutes and seconds
_MAX_NAMED = 4
_COLOUR_MAP = "viridis"


#: Colours that people with any kind of colour vision tell apart (Okabe and Ito), and patterns beside them.
_TILE_COLOURS = {
    TileState.WAITING: ("#8a8f98", Qt.BrushStyle.NoBrush),
    TileState.RUNNING: ("#e69f00", Qt.BrushStyle.SolidPattern),
    TileState.DONE: ("#56b4e9", Qt.BrushStyle.SolidPattern),
    TileState.FAILED: ("#d55e00", Qt.BrushStyle.BDiagPattern),
}
_CANVAS_COLOUR, _OUT_COLOUR = "#cc79a7", "#d55e00"


class SkyMap(FollowsLook, QWidget):
    """A map of frames and tiles, north up, east left.

    The wheel zooms, dragging moves, a click names the frame under it (`frame_clicked` with its id; another click
    at the same place the next frame there). With the keyboard: arrows, plus, minus, Home or 0 for all, Enter for
    a click in the middle.
    """

    frame_clicked = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._frames: dict[str, SurveyFrame] = {}
        self._n_placed = 0  # of them whose corners are known already
        self._ids: list[str] = []  # of the frames that have a place, with `_corners` and `_quads`
        self._corners = np.empty((0, 4, 2))
        self._quads = np.empty((0, 4, 2))
        self._usable = np.empty(0, dtype=bool)
        self._in = np.empty(0, dtype=bool)  # usable, and not left out by the user
        self._excluded: frozenset[str] = frozenset()
        self._canvas_deg: tuple[tuple[float, float], ...] = ()
        self._tiles: dict[int, PlannedTile] = {}
        self._states: dict[int, TileState] = {}
        self._tile_quads = np.empty((0, 4, 2))
        self._highlighted: str | None = None
        self._clicked: tuple[tuple[str, ...], int] = ((), 0)
        self._plane = TangentPlane(0.0, 0.0)
        self._follows = True  # until the user moves the view
        self._deepest = 0
        self._background = Background(self)
        self._settle = Later(self, _SETTLE_MS, self._draw_depth)
        self._stale = Later(self, 0, self._place_all)
        self._stale_tiles = Later(self, 0, self._draw_tiles)
        self._build()
        self.retranslate()
        self._paint_theme()

    # ---- what is shown -----------------------------------------------------------------------------------

    def set_frames(self, frames: Iterable[SurveyFrame]) -> None:
        """Show these frames, and no others."""
        self._frames, self._n_placed = {}, 0
        self.add_frames(frames)

    def add_frames(self, frames: Iterable[SurveyFrame]) -> None:
        """Show these frames too; one that is known by its id is replaced."""
        new = {frame.frame_id: frame for frame in frames}
        if not new.keys().isdisjoint(self._frames):
            self._n_placed = 0
        self._frames |= new
        if not self._stale.isActive():  # frames that come in batches must not keep it waiting
            self._stale.start(_BATCH_MS)

    def set_canvas(self, corners_deg: tuple[tuple[float, float], ...]) -> None:
        """Show the outline of the mosaic, four (right ascension, declination); none if it is empty."""
        self._canvas_deg = tuple(corners_deg)
        self._stale.start(0)

    def set_tiles(self, tiles: Iterable[PlannedTile]) -> None:
        """Show these tiles, all waiting."""
        self._tiles = {tile.tile: tile for tile in tiles}
        self._states = dict.fromkeys(self._tiles, TileState.WAITING)
        self._stale.start(0)

    def set_tile_state(self, tile: int, state: TileState) -> None:
        """Colour a tile; a number that is none of the tiles' is ignored."""
        if tile in self._states:
            self._states[tile] = state
            self._stale_tiles.start()

    def tile_state(self, tile: int) -> TileState | None:
        """Return what a tile is shown as."""
        return self._states.get(tile)

    def set_excluded(self, ids: Iterable[str]) -> None:
        """Show these frames as left out by the user; they do not count for the depth."""
        self._excluded = frozenset(ids)
        self._stale.start(0)

    def highlight(self, frame_id: str | None) -> None:
        """Mark a frame, and bring it into view; None, or a frame without a place, marks nothing."""
        self._highlighted = frame_id
        self._draw_highlight(bring=True)

    def fit(self) -> None:
        """Show everything, and follow what comes until the user moves the view."""
        self._follows = True
        self._show_all()

    def clear(self) -> None:
        """Show nothing."""
        self._frames, self._n_placed = {}, 0
        self._excluded, self._highlighted = frozenset(), None
        self._tiles, self._states, self._canvas_deg = {}, {}, ()
        self._follows = True
        self._stale.start(0)

    def shutdown(self) -> None:
        """End the thread and the timers; the map is of no use afterwards."""
        for timer in (self._settle, self._stale, self._stale_tiles):
            timer.stop()
        self._background.close()

    @property
    def busy(self) -> bool:
        """Whether something is still to be drawn."""
        timers = (self._settle, self._stale, self._stale_tiles)
        return self._background.busy or any(timer.isActive() for timer in timers)

    def retranslate(self) -> None:
        """Take the words anew, after the language has changed."""
        self._plot.setLabel("bottom", tr("map.axis.ra"))
        self._plot.setLabel("left", tr("map.axis.dec"))
        self._plot.setAccessibleName(tr("map.name"))
        self._plot.setAccessibleDescription(tr("map.help"))
        for state, swatch in self._swatches.items():
            swatch.set_text(tr(f"map.tile.{state.value}"))
        self._canvas_swatch.set_text(tr("map.canvas"))
        self._out_swatch.set_text(tr("map.out"))
        self._ramp_label.setText(tr("map.depth"))

    # ---- building ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._plot = pg.PlotWidget()
        self._plot.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self._plot.setMenuEnabled(False)
        self._plot.hideButtons()
        self._view = self._plot.getViewBox()
        self._view.setAspectLocked(True)
        self._view.sigRangeChanged.connect(self._on_view)
        self._view.sigRangeChangedManually.connect(self._stop_following)
        self._plot.getAxis("left").setWidth(sized(_AXIS_WIDTH))
        self._depth = pg.ImageItem(axisOrder="row-major")
        self._depth.setColorMap(pg.colormap.get(_COLOUR_MAP))
        self._grid = pg.PlotCurveItem(connect="finite")
        self._outlines, self._out_outlines = QGraphicsPathItem(), QGraphicsPathItem()
        self._tile_items = {state: QGraphicsPathItem() for state in TileState}
        self._canvas_item, self._highlight_item = QGraphicsPathItem(), QGraphicsPathItem()
        order = [self._depth, self._grid, *self._tile_items.values(), self._outlines, self._out_outlines]
        for level, item in enumerate([*order, self._canvas_item, self._highlight_item]):
            item.setZValue(level)
            self._view.addItem(item, ignoreBounds=True)
        self._plot.scene().sigMouseClicked.connect(self._on_click)
        self._plot.scene().sigMouseMoved.connect(self._on_hover)
        self._plot.installEventFilter(self)
        FocusRing(self._plot)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._plot, 1)
        column.addWidget(self._legend())

    def _legend(self) -> FoldingRow:
        depth, states = QHBoxLayout(), QHBoxLayout()
        for row in (depth, states):
            row.setContentsMargins(8, 2, 8, 4)
            row.setSpacing(14)
        self._ramp_label = QLabel()
        self._ramp = Ramp(pg.colormap.get(_COLOUR_MAP).getLookupTable(0.15, 1.0, 64))
        self._canvas_swatch = Swatch(_CANVAS_COLOUR, Qt.BrushStyle.NoBrush, dashed=True)
        self._out_swatch = Swatch(_OUT_COLOUR, Qt.BrushStyle.NoBrush, dashed=True)
        self._swatches = {state: Swatch(*_TILE_COLOURS[state]) for state in TileState}
        for widget in (self._ramp_label, self._ramp, self._canvas_swatch, self._out_swatch):
            depth.addWidget(widget)
        depth.addStretch(1)
        for swatch in self._swatches.values():
            swatch.hide()  # until a tile has a state
            states.addWidget(swatch)
        states.addStretch(0)
        return FoldingRow(depth, states, wide=0, spacing=0)

    def _paint_theme(self) -> None:
        palette = self.palette()
        text, base = palette.color(QPalette.ColorRole.Text), palette.color(QPalette.ColorRole.Base)
        _pen = partial(_screen_pen, self.devicePixelRatioF())
        self._plot.setBackground(base)
        for side in ("bottom", "left"):
            axis = self._plot.getAxis(side)
            axis.enableAutoSIPrefix(False)
            # Not made to fit its labels, which would move the view, and so change the labels.
            axis.setStyle(autoExpandTextSpace=False)
            axis.setPen(_pen(text, 1.0))
            axis.setTextPen(text)
        faint = QColor(text)
        faint.setAlpha(60)
        self._grid.setPen(_pen(faint, 1.0, Qt.PenStyle.DotLine))
        soft = QColor(text)
        soft.setAlpha(130)
        self._outlines.setPen(_pen(soft, 1.0))
        self._out_outlines.setPen(_pen(QColor(_OUT_COLOUR), 1.2, Qt.PenStyle.DashLine))
        self._canvas_item.setPen(_pen(QColor(_CANVAS_COLOUR), 2.0, Qt.PenStyle.DashLine))
        self._highlight_item.setPen(_pen(text, 3.0))
        for state, item in self._tile_items.items():
            name, pattern = _TILE_COLOURS[state]
            fill = QColor(name)
            fill.setAlpha(190 if pattern == Qt.BrushStyle.SolidPattern else 255)
            item.setPen(_pen(QColor(name), 1.0))
            item.setBrush(QBrush(fill, pattern))

    # ---- drawing -----------------------------------------------------------------------------------------

    def _place_all(self) -> None:
        """Project everything anew, after frames, canvas or tiles have changed."""
        self._take_corners()
        self._in = self._usable.copy()
        out = [k for k, frame_id in enumerate(self._ids) if frame_id in self._excluded] if self._excluded else []
        self._in[out] = False
        self._deepest = 0
        self._plane = TangentPlane(*self._middle())
        self._quads = self._plane.project(self._corners)
        tiles = np.array([tile.corners_deg for tile in self._tiles.values()]).reshape(-1, 4, 2)
        self._tile_quads = self._plane.project(tiles)
        self._canvas_item.setPath(_path(self._canvas_quad()))
        self._draw_tiles()
        self._draw_highlight()
        if self._follows:
            self._show_all()
        self._on_view()

    def _take_corners(self) -> None:
        """Take the corners of the frames that have come; of all, if one is told again: arrays are slow to fill."""
        if self._n_placed == 0:
            self._ids, self._corners, self._usable = [], np.empty((0, 4, 2)), np.empty(0, dtype=bool)
        new = [f for f in islice(self._frames.values(), self._n_placed, None) if len(f.corners_deg) == 4]
        self._n_placed = len(self._frames)
        if new:
            corners = np.fromiter(
                chain.from_iterable(chain.from_iterable(f.corners_deg for f in new)), dtype=float
            )
            self._ids += [frame.frame_id for frame in new]
            self._corners = np.concatenate([self._corners, corners.reshape(-1, 4, 2)])
            self._usable = np.concatenate([self._usable, [frame.usable for frame in new]])

    def _middle(self) -> tuple[float, float]:
        if self._canvas_deg:
            return middle_of(np.array(self._canvas_deg))
        if len(self._corners):
            return middle_of(self._corners[self._in] if self._in.any() else self._corners)
        tiles = [tile.corners_deg for tile in self._tiles.values()]
        return middle_of(np.array(tiles)) if tiles else (0.0, 0.0)

    def _canvas_quad(self) -> np.ndarray:
        return self._plane.project(np.array(self._canvas_deg).reshape(-1, 4, 2))

    def _show_all(self) -> None:
        shown = self._quads[self._in] if self._in.any() else self._quads
        points = np.concatenate([shown, self._tile_quads, self._canvas_quad()]).reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
            self._view.setRange(QRectF(x0, y0, x1 - x0, y1 - y0), padding=_MARGIN)

    def _extent(self) -> tuple[float, float, float, float]:
        (x0, x1), (y0, y1) = self._view.viewRange()
        return x0, x1, y0, y1

    def _stop_following(self) -> None:
        self._follows = False

    def _on_view(self) -> None:
        grid = SkyGrid(np.array([np.nan]), np.array([np.nan]), [], [])
        if len(self._ids) or self._tiles or self._canvas_deg:
            grid = sky_grid(self._plane, self._extent())
        self._grid.setData(grid.x, grid.y)
        self._plot.getAxis("bottom").setTicks([grid.bottom])
        self._plot.getAxis("left").setTicks([grid.left])
        self._draw_outlines()
        self._settle.start()

    def _draw_outlines(self) -> None:
        x0, x1, y0, y1 = self._extent()
        low, high = self._quads.min(axis=1), self._quads.max(axis=1)
        inside = (high[:, 0] > x0) & (low[:, 0] < x1) & (high[:, 1] > y0) & (low[:, 1] < y1)
        few = inside.sum() <= MAX_OUTLINES
        self._outlines.setPath(_path(self._quads[inside & self._in] if few else self._quads[:0]))
        out = inside & ~self._in
        self._out_outlines.setPath(_path(self._quads[out] if out.sum() <= MAX_OUTLINES else self._quads[:0]))

    def _draw_depth(self) -> None:
        """Count, in the thread, the frames that cover each place in view."""
        extent, quads = self._extent(), self._quads[self._in]
        x0, x1, y0, y1 = extent
        size = self._view.size()
        shrink = max(1.0, size.width() / _MAX_RASTER, size.height() / _MAX_RASTER)
        shape = max(8, round(size.height() / shrink)), max(8, round(size.width() / shrink))

        def show(depth: np.ndarray) -> None:
            # Colours keep their meaning while the view moves.
            deepest = self._deepest = max(self._deepest, int(depth.max()))
            self._depth.setImage(np.where(depth > 0, depth, np.nan), levels=(-0.18 * deepest, max(deepest, 1)))
            self._depth.setRect(QRectF(x0, y0, x1 - x0, y1 - y0))
            self._ramp.set_range(min(1, deepest), deepest)

        self._background.ask("depth", lambda: depth_image(quads, extent, shape), show)

    def _draw_tiles(self) -> None:
        if len(self._states) != len(self._tile_quads):  # new tiles, whose places are still to come
            return
        states = np.array([state.value for state in self._states.values()])
        for state, item in self._tile_items.items():
            item.setPath(_path(self._tile_quads[states == state.value] if len(states) else self._tile_quads))
        # Once tiles change, the states are the picture and the depth is its background.
        runs = any(state is not TileState.WAITING for state in self._states.values())
        self._depth.setOpacity(0.3 if runs else 1.0)
        self._outlines.setVisible(not runs)
        for swatch in self._swatches.values():
            swatch.setVisible(runs)
        self._canvas_swatch.setVisible(bool(self._canvas_deg))
        self._out_swatch.setVisible(not self._in.all())

    def _draw_highlight(self, *, bring: bool = False) -> None:
        place = self._ids.index(self._highlighted) if self._highlighted in self._ids else None
        quad = self._quads[:0] if place is None else self._quads[place : place + 1]
        self._highlight_item.setPath(_path(quad))
        x0, x1, y0, y1 = self._extent()
        if bring and len(quad) and np.isfinite(quad).all():
            x, y = quad[0].mean(axis=0)
            if not (x0 <= x <= x1 and y0 <= y <= y1):
                self._stop_following()
                self._view.translateBy(x=x - (x0 + x1) / 2, y=y - (y0 + y1) / 2)

    # ---- mouse and keys ----------------------------------------------------------------------------------

    def frames_at(self, x: float, y: float) -> list[str]:
        """Return the ids of the frames at a position of the map's plane, those that are in first."""
        found = covering(self._quads, x, y)
        return [self._ids[k] for k in (*found[self._in[found]], *found[~self._in[found]])]

    def tile_at(self, x: float, y: float) -> int | None:
        """Return the tile at a position of the map's plane."""
        found = covering(self._tile_quads, x, y)
        return list(self._tiles)[found[0]] if len(found) else None

    def _on_click(self, event: object) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            if event.double():
                self.fit()
            else:
                place = self._view.mapSceneToView(event.scenePos())
                self.click(place.x(), place.y())

    def click(self, x: float, y: float) -> None:
        """Name the frame at a position of the plane, the next one there if it was clicked before."""
        found = tuple(self.frames_at(x, y))
        before, turn = self._clicked
        turn = turn + 1 if found == before and found else 0
        self._clicked = found, turn
        if found:
            chosen = found[turn % len(found)]
            self.highlight(chosen)
            self.frame_clicked.emit(chosen)

    def _on_hover(self, scene_place: QPointF) -> None:
        if not self._view.sceneBoundingRect().contains(scene_place):
            QToolTip.hideText()
            return
        place = self._view.mapSceneToView(scene_place)
        text = self.describe(place.x(), place.y())
        where = self._plot.mapToGlobal(self._plot.mapFromScene(scene_place))
        QToolTip.showText(where, text, self._plot)

    def describe(self, x: float, y: float) -> str:
        """Return what lies at a position of the plane, in lines."""
        if not (self._ids or self._tiles):
            return ""
        ra, dec = self._plane.sky(np.array([x, y]))
        lines = [f"{ra_text(ra)}  {dec_text(dec)}"]
        tile = self.tile_at(x, y)
        if tile is not None:
            lines.append(tr("map.tip.tile", tile=tile, state=tr(f"map.tile.{self._states[tile].value}")))
        ids = self.frames_at(x, y)
        if ids:
            lines.append(tr("map.tip.frames", n=len(ids)))
        lines += [self._one_line(frame_id) for frame_id in ids[:_MAX_NAMED]]
        return "\n".join([*lines, "…"] if len(ids) > _MAX_NAMED else lines)

    def _one_line(self, frame_id: str) -> str:
        frame = self._frames[frame_id]
        exposure = "" if frame.exposure_s is None else tr("time.seconds", n=number_text(frame.exposure_s, "g"))
        excluded = tr("map.tip.excluded") if frame_id in self._excluded else ""
        return " · ".join(filter(None, (frame_id, exposure, frame.filter, excluded or told(frame.reason))))

    def event(self, event: QEvent) -> bool:
        """Draw lines anew that are as wide as the screen is fine."""
        done = super().event(event)
        if event.type() == QEvent.Type.DevicePixelRatioChange:
            self._paint_theme()
        return done

    def eventFilter(self, watched: object, event: QEvent) -> bool:
        """Move the map by keys."""
        if watched is self._plot and event.type() == QEvent.Type.KeyPress and self._on_key(event):
            return True
        return super().eventFilter(watched, event)

    def _on_key(self, event: QKeyEvent) -> bool:
        if move_by_key(event, self._view):
            self._stop_following()
        elif is_for_all(event):
            self.fit()
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.click(*self._view.viewRect().center().toTuple())
        else:
            return False
        return True


def _screen_pen(ratio: float, colour: QColor, width: float, style: Qt.PenStyle = Qt.PenStyle.SolidLine) -> QPen:
    pen = QPen(colour, width * ratio, style)
    # In pixels of the screen, whatever the zoom; a fine one has `ratio` of them in place of one.
    pen.setCosmetic(True)
    return pen


def _path(quads: np.ndarray) -> QPainterPath:
    """Return closed outlines as one path; those with a corner off the map are passed over."""
    path = QPainterPath()
    path.setFillRule(Qt.FillRule.WindingFill)
    for quad in quads[np.isfinite(quads).all(axis=(1, 2))].tolist():
        path.addPolygon(QPolygonF([QPointF(x, y) for x, y in quad]))
        path.closeSubpath()
    return path
