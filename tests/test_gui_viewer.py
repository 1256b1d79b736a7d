"""The mosaic viewer on the mosaic of a run, and on one that is larger than memory."""

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("pyqtgraph")

from PySide6.QtCore import QPointF, Qt

from grid_mode import GridSettings
from pictures import assert_it_goes, assert_it_speaks_french, nothing_left, settle
from surveys import Run, survey_in
from test_gui_pyramid import large_image
from zemosaic_fits_products import read_product_wcs
from zemosaic_gui_sky import dec_text, ra_text
from zemosaic_gui_viewer import MosaicViewer
from zemosaic_synthetic import small_spec


@pytest.fixture(scope="module", params=[False, True], ids=["mono", "colour"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    survey_in(folder / "frames", small_spec(seed=4, color=request.param, frames_per_panel=2))
    return Run(folder / "frames", folder / "out", GridSettings(workers=1))


@pytest.fixture
def viewer(qtbot):
    widget = MosaicViewer()
    widget.resize(640, 480)
    widget.show()
    with nothing_left(widget):
        yield widget


def opened(qtbot, viewer, path):
    with qtbot.waitSignal(viewer.opened, timeout=20_000) as heard:
        viewer.open(path)
    settle(qtbot, viewer)
    return heard.args[0]


def picture(viewer):
    """The finest picture that is shown, (h, w, 4)."""
    item = viewer._whole_item if viewer._view_item.image is None else viewer._view_item
    return item.image


def mosaic_of(run):
    return run.mosaic.reshape(-1, *run.mosaic.shape[-2:])


def a_covered_pixel(run):
    rows, columns = np.nonzero(np.isfinite(mosaic_of(run)).all(axis=0))
    middle = len(rows) // 2
    return int(columns[middle]), int(rows[middle])


def test_the_mosaic_of_a_run_is_shown_whole(qtbot, viewer, run):
    assert opened(qtbot, viewer, run.paths.mosaic) == str(run.paths.mosaic)
    shown = picture(viewer)
    covered = np.isfinite(mosaic_of(run)).any(axis=0)
    assert np.mean(shown[..., 3] > 0) == pytest.approx(covered.mean(), abs=0.05)
    assert len(np.unique(shown[..., 0])) > 20
    assert viewer._channel.isHidden() == (mosaic_of(run).shape[0] == 1)
    assert not viewer._note.isVisible()


def test_the_readout_is_the_mosaics_value_and_place(qtbot, viewer, run):
    opened(qtbot, viewer, run.paths.mosaic)
    viewer.one_to_one()
    settle(qtbot, viewer)
    assert viewer.zoom() == pytest.approx(1.0, rel=1e-3)
    x, y = a_covered_pixel(run)
    text = viewer.describe(x, y)
    ra, dec = read_product_wcs(run.paths.mosaic).wcs_pix2world(x, y, 0)
    assert f"x {x + 1}  y {y + 1}" in text
    assert ra_text(float(ra)) in text
    assert dec_text(float(dec)) in text
    assert "  ".join(f"{value:.5g}" for value in mosaic_of(run)[:, y, x]) in text
    assert "≈" not in text
    assert viewer.describe(-50.0, 0.0) == ""


def test_the_readout_follows_the_mouse(qtbot, viewer, run):
    opened(qtbot, viewer, run.paths.mosaic)
    x, y = a_covered_pixel(run)
    place = viewer._view.mapViewToScene(QPointF(x, y))
    viewer._plot.scene().sigMouseMoved.emit(place)
    assert viewer._readout.text() == viewer.describe(x, y) != ""


def test_the_coverage_lies_over_the_mosaic(qtbot, viewer, run):
    opened(qtbot, viewer, run.paths.mosaic)
    assert viewer._coverage_item.image is None
    viewer._coverage_box.click()
    settle(qtbot, viewer)
    assert viewer._coverage_item.isVisible()
    assert viewer._ramp.range_shown()[1] == str(int(run.coverage.max()))
    x, y = a_covered_pixel(run)
    n = run.coverage.reshape(-1, *run.coverage.shape[-2:])[:, y, x].max()
    assert f"{n} frame" in viewer.describe(x, y)
    viewer._coverage_box.click()
    assert not viewer._coverage_item.isVisible()


def test_the_sliders_change_the_picture_and_auto_takes_it_back(qtbot, viewer, run):
    opened(qtbot, viewer, run.paths.mosaic)
    before = picture(viewer).copy()
    for name in ("black", "white", "strength"):
        viewer._sliders[name].setValue(40)
        settle(qtbot, viewer)
        assert not np.array_equal(picture(viewer), before)
        qtbot.mouseClick(viewer._reset_button, Qt.MouseButton.LeftButton)
        settle(qtbot, viewer)
        assert np.array_equal(picture(viewer), before)


def test_one_channel_of_a_colour_mosaic_is_grey(qtbot, viewer, run):
    opened(qtbot, viewer, run.paths.mosaic)
    if mosaic_of(run).shape[0] == 3:
        assert not np.array_equal(picture(viewer)[..., 0], picture(viewer)[..., 2])
    viewer._channel.setCurrentIndex(2)
    settle(qtbot, viewer)
    assert np.array_equal(picture(viewer)[..., 0], picture(viewer)[..., 2])


def test_fit_shows_all_after_the_keys_have_moved_the_view(qtbot, viewer, run):
    opened(qtbot, viewer, run.paths.mosaic)
    whole = viewer._view.viewRect()
    for key in (Qt.Key.Key_Plus, Qt.Key.Key_Plus, Qt.Key.Key_Left, Qt.Key.Key_Up):
        before = viewer._view.viewRect()
        qtbot.keyClick(viewer._plot, key)
        assert viewer._view.viewRect() != before
    assert viewer._view.viewRect().width() < whole.width()
    qtbot.mouseClick(viewer._fit_button, Qt.MouseButton.LeftButton)
    assert viewer._view.viewRect().width() == pytest.approx(whole.width())
    settle(qtbot, viewer)


def test_a_very_large_mosaic_is_shown_whole_and_pixel_by_pixel(qtbot, viewer, tmp_path):
    opened(qtbot, viewer, large_image(tmp_path / "mosaic_grid.fits", c=1))
    assert viewer._layer.whole.pixels.size < 1e6
    viewer._view.setRange(xRange=(30_000, 30_100), yRange=(25_590, 25_610), padding=0)
    settle(qtbot, viewer)
    assert viewer._layer.view.step == 1
    assert "30051  y 25601" in viewer.describe(30_050.0, 25_600.0)
    assert viewer.describe(30_050.0, 25_600.0).endswith("30050")


def test_what_cannot_be_shown_is_said(qtbot, viewer, run, tmp_path):
    opened(qtbot, viewer, run.paths.mosaic)
    with qtbot.waitSignal(viewer.failed) as heard:
        viewer.open(tmp_path / "absent.fits")
    assert "absent.fits" in heard.args[0]
    assert "absent.fits" in viewer._note.text()
    assert viewer._note.isVisible()
    assert not viewer._fit_button.isEnabled()
    assert viewer.describe(3.0, 3.0) == ""


def test_the_last_of_several_mosaics_is_shown(qtbot, viewer, run, tmp_path):
    viewer.open(large_image(tmp_path / "large.fits"))
    assert opened(qtbot, viewer, run.paths.mosaic) == str(run.paths.mosaic)
    assert viewer._layer.info.path == run.paths.mosaic


def test_a_viewer_can_be_closed_while_it_reads(qtbot, viewer, tmp_path):
    viewer.open(large_image(tmp_path / "large.fits"))
    assert viewer.busy


def test_nothing_is_left_of_what_is_closed(qtbot):
    assert_it_goes(qtbot, MosaicViewer)


def test_the_words_follow_the_language(viewer):
    assert "Ajuster" in assert_it_speaks_french(viewer)
