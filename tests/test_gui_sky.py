"""The geometry of the sky map: the plane, the depth, the grid of the sky."""

import numpy as np
import pytest

from pictures import canvas_of, frames_on
from zemosaic_gui_sky import TangentPlane, covering, dec_text, depth_image, middle_of, ra_text, sky_grid

EXTENT = (-2.0, 2.0, -1.5, 1.5)


def quads_of(n, seed=0):
    """Random convex footprints on the plane."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)[:, None] + np.array([0.3, 1.9, 3.4, 5.0])
    return 0.4 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + rng.uniform(-2.2, 2.2, (n, 1, 2))


def slow_depth(quads, extent, shape):
    """Ask for each centre of a cell which footprints hold it."""
    x = extent[0] + (np.arange(shape[1]) + 0.5) * (extent[1] - extent[0]) / shape[1]
    y = extent[2] + (np.arange(shape[0]) + 0.5) * (extent[3] - extent[2]) / shape[0]
    return np.array([[len(covering(quads, a, b)) for a in x] for b in y])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_depth_is_the_number_of_footprints_over_each_cell(seed):
    quads = quads_of(40, seed)
    assert np.array_equal(depth_image(quads, EXTENT, (37, 53)), slow_depth(quads, EXTENT, (37, 53)))


def test_the_depth_does_not_depend_on_how_many_are_counted_at_a_time(monkeypatch):
    import zemosaic_gui_sky

    quads = quads_of(60, 4)
    whole = depth_image(quads, EXTENT, (64, 64))
    monkeypatch.setattr(zemosaic_gui_sky, "_MAX_CROSSINGS", 50)
    assert np.array_equal(depth_image(quads, EXTENT, (64, 64)), whole)
    assert whole.max() > 1


def test_footprints_with_edges_along_the_rows_are_counted():
    box = np.array([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]])
    depth = depth_image(box, (-2.0, 2.0, -2.0, 2.0), (8, 8))
    assert depth.sum() == 16
    assert (depth[2:6, 2:6] == 1).all()


def test_footprints_without_a_place_and_none_at_all_give_no_depth():
    assert depth_image(np.full((3, 4, 2), np.nan), EXTENT, (5, 6)).sum() == 0
    assert depth_image(np.empty((0, 4, 2)), EXTENT, (5, 6)).shape == (5, 6)


def test_either_order_of_the_corners_holds_the_same_positions():
    quads = quads_of(30, 5)
    for x, y in np.random.default_rng(6).uniform(-2, 2, (50, 2)):
        assert np.array_equal(covering(quads, x, y), covering(quads[:, ::-1], x, y))


def test_north_is_up_and_east_is_left():
    plane = TangentPlane(100.0, 20.0)
    east, north = plane.project(np.array([[100.1, 20.0], [100.0, 20.1]]))
    assert east[0] == pytest.approx(-0.1 * np.cos(np.deg2rad(20.0)), rel=1e-5)
    assert north == pytest.approx((0.0, 0.1), abs=1e-6)
    assert plane.sky(east) == pytest.approx((100.1, 20.0))


def test_what_is_far_from_the_centre_has_no_place():
    assert np.isnan(TangentPlane(10.0, 0.0).project(np.array([[190.0, 0.0], [95.0, 0.0]]))).all()


@pytest.mark.parametrize("ra", [0.0, 359.9, 192.7])
def test_the_middle_is_found_across_the_end_of_the_hours(ra):
    frames = frames_on(canvas_of(centre_deg=(ra, -41.0)), 200, seed=2)
    middle = middle_of(np.array([frame.corners_deg for frame in frames]))
    assert (middle[0] - ra + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=0.3)
    assert middle[1] == pytest.approx(-41.0, abs=0.3)


def test_a_frame_that_is_lost_does_not_move_the_middle():
    frames = frames_on(canvas_of(), 20, seed=3)
    corners = np.array([frame.corners_deg for frame in frames])
    lost = np.concatenate([corners, np.full((1, 4, 2), 3.0)])
    assert middle_of(lost) == pytest.approx(middle_of(corners), abs=0.2)


def test_the_labels_of_the_grid_stand_where_their_lines_meet_the_edges():
    plane = TangentPlane(192.7, 41.1)
    grid = sky_grid(plane, EXTENT)
    assert 2 <= len(grid.bottom) <= 9
    assert 2 <= len(grid.left) <= 9
    for x, text in grid.bottom:
        assert ra_text(plane.sky(np.array([x, EXTENT[2]]))[0], 0.5) == text
    for y, text in grid.left:
        assert dec_text(plane.sky(np.array([EXTENT[0], y]))[1], 1 / 60).startswith(text[:-1])


def test_the_grid_around_a_pole_has_meridians_all_around():
    grid = sky_grid(TangentPlane(10.0, 89.5), (-2.0, 2.0, -2.0, 2.0))
    assert np.isfinite(grid.x).sum() > 100
    assert grid.bottom


@pytest.mark.parametrize(
    ("ra", "step", "text"),
    [(0.0, 0.0, "0ʰ00ᵐ00.0ˢ"), (359.99999, 0.0, "0ʰ00ᵐ00.0ˢ"), (192.7, 1.25, "12ʰ50ᵐ"), (15.0, 15.0, "1ʰ")],
)
def test_right_ascensions_read_as_hours(ra, step, text):
    assert ra_text(ra, step) == text


@pytest.mark.parametrize(
    ("dec", "step", "text"),
    [(41.1, 0.0, "+41°06′00″"), (-0.5, 0.1, "−0°30′"), (-0.00001, 0.0, "+0°00′00″"), (89.99999, 1.0, "+90°")],
)
def test_declinations_read_with_their_sign(dec, step, text):
    assert dec_text(dec, step) == text
