"""What the tests of the map, the table and the viewer share: frames on a sky, and that nothing is left running."""

import gc
import threading
import weakref
from contextlib import contextmanager

import numpy as np
from PySide6.QtCore import QEvent, QTimer
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel

from zemosaic_events import PlannedTile, SurveyFrame
from zemosaic_gui_text import set_language
from zemosaic_reproject import Canvas
from zemosaic_tiling import cut_cells
from zemosaic_types import Rect

CENTRE_DEG = (192.7, 41.1)
BAD_REASON = "its distortion moves its corners by 40 px"


def canvas_of(shape=(3600, 5400), centre_deg=CENTRE_DEG):
    """A canvas of 2.4 arcsec a pixel about a place."""
    ny, nx = shape
    whole = Rect(-ny // 2, ny // 2, -nx // 2, nx // 2)
    return Canvas(centre_deg, (1.0, 1.0), 2.4 / 3600, 0.0, shape).window(whole)


def frames_on(canvas, n, seed=0, shape=(1080, 1920)):
    """Frames of the size of a Seestar's at random places of a canvas; every tenth cannot be used."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    half = 0.5 * np.array([[-nx, -ny], [nx, -ny], [nx, ny], [-nx, ny]])
    angle = np.deg2rad(rng.uniform(-8.0, 8.0, n))
    turn = np.stack(
        [np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], -2
    )
    centre = rng.uniform((nx / 2, ny / 2), (canvas.shape[1] - nx / 2, canvas.shape[0] - ny / 2), (n, 2))
    corners = np.einsum("nij,kj->nki", turn, half) + centre[:, None]
    sky = canvas.wcs().wcs_pix2world(corners.reshape(-1, 2), 0).reshape(n, 4, 2)
    return [
        SurveyFrame(
            frame_id=f"Light_{k:05d}.fit",
            path=f"/frames/Light_{k:05d}.fit",
            exposure_s=float(10 + k % 3),
            filter=("IRCUT", "LP")[k % 2],
            instrument="Seestar S50",
            date=f"2025-03-26T20:{k // 60 % 60:02d}:{k % 60:02d}",
            shape=shape,
            corners_deg=tuple(map(tuple, quad.tolist())),
            reason=BAD_REASON if k % 10 == 9 else "",
            usable=k % 10 != 9,
        )
        for k, quad in enumerate(sky)
    ]


def tiles_on(canvas, length=900):
    return tuple(
        PlannedTile(number, cell, canvas.corners_deg(cell), 3)
        for number, cell in enumerate(cut_cells(canvas.shape, length), start=1)
    )


def settle(qtbot, widget):
    """Wait until a widget has drawn what it was told."""
    qtbot.waitUntil(lambda: not widget.busy, timeout=20_000)


@contextmanager
def nothing_left(widget):
    """Shut a widget down at the end; its threads and timers must be gone."""
    before = set(threading.enumerate())
    try:
        yield widget
    finally:
        widget.shutdown()
        left = [thread.name for thread in set(threading.enumerate()) - before]
        running = [timer for timer in widget.findChildren(QTimer) if timer.isActive()]
        assert left == []
        assert running == []
        widget.close()
        gc.collect()


def assert_it_goes(qtbot, kind):
    """Nothing must hold a widget of a kind that was shown, shut down and closed."""
    widget = kind()
    widget.show()
    settle(qtbot, widget)
    widget.shutdown()
    widget.close()
    held = weakref.ref(widget)
    del widget
    gc.collect()
    assert held() is None


def assert_it_speaks_french(widget):
    """A widget whose program changes its language must take its words anew, all that it shows among them."""
    words = {found.text() for kind in (QLabel, QAbstractButton) for found in widget.findChildren(kind)}
    set_language("fr")
    try:
        QApplication.sendEvent(widget, QEvent(QEvent.Type.LanguageChange))
        now = {found.text() for kind in (QLabel, QAbstractButton) for found in widget.findChildren(kind)}
        assert len(now - words) >= 3
        return now
    finally:
        set_language("en")
