"""Cells, and who touches whom."""

import numpy as np
import pytest

from zemosaic_reproject import Placement
from zemosaic_tiling import (
    cell_length_px,
    cut_cells,
    frames_of_cells,
    separate_isolated,
)
from zemosaic_types import Rect


@pytest.mark.parametrize("shape", [(1, 1), (100, 100), (2406, 3278), (40000, 1000), (127, 129)])
@pytest.mark.parametrize("length", [64, 128, 1920])
def test_cells_cover_the_canvas_exactly_once(shape, length):
    cells = cut_cells(shape, length)
    assert sum(cell.shape[0] * cell.shape[1] for cell in cells) == shape[0] * shape[1]
    for first in range(len(cells)):
        for second in cells[first + 1 : first + 40]:
            assert cells[first].intersect(second).empty
    assert all(not cell.empty and Rect(0, shape[0], 0, shape[1]).intersect(cell) == cell for cell in cells)


@pytest.mark.parametrize("size", [2406, 1921, 3839, 641])
def test_cells_are_of_one_size_without_slivers(size):
    heights = {cell.shape[0] for cell in cut_cells((size, 10), 640)}
    assert max(heights) - min(heights) <= 1
    assert max(heights) <= 641


@pytest.mark.parametrize("step", [2, 5, 32])
@pytest.mark.parametrize("shape", [(2406, 3278), (65, 40000), (3, 70)])
def test_cells_that_start_at_multiples_of_a_step_cover_the_canvas_too(shape, step):
    cells = cut_cells(shape, 640, step=step)
    filled = np.zeros(shape, dtype=int)
    for cell in cells:
        assert (cell.y0 % step, cell.x0 % step) == (0, 0)
        assert not cell.empty
        filled[cell.slices] += 1
    assert (filled == 1).all()
    widths = [cell.shape[1] for cell in cells]
    assert max(widths) - min(widths) <= 2 * step


def test_the_cell_length_follows_the_frames_and_the_factor():
    sizes = [(1080, 1920)] * 5 + [(2160, 3840)] * 2
    assert cell_length_px(sizes, 1.0) == 1920
    assert cell_length_px(sizes, 2.0) == 960
    assert cell_length_px(sizes, 1e6) == 64


def square(x, y, side, angle=0.0):
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side / 2
    c, s = np.cos(angle), np.sin(angle)
    polygon = corners @ np.array([[c, s], [-s, c]]) + [x, y]
    low, high = np.floor(polygon.min(axis=0)).astype(int), np.ceil(polygon.max(axis=0)).astype(int)
    bounds = Rect(low[1], high[1] + 1, low[0], high[0] + 1)
    return Placement(bounds, 64, 1.0, tuple(map(tuple, polygon.tolist())))


def test_frames_go_to_the_cells_that_their_polygon_touches_not_their_box():
    diamond = square(100, 100, 100, np.pi / 4)  # reaches 71 px along the axes, 50 px along the diagonals
    cells = [Rect(30, 46, 30, 46), Rect(30, 80, 90, 110), Rect(90, 110, 90, 110), Rect(200, 220, 200, 220)]
    assert frames_of_cells([diamond], cells) == [[], [0], [0], []]


def test_a_far_frame_is_told_from_the_mosaic_and_a_gap_is_not():
    centres = np.array([[10.0, 60.0], [11.0, 60.0], [16.0, 60.0], [190.0, -60.0], [10.0, -60.0]])
    inside, distance = separate_isolated(centres, np.full(5, 1.4))
    assert inside.tolist() == [True, True, True, False, False]
    assert distance[:3].max() == pytest.approx(0, abs=1e-6)
    assert distance[3] == pytest.approx(177.0, abs=0.1)  # from the frame at RA 16
    assert distance[4] == pytest.approx(120, abs=0.5)


def test_the_mosaic_is_found_across_ra_zero_and_the_pole():
    around = np.array([[359.9, 10.0], [0.1, 10.0], [0.5, 10.2]])
    assert separate_isolated(around, np.full(3, 1.0))[0].all()
    pole = np.array([[0.0, 89.9], [120.0, 89.9], [240.0, 89.9]])
    assert separate_isolated(pole, np.full(3, 1.0))[0].all()


def test_a_single_frame_is_its_own_mosaic():
    assert separate_isolated(np.array([[10.0, 20.0]]), np.array([1.0]))[0].tolist() == [True]
