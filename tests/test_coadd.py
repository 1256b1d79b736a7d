"""Master tiles: the same solution on another canvas, and their coadd."""

import errno
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from parallel_utils import Outcome
from surveys import survey_in
from zemosaic_coadd import _add, _AddTask, _of_cell, _sums, frames_of, sums_on_disk
from zemosaic_coadd_match import agreement, untouched
from zemosaic_events import CancelToken, Emitter
from zemosaic_fits_io import frame_wcs
from zemosaic_frame_source import FrameSource, StackFrame
from zemosaic_groups import Group, GroupPlan
from zemosaic_master_tiles import carried, plan_tiles
from zemosaic_outputs import ProductPaths
from zemosaic_photometry import FrameMeasure, Geometry, cell_number
from zemosaic_pipeline import Settled
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_reproject import (
    canvas_around,
    frame_positions,
    frame_to_canvas,
    lattice,
    nearest,
    optimal_canvas,
    place,
)
from zemosaic_runbook import RunBook
from zemosaic_synthetic import small_spec
from zemosaic_types import FrameError, FrameSolution, OutputError, Rect

SOLUTION = FrameSolution(
    gain=(1.3,),
    offset=(-40.0,),
    noise=(12.0,),
    weight=(0.01,),
    photon=(0.2,),
    level=(900.0,),
    blur=(0.1,),
    gradient=((0.03, -0.02),),
    centre=(150.0, 40.0),
)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Frames of a wide survey, with a solution each, and the canvas of their mosaic."""
    folder = tmp_path_factory.mktemp("frames")
    survey_in(folder, small_spec(panels=(1, 4), frames_per_panel=2, rotation_deg=25.0, seed=4))
    rows, _ = plan_from_folder(folder)
    records, _ = load_frames(rows, folder)
    canvas = optimal_canvas([(r.header.shape, frame_wcs(r.header)) for r in records])
    placed = [(r, place(frame_wcs(r.header), r.header.shape, canvas)) for r in records]
    return [StackFrame(r, p, SOLUTION, (900.0,), (12.0,)) for r, p in placed], canvas


# ---- the same solution on another canvas -----------------------------------------------------------------


@pytest.mark.parametrize("angle_deg", [0.0, 33.0])
def test_a_solution_that_was_carried_says_the_same_at_every_place_of_the_sky(frames, angle_deg):
    members, mosaic = frames
    frame, ratio = members[0], 1.07
    header = frame.record.header
    sky = [(header.shape, frame_wcs(header))]
    centre = frame_wcs(header).pixel_to_world_values(10.0, 130.0)
    canvas = canvas_around(sky, tuple(map(float, centre)), mosaic.scale_deg, angle_deg)
    moved = carried(frame, canvas, ratio)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, 200, 20.0), np.arange(0, 160, 20.0)))
    values = []
    for what, where in ((frame, mosaic), (moved, canvas)):
        cx, cy = frame_to_canvas(frame_wcs(header), x, y, where)
        solution = what.solution
        slope, middle = np.array(solution.gradient[0]), np.array(solution.centre)
        ramp = (np.column_stack([cx, cy]) - middle) @ slope
        values.append(solution.gain[0] * 1000.0 + solution.offset[0] + ramp)
    np.testing.assert_allclose(ratio * values[1], values[0], atol=1e-4)
    assert ratio * moved.solution.noise[0] == pytest.approx(12.0)
    assert moved.solution.weight[0] / ratio**2 == pytest.approx(0.01)
    # Photon noise: a signal S of the mosaic has the variance photon * S; both scale with the ratio.
    assert ratio * moved.solution.photon[0] == pytest.approx(0.2)
    assert moved.solution.blur == frame.solution.blur


def test_a_solution_without_a_plane_has_none_after_it_was_carried(frames):
    members, mosaic = frames
    bare = replace(members[0], solution=replace(SOLUTION, gradient=()))
    assert carried(bare, mosaic, 1.0).solution == bare.solution


def test_a_group_that_fits_onto_no_tile_costs_its_frames_and_no_others(frames, tmp_path, monkeypatch):
    members, canvas = frames
    matched = SimpleNamespace(frames=members, canvas=canvas)
    ids = [frame.record.frame_id for frame in members]
    plan = GroupPlan((Group("wide", tuple(ids[:3]), (10.0, 0.0)), Group("good", tuple(ids[3:]), (10.0, 20.0))))

    def refuse_the_first(sky, centre, *more):
        if centre == (10.0, 0.0):
            raise FrameError("its footprint cannot be projected onto the mosaic")
        return canvas

    monkeypatch.setattr("zemosaic_groups.canvas_around", refuse_the_first)
    book = RunBook(ProductPaths(tmp_path), Emitter(), CancelToken())
    pool = SimpleNamespace(run=lambda work, tasks, retry: [Outcome(task, work(task)) for task in tasks])
    (tile,) = plan_tiles(plan, Settled(matched, 1), pool, book)
    assert (tile.number, [frame.record.frame_id for frame in tile.frames]) == (2, ids[3:])
    assert [item.reason for item in book.left_out] == [
        "wide cannot be one master tile: its footprint cannot be projected onto the mosaic"
    ] * 3


# ---- the pixel that a place falls into -------------------------------------------------------------------


def test_the_nearest_pixel_is_the_one_whose_absence_a_sample_of_lanczos_shows(frames):
    from zemosaic_reproject import resample

    members, canvas = frames
    frame = members[3]
    header, rng = frame.record.header, np.random.default_rng(8)
    plane = rng.normal(size=(1, *header.shape)).astype(np.float32)
    plane[rng.random(plane.shape) < 0.3] = np.nan
    whole = Rect(0, header.shape[0], 0, header.shape[1])
    grid = lattice(frame_wcs(header), canvas, frame.placement.bounds, frame.placement.step)
    part = frame.placement.bounds
    samples = resample(plane, whole, header.shape, grid, part)
    there = nearest(np.isfinite(plane).astype(np.int32), whole, header.shape, grid, part)
    np.testing.assert_array_equal(there > 0, np.isfinite(samples))
    x, y = frame_positions(grid, part)
    assert ((x < -0.5) | (y < -0.5)).any()  # places outside the frame are among them


# ---- tiles that agree are left alone ---------------------------------------------------------------------


def tile_measures(gains=(1.0, 1.0, 1.0), offsets=(0.0, 0.0, 0.0), seed=0, noise=2.0):
    """Three tiles in a row, 30 x 20 cells each with a third in common, that see one sky and its stars."""
    rng = np.random.default_rng(seed)
    cell_px, width = 32, 30
    star_x, star_y = rng.uniform(0, 70 * cell_px, 400), rng.uniform(0, 20 * cell_px, 400)
    star_flux = rng.uniform(2000.0, 20000.0, 400)
    measures, centres = [], []
    for k, (gain, offset) in enumerate(zip(gains, offsets, strict=True)):
        x0 = 20 * k
        row, column = (a.ravel() for a in np.meshgrid(np.arange(20), np.arange(x0, x0 + width), indexing="ij"))
        level = 500.0 + rng.normal(0.0, 2.0 * noise / cell_px, row.size)
        inside = (star_x > x0 * cell_px) & (star_x < (x0 + width) * cell_px)
        flux = star_flux[inside] * (1.0 + 0.002 * rng.standard_normal(inside.sum()))
        none = np.zeros(row.size, dtype=np.float32)
        measures.append(
            FrameMeasure(
                sky=np.array([500.0]),
                noise=np.array([noise]),
                fwhm_px=3.0,
                elongation=1.0,
                star_x=star_x[inside],
                star_y=star_y[inside],
                frame_x=star_x[inside].astype(np.float32),
                frame_y=star_y[inside].astype(np.float32),
                flux=(flux[:, None] / gain).astype(np.float32),
                flux_error=np.full((flux.size, 1), 20.0, dtype=np.float32),
                cell=cell_number(row, column),
                level=((level[:, None] - offset) / gain).astype(np.float32),
                cell_x=none,
                cell_y=none,
            )
        )
        centres.append([(x0 + 0.5 * width) * cell_px, 10.0 * cell_px])
    return measures, Geometry(np.array(centres), np.ones(3), cell_px)


@pytest.mark.parametrize("seed", range(20))
def test_tiles_that_agree_are_taken_as_they_are(seed):
    measures, geometry = tile_measures(seed=seed)
    found = agreement(measures, geometry, method="global")
    assert (found.by_stars, found.by_sky) == (False, False)
    expected = untouched(geometry, 1)
    for name in ("gain", "offset", "gradient"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_tiles_that_differ_are_brought_together_by_what_they_differ_in():
    measures, geometry = tile_measures(gains=(1.0, 1.05, 0.97), seed=3)
    found = agreement(measures, geometry, method="global")
    assert found.by_stars
    np.testing.assert_allclose(found.gain[:, 0] / found.gain[0, 0], [1.0, 1.05, 0.97], atol=0.003)
    measures, geometry = tile_measures(offsets=(0.0, 3.0, -2.0), seed=3)
    found = agreement(measures, geometry, method="global")
    assert (found.by_stars, found.by_sky) == (False, True)
    np.testing.assert_allclose(found.offset[:, 0] - found.offset[0, 0], [0.0, 3.0, -2.0], atol=0.2)
    np.testing.assert_array_equal(found.gain, 1.0)


def test_what_a_few_noisy_stars_seem_to_say_of_tiles_that_agree_is_not_believed():
    """Gains that were fitted to noise bring those very stars together, and none of the other half of the sky."""
    rng = np.random.default_rng(5)
    believed = 0
    for seed in range(20):
        measures, geometry = tile_measures(seed=seed)
        few = []
        for m in measures:
            kept = (np.floor(m.star_x * 7.3) % 12) == 0  # the same stars in every tile
            flux = m.flux[kept] * (1.0 + 0.03 * rng.standard_normal((int(kept.sum()), 1)))
            names = ("star_x", "star_y", "frame_x", "frame_y", "flux_error")
            few.append(replace(m, flux=flux.astype(np.float32), **{n: getattr(m, n)[kept] for n in names}))
        believed += agreement(few, geometry, method="global").by_stars
    assert believed <= 3


@pytest.mark.parametrize(("method", "by_stars", "by_sky"), [("none", False, False), ("sky_mean", False, True)])
def test_nothing_is_corrected_that_the_user_has_not_asked_for(method, by_stars, by_sky):
    measures, geometry = tile_measures(gains=(1.0, 1.05, 0.97), offsets=(0.0, 3.0, -2.0), seed=3)
    found = agreement(measures, geometry, method=method)
    assert (found.by_stars, found.by_sky) == (by_stars, by_sky)


# ---- sums on the disk ------------------------------------------------------------------------------------


def add_task(frames, stem, turn=1):
    """The first frame as if it were a master tile, whose coverage is 1 wherever it has data."""
    members, canvas = frames
    rect = members[0].placement.bounds.intersect(canvas.rect)
    options = SimpleNamespace(n_channels=1, kernel="lanczos3")
    cell = SimpleNamespace(number=7, rect=rect, canvas=canvas, options=options)
    return _AddTask(cell, members[0], turn, stem)


def test_a_tile_is_added_once_however_often_it_is_tried(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("zemosaic_coadd.frames_of", lambda source, part: np.ones((1, *part.shape), np.int32))
    with sums_on_disk(tmp_path / "mosaic.fits") as stem:
        task = add_task(frames, stem)
        _add(task)
        once = _sums(_of_cell(stem, 7), (1, *task.cell.rect.shape))
        _add(task)
        again = _sums(_of_cell(stem, 7), (1, *task.cell.rect.shape))
        for first, second in zip(once, again, strict=True):
            np.testing.assert_array_equal(first, second)
        _add(replace(task, turn=2))
        twice = _sums(_of_cell(stem, 7), (1, *task.cell.rect.shape))
        np.testing.assert_array_equal(twice[2], 2.0 * once[2])
        assert (once[2] > 0).any()
        with pytest.raises(Exception, match="a master tile before it is missing"):
            _add(replace(task, turn=4))
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_adding_leaves_nothing_and_says_why(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("zemosaic_coadd.frames_of", lambda source, part: np.ones((1, *part.shape), np.int32))

    def full(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zemosaic_coadd.np.savez", full)
    with sums_on_disk(tmp_path / "mosaic.fits") as stem:
        with pytest.raises(OutputError, match="No space left on device"):
            _add(add_task(frames, stem))
        assert list(tmp_path.iterdir()) == []


def test_adding_takes_the_memory_of_a_cell_however_many_tiles_there_were(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("zemosaic_coadd.frames_of", lambda source, part: np.ones((1, *part.shape), np.int32))
    peaks = []
    with sums_on_disk(tmp_path / "mosaic.fits") as stem:
        for turn in range(1, 13):
            task = add_task(frames, stem, turn)
            tracemalloc.start()
            _add(task)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    pixels = task.cell.rect.shape[0] * task.cell.rect.shape[1]
    assert max(peaks[2:]) < 1.02 * min(peaks[2:])
    assert max(peaks[2:]) < 100 * pixels


def test_coverage_of_a_part_that_a_tile_does_not_reach_is_none(frames):
    members, canvas = frames
    far = replace(members[0], placement=replace(members[0].placement, bounds=Rect(-400, 600, -400, 900)))
    source = FrameSource(far, canvas, "lanczos3")
    corner = far.placement.bounds
    away = Rect(corner.y0, corner.y0 + 1, corner.x0, corner.x0 + 1)
    assert source.section_of(away).empty
    np.testing.assert_array_equal(frames_of(source, away), np.zeros((1, 1, 1)))
