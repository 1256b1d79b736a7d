"""The sky map: what it shows, what it names, and that twenty thousand frames are no more items than ten."""

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("pyqtgraph")

from dataclasses import replace

from PySide6.QtCore import QEvent, QPointF, Qt
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication

from pictures import (
    BAD_REASON,
    assert_it_goes,
    assert_it_speaks_french,
    canvas_of,
    frames_on,
    nothing_left,
    settle,
    tiles_on,
)
from zemosaic_events import SurveyFrame
from zemosaic_gui_skymap import MAX_OUTLINES, SkyMap, TileState

CANVAS = canvas_of()


@pytest.fixture
def sky_map(qtbot):
    widget = SkyMap()
    widget.resize(700, 480)
    widget.show()
    with nothing_left(widget):
        yield widget


def shown(qtbot, widget, frames, tiles=()):
    widget.set_frames(frames)
    widget.set_canvas(CANVAS.corners_deg(CANVAS.rect))
    widget.set_tiles(tiles)
    settle(qtbot, widget)


def place_of(widget, frame):
    """The middle of a frame on the map's plane."""
    return widget._plane.project(np.array(frame.corners_deg)).mean(axis=0)


def deepest(widget):
    return int(np.nan_to_num(widget._depth.image).max())


def test_twenty_thousand_frames_are_drawn_with_as_many_items_as_ten(qtbot, sky_map):
    shown(qtbot, sky_map, frames_on(CANVAS, 10))
    few = len(sky_map._plot.scene().items())
    shown(qtbot, sky_map, frames_on(CANVAS, 20_000))
    assert len(sky_map._plot.scene().items()) == few
    assert sky_map._outlines.path().isEmpty()
    assert deepest(sky_map) > 1000


def test_the_depth_is_the_number_of_frames_that_are_in(qtbot, sky_map):
    frame = frames_on(CANVAS, 1)[0]
    same = [replace(frame, frame_id=f"{k}.fit", usable=k != 4) for k in range(5)]
    shown(qtbot, sky_map, same)
    assert deepest(sky_map) == 4
    sky_map.set_excluded({"0.fit"})
    settle(qtbot, sky_map)
    assert deepest(sky_map) == 3
    assert sky_map._ramp.range_shown() == ("1", "3")


def test_the_colours_of_the_depth_keep_their_meaning_while_the_view_moves(qtbot, sky_map):
    frames = frames_on(CANVAS, 80)
    shown(qtbot, sky_map, frames)
    legend, levels = sky_map._ramp.range_shown(), list(sky_map._depth.levels)
    x, y = place_of(sky_map, frames[0])
    sky_map._view.setRange(xRange=(x, x + 0.01), yRange=(y, y + 0.01))
    settle(qtbot, sky_map)
    assert deepest(sky_map) < int(legend[1])
    assert (sky_map._ramp.range_shown(), list(sky_map._depth.levels)) == (legend, levels)


def test_outlines_are_drawn_where_few_frames_are_in_view(qtbot, sky_map):
    shown(qtbot, sky_map, frames_on(CANVAS, MAX_OUTLINES // 2))
    assert sky_map._outlines.path().elementCount() > 4 * MAX_OUTLINES // 3
    assert not sky_map._out_outlines.path().isEmpty()


def test_a_click_names_each_of_the_frames_at_a_place_in_turn(qtbot, sky_map):
    frames = frames_on(CANVAS, 60)
    shown(qtbot, sky_map, frames)
    named = []
    sky_map.frame_clicked.connect(named.append)
    x, y = place_of(sky_map, frames[0])
    there = sky_map.frames_at(x, y)
    assert len(there) > 1
    for _ in range(len(there) + 1):
        sky_map.click(x, y)
    assert named == [*there, there[0]]
    assert frames[0].frame_id in there


def test_a_click_of_the_mouse_names_the_frame_under_it(qtbot, sky_map):
    frames = frames_on(CANVAS, 1)
    shown(qtbot, sky_map, frames)
    x, y = place_of(sky_map, frames[0])
    point = sky_map._plot.mapFromScene(sky_map._view.mapViewToScene(QPointF(x, y)))
    with qtbot.waitSignal(sky_map.frame_clicked) as heard:
        qtbot.mouseClick(sky_map._plot.viewport(), Qt.MouseButton.LeftButton, pos=point)
    assert heard.args == ["Light_00000.fit"]


def test_a_click_beside_all_frames_names_none(qtbot, sky_map):
    shown(qtbot, sky_map, frames_on(CANVAS, 5))
    with qtbot.assertNotEmitted(sky_map.frame_clicked):
        sky_map.click(50.0, 50.0)


def test_the_tip_tells_the_place_the_tile_and_the_frames_with_their_reasons(qtbot, sky_map):
    frame = replace(frames_on(CANVAS, 1)[0], usable=False, reason=BAD_REASON)
    shown(qtbot, sky_map, [frame], tiles_on(CANVAS))
    text = sky_map.describe(*place_of(sky_map, frame))
    assert "°" in text.splitlines()[0]
    assert "waiting" in text
    assert f"Light_00000.fit · 10 s · IRCUT · {BAD_REASON}" in text
    sky_map.set_excluded({"Light_00000.fit"})
    assert "left out by you" in sky_map.describe(*place_of(sky_map, frame))


def test_tiles_are_coloured_by_what_they_do(qtbot, sky_map):
    tiles = tiles_on(CANVAS)
    shown(qtbot, sky_map, frames_on(CANVAS, 20), tiles)
    n = sky_map._tile_items[TileState.WAITING].path().elementCount() // len(tiles)
    assert n >= 5
    for tile, state in zip(tiles[:4], TileState, strict=True):
        sky_map.set_tile_state(tile.tile, state)
    sky_map.set_tile_state(10_000, TileState.DONE)
    settle(qtbot, sky_map)
    counts = {state: sky_map._tile_items[state].path().elementCount() // n for state in TileState}
    rest = len(tiles) - 3
    assert counts == {
        TileState.WAITING: rest,
        TileState.RUNNING: 1,
        TileState.DONE: 1,
        TileState.FAILED: 1,
    }
    assert sky_map.tile_state(tiles[1].tile) is TileState.RUNNING


def test_the_legend_explains_states_once_there_are_some(qtbot, sky_map):
    assert not any(swatch.isVisible() for swatch in sky_map._swatches.values())
    tiles = tiles_on(CANVAS)
    shown(qtbot, sky_map, frames_on(CANVAS, 20), tiles)
    assert not any(swatch.isVisible() for swatch in sky_map._swatches.values())
    sky_map.set_tile_state(tiles[0].tile, TileState.RUNNING)
    settle(qtbot, sky_map)
    assert all(swatch.isVisible() for swatch in sky_map._swatches.values())
    sky_map.set_tiles(tiles)
    settle(qtbot, sky_map)
    assert not any(swatch.isVisible() for swatch in sky_map._swatches.values())


def test_the_states_of_tiles_are_told_apart_without_colour():
    from zemosaic_gui_skymap import _TILE_COLOURS

    looks = {(QColor(colour).lightness() // 24, pattern) for colour, pattern in _TILE_COLOURS.values()}
    assert len(looks) == len(TileState)


def test_frames_that_come_later_replace_those_of_their_name(qtbot, sky_map):
    frames = frames_on(CANVAS, 8)
    shown(qtbot, sky_map, frames)
    sky_map.add_frames([replace(frames[0], usable=False, reason="too far from the mosaic")])
    settle(qtbot, sky_map)
    assert len(sky_map._ids) == 8
    assert "too far from the mosaic" in sky_map.describe(*place_of(sky_map, frames[0]))


def test_frames_without_a_place_are_passed_over(qtbot, sky_map):
    shown(qtbot, sky_map, [SurveyFrame("a.fit", "/a.fit", reason="no WCS"), *frames_on(CANVAS, 3)])
    assert len(sky_map._ids) == 3


def test_an_empty_map_can_be_looked_at(qtbot, sky_map):
    settle(qtbot, sky_map)
    assert sky_map.describe(0.0, 0.0) == ""
    shown(qtbot, sky_map, frames_on(CANVAS, 3))
    sky_map.clear()
    settle(qtbot, sky_map)
    assert deepest(sky_map) == 0


def test_a_highlighted_frame_is_brought_into_view(qtbot, sky_map):
    frames = frames_on(CANVAS, 40)
    shown(qtbot, sky_map, frames)
    sky_map._view.setRange(xRange=(20.0, 21.0), yRange=(20.0, 21.0))
    sky_map.highlight(frames[3].frame_id)
    (x0, x1), (y0, y1) = sky_map._view.viewRange()
    x, y = place_of(sky_map, frames[3])
    assert x0 <= x <= x1
    assert y0 <= y <= y1
    assert not sky_map._highlight_item.path().isEmpty()
    sky_map.highlight(None)
    assert sky_map._highlight_item.path().isEmpty()
    settle(qtbot, sky_map)


def test_the_map_follows_what_comes_until_it_is_moved(qtbot, sky_map):
    shown(qtbot, sky_map, frames_on(CANVAS, 30))
    before = sky_map._view.viewRange()
    qtbot.keyClick(sky_map._plot, Qt.Key.Key_Plus)
    closer = sky_map._view.viewRange()
    assert closer[0][1] - closer[0][0] < before[0][1] - before[0][0]
    sky_map.add_frames(frames_on(canvas_of((9000, 9000)), 30, seed=9))
    settle(qtbot, sky_map)
    assert np.allclose(sky_map._view.viewRange(), closer)
    qtbot.keyClick(sky_map._plot, Qt.Key.Key_Home)
    settle(qtbot, sky_map)
    assert sky_map._view.viewRange()[0][1] > before[0][1]


def test_the_keys_move_the_map(qtbot, sky_map):
    shown(qtbot, sky_map, frames_on(CANVAS, 5))
    before = np.array(sky_map._view.viewRange())
    for key, axis, sign in [(Qt.Key.Key_Right, 0, 1), (Qt.Key.Key_Up, 1, 1), (Qt.Key.Key_Left, 0, -1)]:
        qtbot.keyClick(sky_map._plot, key)
        after = np.array(sky_map._view.viewRange())
        assert np.sign(after[axis] - before[axis]) == pytest.approx(sign)
        before = after


def test_east_is_left_of_west(qtbot, sky_map):
    frames = frames_on(CANVAS, 40)
    shown(qtbot, sky_map, frames)
    ra = np.array([np.mean([corner[0] for corner in frame.corners_deg]) for frame in frames])
    x = np.array([place_of(sky_map, frame)[0] for frame in frames])
    assert np.corrcoef(ra, x)[0, 1] < -0.99
    assert not sky_map._view.xInverted()


def test_the_map_follows_the_theme(qtbot, sky_map):
    palette = QPalette()
    palette.setColor(QPalette.ColorRole.Base, QColor("#101214"))
    palette.setColor(QPalette.ColorRole.Text, QColor("#eeeeee"))
    sky_map.setPalette(palette)
    shown(qtbot, sky_map, frames_on(CANVAS, 3))
    assert sky_map._plot.backgroundBrush().color().name() == "#101214"
    assert sky_map._plot.getAxis("left").textPen().color().name() == "#eeeeee"


def test_nothing_is_left_of_what_is_closed(qtbot):
    assert_it_goes(qtbot, SkyMap)


def test_the_words_follow_the_language(sky_map):
    assert "en attente" in assert_it_speaks_french(sky_map)


@pytest.mark.parametrize("width", [500, 640, 803])
def test_the_labels_of_the_grid_never_move_the_view(qtbot, sky_map, width):
    sky_map.resize(width, 480)
    shown(qtbot, sky_map, frames_on(CANVAS, 30))
    axis, moves = sky_map._plot.getAxis("left"), []
    before = axis.width()
    sky_map._view.sigRangeChanged.connect(lambda *_: moves.append(1))
    for _ in range(4):
        sky_map._view.scaleBy((0.2, 0.2))
        settle(qtbot, sky_map)
        qtbot.wait(30)
        assert axis.width() == before
    assert len(moves) <= 12


def test_tiles_that_are_planned_anew_while_others_are_being_made_wait_for_their_places(qtbot, sky_map):
    """Classic plans its master tiles first and the cells of the mosaic afterwards."""
    first, then = tiles_on(CANVAS, 900), tiles_on(CANVAS, 600)
    shown(qtbot, sky_map, (), first)
    sky_map.set_tile_state(first[0].tile, TileState.DONE)
    sky_map.set_tiles(then)
    sky_map._draw_tiles()
    settle(qtbot, sky_map)
    assert len(sky_map._tile_quads) == len(then)
    assert sky_map.tile_state(then[0].tile) is TileState.WAITING


def test_lines_are_as_wide_on_a_fine_screen(sky_map, monkeypatch):
    items = [sky_map._highlight_item, sky_map._canvas_item, sky_map._outlines]
    before = [item.pen().widthF() for item in items]
    monkeypatch.setattr(sky_map, "devicePixelRatioF", lambda: 2.0)
    QApplication.sendEvent(sky_map, QEvent(QEvent.Type.DevicePixelRatioChange))
    assert [item.pen().widthF() for item in items] == [2.0 * width for width in before]


def test_the_legend_takes_two_lines_where_one_is_too_long(qtbot, sky_map):
    sky_map.set_frames(frames_on(CANVAS, 10))
    sky_map.set_tiles(tiles_on(CANVAS))
    qtbot.waitUntil(lambda: not sky_map.busy, timeout=20_000)
    first, last = sky_map._ramp_label, sky_map._swatches[TileState.DONE]
    sky_map.set_tile_state(1, TileState.RUNNING)  # the states of tiles are explained once there are some
    qtbot.waitUntil(last.isVisible, timeout=5000)
    sky_map.resize(1000, 480)
    qtbot.waitUntil(lambda: height_of(first) == height_of(last), timeout=5000)
    sky_map.resize(sky_map.minimumSizeHint().width(), 480)
    assert sky_map.width() < 600
    qtbot.waitUntil(lambda: height_of(first) < height_of(last), timeout=5000)


def height_of(widget):
    return widget.mapTo(widget.window(), widget.rect().center()).y() // 5
