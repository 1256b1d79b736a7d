"""Cores into products: each counts once, gaps are filled, the picture is that of the whole mosaic."""

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_assembly import Assembly, write_core
from zemosaic_fits_products import read_image
from zemosaic_outputs import ProductPaths, open_products
from zemosaic_preview import MAX_PREVIEW_PX, shrink_rows
from zemosaic_stack_core import StackResult
from zemosaic_tiling import cut_cells
from zemosaic_types import OutputError, Rect

SHAPE = (70, MAX_PREVIEW_PX + 11)  # two pixels a side in the picture


def mosaic(n_channels):
    rng = np.random.default_rng(7)
    image = rng.normal(1000, 30, (n_channels, *SHAPE)).astype(np.float32)
    coverage = rng.integers(0, 5, image.shape).astype(np.int32)
    image[coverage == 0] = np.nan
    empty = np.zeros_like(coverage)
    return StackResult(image, (0.5 * coverage).astype(np.float32), coverage, empty, empty, np.zeros((1, 3)))


def cut(whole, rect):
    names = [name for name in StackResult.__dataclass_fields__ if name != "tally"]
    return StackResult(*(getattr(whole, name)[(slice(None), *rect.slices)] for name in names), whole.tally)


def products_of(folder, whole, work):
    """Return image, weight and coverage of the products that `work(assembly, cells)` fills."""
    paths, n_channels = ProductPaths(folder), len(whole.image)
    cells = cut_cells(SHAPE, 640, step=2)
    with open_products(paths, SHAPE, n_channels) as streams:
        assembly = Assembly(streams, SHAPE, n_channels)
        work(assembly, cells)
        for stream in streams.values():
            stream.complete(fits.Header())
            stream.close()
    return [read_image(path, 0)[1] for path in (paths.mosaic, paths.weight, paths.coverage)], assembly.picture


def stacked(assembly, cell, whole, margin):
    rect = cell.grown(margin).intersect(Rect(0, SHAPE[0], 0, SHAPE[1]))
    return write_core(assembly.places, cell, cut(whole, rect), rect)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("margin", [0, 30])
def test_the_cores_of_tiles_in_any_order_are_the_mosaic_and_its_picture(tmp_path, n_channels, margin):
    whole = mosaic(n_channels)

    def work(assembly, cells):
        for k in np.random.default_rng(3).permutation(len(cells)):
            assembly.take(cells[k], stacked(assembly, cells[k], whole, margin))
        assembly.fill_gaps(cells)

    (image, weight, coverage), picture = products_of(tmp_path, whole, work)
    np.testing.assert_array_equal(np.atleast_3d(image.T).T, whole.image)
    np.testing.assert_array_equal(np.atleast_3d(weight.T).T, whole.weight)
    np.testing.assert_array_equal(np.atleast_3d(coverage.T).T, whole.coverage)
    np.testing.assert_array_equal(picture, shrink_rows(whole.image, 2))


def test_a_core_that_was_written_and_not_taken_leaves_no_trace(tmp_path):
    """The worker of a tile may die, or its disk refuse, when some of the core is in place."""
    whole = mosaic(1)

    def work(assembly, cells):
        for cell in cells[1:]:
            stacked(assembly, cell, whole, 0)
            assembly.take(cell, stacked(assembly, cell, whole, 0))
        stacked(assembly, cells[0], whole, 0)
        assembly.fill_gaps(cells)

    (image, weight, coverage), picture = products_of(tmp_path, whole, work)
    hole = cut_cells(SHAPE, 640, step=2)[0]
    assert np.isnan(image[hole.slices]).all()
    assert not weight[hole.slices].any()
    assert not coverage[hole.slices].any()
    np.testing.assert_array_equal(image[:, hole.x1 :], whole.image[0][:, hole.x1 :])
    assert np.isnan(picture[0, :, : hole.x1 // 2]).all()
    np.testing.assert_array_equal(picture[..., hole.x1 // 2 :], shrink_rows(whole.image[..., hole.x1 :], 2))


def test_a_cell_counts_once(tmp_path):
    whole = mosaic(1)

    def work(assembly, cells):
        core = stacked(assembly, cells[0], whole, 0)
        assembly.take(cells[0], core)
        with pytest.raises(ValueError, match="filled already"):
            assembly.take(cells[0], core)
        assembly.fill_gaps(cells)

    products_of(tmp_path, whole, work)


def test_cells_that_are_forgotten_are_an_error_and_leave_nothing(tmp_path):
    whole = mosaic(1)
    with pytest.raises(OutputError, match="mosaic_grid\\.fits is incomplete"):
        products_of(tmp_path, whole, lambda assembly, cells: assembly.fill_gaps(cells[:-1]))
    assert list(tmp_path.iterdir()) == []
