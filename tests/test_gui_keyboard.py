"""The desktop program without a mouse: the tab key comes everywhere, and keys do all that clicks do."""

from contextlib import contextmanager

import numpy as np
import pytest
from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QFont, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QGraphicsView,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QScrollArea,
    QSlider,
    QTabBar,
    QWidget,
)

import zemosaic_worker
from programs import LONG_MS, opened
from surveys import Run, survey_in
from zemosaic_synthetic import small_spec
from zemosaic_worker import Pipeline

INTERACTIVE = (
    *(QAbstractButton, QAbstractItemView, QAbstractSpinBox, QComboBox, QGraphicsView),
    *(QLineEdit, QPlainTextEdit, QSlider, QTabBar),
)
MOST_STOPS = 200
KEY = Qt.Key


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "frames"
    survey_in(folder, small_spec(seed=3))
    return folder


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory, frames):
    return Run(frames, tmp_path_factory.mktemp("made")).paths.mosaic


@contextmanager
def begun(qtbot, **values):
    """A window in which the keyboard has its first place."""
    with opened(qtbot, **values) as window:
        window.activateWindow()
        qtbot.waitUntil(window.primary.hasFocus, timeout=5000)
        yield window


def press(*keys, modifier=Qt.KeyboardModifier.NoModifier):
    """Press keys where the focus is."""
    for key in keys:
        assert QApplication.focusWidget() is not None
        QTest.keyClick(QApplication.focusWidget(), key, modifier)


def text(words):
    QTest.keyClicks(QApplication.focusWidget(), words)


def name_of(window):
    """Return the frame that the card shows; its name has places where a line may end."""
    return window.input.frame.name.text().replace("\u200b", "")


def settled(qtbot, *places):
    for place in places:
        qtbot.waitUntil(lambda place=place: place.widget is not None and not place.widget.busy, timeout=LONG_MS)
    qtbot.wait(50)


def chain(start, key=KEY.Key_Tab):
    """Return where the tab key stops, from a widget until it is there again."""
    start.setFocus()
    stops = []
    while len(stops) < MOST_STOPS:
        before = QApplication.focusWidget()
        press(key)
        after = QApplication.focusWidget()
        assert after is not before, f"{before} keeps the tab key"
        stops.append(after)
        if after is start:
            return stops
    raise AssertionError(f"the tab key does not come back to {start}")


def is_part(widget):
    """Whether a widget is a piece of another one that has the focus for it."""
    parent = widget.parentWidget()
    piece = isinstance(widget, QHeaderView) or (
        isinstance(widget, QAbstractButton) and isinstance(parent, QTabBar | QLineEdit)
    )
    return piece or isinstance(parent, QAbstractSpinBox | QComboBox)


def interactive(window):
    """Return all widgets that a user can do something with now."""
    found = [w for w in window.findChildren(QWidget) if isinstance(w, INTERACTIVE)]
    found = [w for w in found if w.isVisible() and w.isEnabled() and not is_part(w)]
    # Of buttons of which one is down the tab key stops at that one; arrows go to the others.
    return [w for w in found if w not in window.steps.values() or w.isChecked()]


def assert_all_are_reached(window):
    start = window.input.tabs.tabBar() if window.step == "input" else window.back
    wanted, stops = interactive(window), chain(start if start.isVisible() else window.primary)
    assert [w for w in wanted if w not in stops] == []
    assert [w for w in stops if w not in wanted] == []
    assert chain(stops[-1], KEY.Key_Backtab) == [*reversed(stops[:-1]), stops[-1]]
    return stops


def looked_at(qtbot, window, frames):
    window.input.choose(str(frames))
    qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
    window.input.select(sorted(window.input.found.frames)[0])
    settled(qtbot, window.input.map)


def walk(qtbot, window, frames, mosaic):
    """Go to every page and every tab, each with all that it can show."""
    yield "start"
    looked_at(qtbot, window, frames)
    yield "sky map"
    window.input.tabs.setCurrentIndex(1)
    settled(qtbot, window.input.table)
    yield "frames"
    window.go("mosaic")
    window.mosaic.options.advanced.setChecked(True)
    qtbot.waitUntil(lambda: window.mosaic.grid.answered, timeout=LONG_MS)
    yield "options"
    window.go("run")
    settled(qtbot, window.run_page.map)
    yield "run"
    window.run_page.tabs.setCurrentIndex(1)
    qtbot.wait(50)
    yield "problems"
    window.go("result")
    settled(qtbot, window.result_page.viewer)
    window.result_page.open_mosaic(mosaic)
    settled(qtbot, window.result_page.viewer)
    yield "mosaic"
    window.result_page.tabs.setCurrentIndex(1)
    settled(qtbot, window.result_page.table)
    yield "frames by harm"


# ---- where the tab key comes -----------------------------------------------------------------------------


def test_the_tab_key_comes_to_everything_and_leaves_it_on_every_page(qtbot, frames, mosaic, tmp_path):
    with begun(qtbot, output_dir=str(tmp_path), grid_workers=2) as window:
        pages = [name for name in walk(qtbot, window, frames, mosaic) if len(assert_all_are_reached(window)) > 5]
        assert len(pages) == 8


def test_the_tab_key_goes_from_the_top_to_the_button_that_leads_on(qtbot, frames, tmp_path):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        looked_at(qtbot, window, frames)
        page = window.input
        order = [window.steps["input"], window.view, page.input.line, page.input.button, page.output.line]
        order += [page.output.button, page.tabs.tabBar(), page.map.widget.findChild(QGraphicsView), page.again]
        assert chain(window.steps["input"]) == [*order[1:], page.frame.button, window.primary, order[0]]
        window.go("run")
        settled(qtbot, window.run_page.map)
        page = window.run_page
        order = [window.steps["run"], window.view, page.map.widget.findChild(QGraphicsView), page.tabs.tabBar()]
        order += [page.log.level, page.log.search, page.log.view, window.back, window.primary]
        assert chain(window.steps["run"]) == [*order[1:], order[0]]


@pytest.mark.parametrize("language", ["en", "fr"])
def test_everything_that_the_tab_key_comes_to_has_a_name(qtbot, frames, mosaic, tmp_path, language):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        window.use_language(language)
        for page in walk(qtbot, window, frames, mosaic):
            named = {label.buddy() for label in window.findChildren(QLabel)}
            for widget in interactive(window):
                words = widget.text() if isinstance(widget, QAbstractButton) else ""
                words = words or (isinstance(widget, QTabBar) and widget.tabText(0))
                assert widget.accessibleName() or words or widget in named, f"{widget} of {page}"


def test_an_area_that_scrolls_is_a_stop_only_where_there_is_something_to_scroll(qtbot, frames, tmp_path):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        looked_at(qtbot, window, frames)
        area = window.input.frame.parentWidget().parentWidget().parentWidget()
        assert area not in chain(window.primary)
        window.resize(1240, 560)
        qtbot.waitUntil(lambda: area.verticalScrollBar().maximum() > 0, timeout=5000)
        assert area in chain(window.primary)
        area.setFocus()
        press(KEY.Key_Down)
        assert area.verticalScrollBar().value() > 0


# ---- what keys do ----------------------------------------------------------------------------------------


def test_a_run_is_started_and_seen_by_keys_alone(qtbot, frames, tmp_path, monkeypatch):
    monkeypatch.setitem(zemosaic_worker.PIPELINES, "grid", Pipeline("recording_pipeline", "record", "Settings"))
    with begun(qtbot) as window:
        press(*[KEY.Key_Tab] * 3)
        assert QApplication.focusWidget() is window.input.input.line
        text(str(frames))
        press(KEY.Key_Tab, KEY.Key_Tab)
        assert QApplication.focusWidget() is window.input.output.line
        press(KEY.Key_A, modifier=Qt.KeyboardModifier.ControlModifier)
        text(str(tmp_path / "out"))
        press(KEY.Key_Return)
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        press(*[KEY.Key_Backtab] * 5)
        assert QApplication.focusWidget() is window.primary
        press(KEY.Key_Return)
        assert window.step == "mosaic"

        while QApplication.focusWidget() is not window.mosaic.presets.buttons["fast"]:
            press(KEY.Key_Tab)
        press(KEY.Key_Space)
        assert window.settings.preset() == "fast"
        while QApplication.focusWidget() is not window.mosaic.grid.enabled.editor.focusProxy():
            press(KEY.Key_Tab)
        press(KEY.Key_Space, KEY.Key_Tab, KEY.Key_Tab, KEY.Key_Up, KEY.Key_Up, KEY.Key_Tab, KEY.Key_Tab)
        press(KEY.Key_Down, KEY.Key_Down)
        while QApplication.focusWidget() is not window.primary:
            press(KEY.Key_Tab)
        press(KEY.Key_Space)
        assert window.step == "run"
        assert window.primary.text() == "Start"
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)

        press(KEY.Key_Return)
        assert window.run.running
        assert QApplication.focusWidget() is window.run_page.tabs.tabBar()  # not at the button that cancels
        qtbot.waitUntil(lambda: not window.run.running, timeout=LONG_MS)
        said = "\n".join(line.text for line in window.run_page.log.lines)
        for words in ("workers = 2", "gpu_decided_by = 'use_gpu_grid'", "refine_wcs = 'off'"):
            assert words in said
        assert QApplication.focusWidget() is window.primary
        press(KEY.Key_Backtab)
        assert QApplication.focusWidget() is window.cancel
        press(KEY.Key_2, modifier=Qt.KeyboardModifier.ControlModifier)
        assert QApplication.focusWidget() is window.primary  # the other one is not here
        press(KEY.Key_Space)
        assert window.step == "run"
        press(KEY.Key_Space)
        assert window.step == "result"


def test_arrows_go_from_step_to_step_and_a_number_leads_to_one(qtbot):
    with begun(qtbot) as window:
        window.steps["input"].setFocus()
        press(KEY.Key_Right)
        assert window.step == "mosaic"
        press(KEY.Key_Right)
        assert window.step == "run"
        assert window.steps["run"].hasFocus()
        press(KEY.Key_Left)
        assert window.step == "mosaic"
        press(KEY.Key_4, modifier=Qt.KeyboardModifier.ControlModifier)
        assert window.step == "result"
        assert "4" in window.steps["result"].toolTip()


@pytest.mark.parametrize("key", [KEY.Key_Return, KEY.Key_Space])
def test_the_place_to_drop_a_folder_asks_for_one(qtbot, frames, monkeypatch, key):
    monkeypatch.setattr("zemosaic_gui_input.QFileDialog.getExistingDirectory", lambda *_: str(frames))
    with begun(qtbot) as window:
        window.input.drop.setFocus()
        press(key)
        assert window.settings.value("input_dir") == str(frames)


def test_a_key_that_is_held_down_does_not_press_a_button_again(qtbot):
    with begun(qtbot) as window:
        window.go("mosaic")
        window.primary.setFocus()
        QTest.simulateEvent(window.primary, True, KEY.Key_Return, Qt.KeyboardModifier.NoModifier, "\r", True)
        assert window.step == "mosaic"
        press(KEY.Key_Return)
        assert window.step == "run"


def test_language_and_theme_are_chosen_by_keys(qtbot):
    def choose():
        menu = QApplication.activePopupWidget()
        assert menu is window.view.menu()
        QTest.keyClick(menu, KEY.Key_Down)
        while menu.activeAction().text() != "Français":
            QTest.keyClick(menu, KEY.Key_Down)
        QTest.keyClick(menu, KEY.Key_Return)

    with begun(qtbot) as window:
        window.view.setFocus()
        QTimer.singleShot(100, choose)
        press(KEY.Key_Return)
        qtbot.waitUntil(lambda: window.view.text() == "Langue et thème", timeout=5000)


def test_the_sky_map_moves_zooms_and_chooses_a_frame_by_keys(qtbot, frames, tmp_path):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        looked_at(qtbot, window, frames)
        window.input.select("")
        plot = window.input.map.widget.findChild(QGraphicsView)
        plot.setFocus()
        view = plot.getViewBox()
        whole = view.viewRect()
        press(KEY.Key_Plus, KEY.Key_Right)
        assert view.viewRect().width() < 0.9 * whole.width()
        assert view.viewRect().center().x() != pytest.approx(whole.center().x())
        press(KEY.Key_0)
        assert view.viewRect().getRect() == pytest.approx(whole.getRect())
        press(KEY.Key_Return)
        first = name_of(window)
        assert first in window.input.found.frames
        press(KEY.Key_Return)
        assert name_of(window) in set(window.input.found.frames) - {first}


def test_the_table_chooses_ticks_and_sorts_by_keys(qtbot, frames, tmp_path):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        looked_at(qtbot, window, frames)
        window.input.tabs.setFocus()
        press(KEY.Key_Right)
        settled(qtbot, window.input.table)
        view = next(v for v in window.input.table.widget.findChildren(QAbstractItemView) if v.accessibleName())
        view.setFocus()
        press(KEY.Key_Down)
        chosen = name_of(window)
        press(KEY.Key_Space)
        assert window.input.excluded == {chosen}
        press(KEY.Key_Home, KEY.Key_Return)
        assert view.horizontalHeader().sortIndicatorSection() == -1
        names = [view.model().index(0, 0).data()]
        for _ in range(2):
            press(KEY.Key_Return, modifier=Qt.KeyboardModifier.ControlModifier)
            names.append(view.model().index(0, 0).data())
        assert names[1:] == [min(window.input.found.frames), max(window.input.found.frames)]


def test_the_viewer_moves_and_zooms_by_keys(qtbot, mosaic):
    with begun(qtbot) as window:
        window.go("result")
        window.result_page.open_mosaic(mosaic)
        settled(qtbot, window.result_page.viewer)
        viewer = window.result_page.viewer.widget
        viewer.findChild(QGraphicsView).setFocus()
        fit = viewer.zoom()
        press(KEY.Key_1)
        assert viewer.zoom() == pytest.approx(1.0)
        press(KEY.Key_Plus)
        assert viewer.zoom() > 1.2
        press(KEY.Key_0)
        assert viewer.zoom() == pytest.approx(fit)


# ---- what is seen of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_focus_is_seen(qtbot, frames, mosaic, tmp_path, theme):
    """More than a caret that blinks changes where the tab key comes."""
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        window.use_theme(theme)
        for page in walk(qtbot, window, frames, mosaic):
            window.setFocus()
            without = {widget: picture(widget) for widget in interactive(window)}
            for stop in chain(window.back if window.back.isVisible() else window.primary):
                press(KEY.Key_Tab)
                assert changed_px(without[stop], picture(stop)) > 30, f"{stop} of {page}"


def picture(widget):
    return widget.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)


def changed_px(one, other):
    assert one.size() == other.size()
    pixels = [np.frombuffer(image.constBits(), dtype=np.uint32) for image in (one, other)]
    return np.count_nonzero(pixels[0] != pixels[1])


# ---- small screens, fine screens, large letters -----------------------------------------------------------


def cut(window):
    """Return the words that have too little room now."""
    found = [button for button in window.findChildren(QPushButton) if button.text() and button.isVisible()]
    found = [button.text() for button in found if button.width() < button.minimumSizeHint().width()]
    for label in window.findChildren(QLabel):
        if label.isVisible() and label.text():
            lines = label.heightForWidth(label.width()) if label.wordWrap() else label.sizeHint().height()
            wide = label.wordWrap() or label.width() >= label.sizeHint().width()
            found += [] if wide and label.height() >= lines else [label.text()]
    areas = [area for area in window.findChildren(QScrollArea) if area.isVisible()]
    return found + [area for area in areas if area.widget().width() > area.viewport().width()]


def assert_nothing_is_cut(qtbot, window, page):
    qtbot.wait(50)
    assert window.rect().contains(window.primary.mapTo(window, window.primary.rect().bottomRight()))
    assert cut(window) == [], page


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_window_fits_a_small_screen(qtbot, frames, mosaic, tmp_path, language):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        window.use_language(language)
        window.resize(1024, 700)
        for page in walk(qtbot, window, frames, mosaic):
            assert (window.width(), window.height()) == (1024, 700), page
            assert_nothing_is_cut(qtbot, window, page)


@pytest.fixture
def large_letters():
    """Letters half as large again as usual, which some systems and users have."""
    before = QApplication.font()
    font = QFont(before)
    font.setPointSizeF(1.5 * before.pointSizeF())
    QApplication.setFont(font)
    yield font.pointSizeF()
    QApplication.setFont(before)


def test_large_letters_are_not_cut(qtbot, frames, mosaic, tmp_path, large_letters):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        for page in walk(qtbot, window, frames, mosaic):
            for size in ((1240, 800), (1, 700)):  # as narrow as it goes
                window.resize(*size)
                assert_nothing_is_cut(qtbot, window, page)
        assert window.run_page.status.font().pointSizeF() > 1.5 * large_letters


def test_the_frame_that_is_chosen_is_seen_without_scrolling(qtbot, frames, tmp_path):
    with begun(qtbot, output_dir=str(tmp_path)) as window:
        looked_at(qtbot, window, frames)
        picture = window.input.frame.picture
        qtbot.waitUntil(lambda: not picture.busy, timeout=LONG_MS)
        area = window.input.frame.parentWidget().parentWidget().parentWidget()
        assert window.size().toTuple() == (1240, 800)
        assert area.verticalScrollBar().maximum() == 0
        assert picture.height() > 80
        assert picture.pixmap().height() == picture.height()
        small = picture.height()
        window.resize(1240, 900)
        qtbot.waitUntil(lambda: picture.height() > small + 50, timeout=5000)
        assert picture.pixmap().height() == picture.height()
