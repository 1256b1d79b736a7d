"""The picture of the frame that the user looks at."""

import pytest

pytest.importorskip("PySide6")

from pictures import nothing_left
from surveys import survey_in
from zemosaic_events import SurveyFrame
from zemosaic_gui_frame_card import FrameCard, FrameGlimpse
from zemosaic_synthetic import small_spec


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two frames, and a file that is none."""
    folder = tmp_path_factory.mktemp("frames")
    survey_in(folder, small_spec(seed=3))
    (folder / "broken.fit").write_bytes(b"nothing")
    first, second, *_ = sorted(folder.glob("Light*.fit"))
    return str(first), str(second), str(folder / "broken.fit")


@pytest.fixture
def glimpse(qtbot):
    widget = FrameGlimpse()
    widget.resize(300, 200)
    widget.show()
    with nothing_left(widget):
        yield widget


def seen(qtbot, glimpse, path):
    """Return the picture of a file, None if none is shown."""
    glimpse.show_frame(path)
    qtbot.waitUntil(lambda: not glimpse.busy, timeout=20_000)
    pixmap = glimpse.pixmap()
    return None if pixmap.isNull() else pixmap.toImage()


def test_one_frame_after_another_is_shown(qtbot, glimpse, paths):
    first = seen(qtbot, glimpse, paths[0])
    second = seen(qtbot, glimpse, paths[1])
    assert first != second
    assert seen(qtbot, glimpse, paths[0]) == first
    assert first.width() <= 300 * glimpse.devicePixelRatioF()
    assert min(first.width(), first.height()) > 100


def test_only_the_latest_of_several_is_shown(qtbot, glimpse, paths):
    first = seen(qtbot, glimpse, paths[0])
    glimpse.show_frame(paths[1])
    assert seen(qtbot, glimpse, paths[0]) == first


def test_a_file_that_cannot_be_read_takes_no_room_and_the_next_one_does(qtbot, glimpse, paths):
    assert seen(qtbot, glimpse, paths[2]) is None
    assert not glimpse.isVisible()
    assert seen(qtbot, glimpse, paths[0]) is not None
    assert glimpse.isVisible()


def test_no_frame_is_no_picture(qtbot, glimpse, paths):
    seen(qtbot, glimpse, paths[0])
    assert seen(qtbot, glimpse, "") is None
    assert not glimpse.isVisible()


def test_the_long_name_of_a_frame_is_broken_not_cut_off(qtbot):
    card = FrameCard()
    qtbot.addWidget(card)
    card.show_frame(SurveyFrame("Light_M_94_10.0s_IRCUT_20250326-212046.fit", "/no/such.fit"), False)
    assert card.minimumSizeHint().width() < 280
    assert card.name.heightForWidth(280) > 1.5 * card.name.fontMetrics().height()
    card.shutdown()
