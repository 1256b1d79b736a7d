"""The match on made-up measures with known transparencies and skies."""

from dataclasses import replace

import numpy as np
import pytest

from zemosaic_photometry import (
    FrameMeasure,
    Geometry,
    cell_number,
    cell_place,
    sky_plane,
    solve_match,
    tilt_of_sky,
)

SIZE, CELL = 600, 50


def make_measures(n_side=3, *, step=400, seed=0, n_stars=900, noise=30.0, channels=1):
    """Frames on a grid of pointings; each has its transparency and sky, and measures what it should, noisily."""
    rng = np.random.default_rng(seed)
    span = (n_side - 1) * step + SIZE
    star_x, star_y = rng.uniform(0, span, (2, n_stars))
    flux = 10 ** rng.uniform(3.5, 5.5, (n_stars, channels))
    nebula = rng.uniform(0, 50, (span // CELL + 2, span // CELL + 2))
    measures, transparency, sky = [], [], []
    for k in range(n_side**2):
        x0, y0 = step * (k % n_side), step * (k // n_side)
        t, level = rng.uniform(0.7, 1.1), rng.uniform(600, 1100, channels)
        inside = (star_x > x0) & (star_x < x0 + SIZE) & (star_y > y0) & (star_y < y0 + SIZE)
        error = np.full((inside.sum(), channels), noise * 14.0)
        measured = t * flux[inside] + rng.normal(0, error)
        jitter = rng.normal(0, 0.1, (2, inside.sum()))
        rows = np.arange(-(-y0 // CELL), (y0 + SIZE) // CELL)
        columns = np.arange(-(-x0 // CELL), (x0 + SIZE) // CELL)
        number = cell_number(rows[:, None], columns[None, :]).ravel()
        cells = level + t * nebula[np.ix_(rows, columns)].reshape(-1, 1)
        cells = cells + rng.normal(0, noise / 20, cells.shape)
        measures.append(
            FrameMeasure(
                sky=level + t * nebula.mean(),
                noise=np.full(channels, noise),
                fwhm_px=3.0,
                elongation=1.1,
                star_x=star_x[inside] + jitter[0],
                star_y=star_y[inside] + jitter[1],
                frame_x=(star_x[inside] - x0).astype(np.float32),
                frame_y=(star_y[inside] - y0).astype(np.float32),
                flux=measured.astype(np.float32),
                flux_error=error.astype(np.float32),
                cell=number,
                level=cells.astype(np.float32),
                cell_x=np.tile(columns * float(CELL) - x0, rows.size).astype(np.float32),
                cell_y=np.repeat(rows * float(CELL) - y0, columns.size).astype(np.float32),
            )
        )
        transparency.append(t)
        sky.append(level)
    return measures, np.array(transparency), np.array(sky)


def match_of(measures, method="linear_fit", area_ratio=1.0):
    """Solve frames that lie on a square, as `make_measures` lays them out."""
    row, column = zip(*((cell_place(m.cell)) for m in measures), strict=True)
    centre = np.array([(c.mean() * CELL, r.mean() * CELL) for r, c in zip(row, column, strict=True)])
    geometry = Geometry(centre, np.broadcast_to(area_ratio, len(measures)), CELL)
    return solve_match(measures, geometry, method=method)


def test_transparencies_are_recovered_within_one_percent():
    measures, transparency, _ = make_measures(channels=3)
    match = match_of(measures, "linear_fit")
    product = match.gain * transparency[:, None]
    assert np.abs(product / product.mean(axis=0) - 1).max() < 0.01
    assert (match.gain_group == 0).all()


def test_noise_does_not_dilute_the_gains():
    """With sky noise far above the structure of the sky a slope over pixels would come out far below 1."""
    measures, transparency, _ = make_measures(noise=200.0, n_stars=3000)
    match = match_of(measures, "linear_fit")
    product = match.gain[:, 0] * transparency
    assert np.abs(product / product.mean() - 1).max() < 0.02


def test_skies_come_out_level():
    measures, _, sky = make_measures()
    match = match_of(measures, "linear_fit")
    level = match.gain[:, 0] * sky[:, 0] + match.offset[:, 0]
    assert np.ptp(level) < 1.0


def test_the_sky_mean_moves_levels_only():
    measures, _, sky = make_measures()
    match = match_of(measures, "sky_mean")
    assert (match.gain == 1).all()
    assert np.ptp(match.offset[:, 0] + sky[:, 0]) < 15  # the nebula is still seen through each transparency


def test_none_changes_nothing_but_the_pixel_area():
    measures, _, _ = make_measures()
    match = match_of(measures, "none", area_ratio=1.5)
    assert (match.gain == 1.5).all()
    assert (match.offset == 0).all()


def test_the_mean_sky_and_the_mean_gain_are_kept():
    measures, _, _ = make_measures()
    match = match_of(measures, "linear_fit")
    sky = np.array([m.sky[0] for m in measures])
    assert np.log(match.gain[:, 0]).mean() == pytest.approx(0, abs=1e-9)
    assert (match.gain[:, 0] * sky + match.offset[:, 0]).mean() == pytest.approx(sky.mean())


def test_the_order_of_frames_does_not_matter():
    measures, _, _ = make_measures()
    order = np.random.default_rng(1).permutation(9)
    first = match_of(measures)
    moved = [measures[k] for k in order]
    second = match_of(moved, "linear_fit")
    np.testing.assert_allclose(second.gain, first.gain[order], rtol=1e-9)
    np.testing.assert_allclose(second.offset, first.offset[order], atol=1e-6)


def test_a_wrong_pair_of_stars_does_not_pull_the_gains():
    measures, transparency, _ = make_measures()
    flux = measures[4].flux.copy()
    flux[:10] *= 5.0
    measures[4] = replace(measures[4], flux=flux)
    match = match_of(measures, "linear_fit")
    product = match.gain[:, 0] * transparency
    assert np.abs(product / product.mean() - 1).max() < 0.015


def test_groups_that_do_not_touch_are_solved_apart_and_tied_by_their_sky():
    near, t_near, _ = make_measures(2, seed=3)
    far, t_far, _ = make_measures(2, seed=4)
    moved = [replace(m, cell=m.cell + 5000, star_x=m.star_x + 5000.0 * CELL) for m in far]
    measures = near + moved
    match = match_of(measures, "linear_fit")
    assert match.group.tolist() == [0] * 4 + [1] * 4
    level = match.gain[:, 0] * np.array([m.sky[0] for m in measures]) + match.offset[:, 0]
    assert level[:4].mean() == pytest.approx(level[4:].mean())
    for part, transparency in ((slice(0, 4), t_near), (slice(4, 8), t_far)):
        product = match.gain[part, 0] * transparency
        assert np.abs(product / product.mean() - 1).max() < 0.01


def test_frames_without_common_stars_keep_their_gain_and_are_told():
    measures, _, _ = make_measures(2)
    none = np.empty(0)
    blind = {
        "star_x": none,
        "star_y": none,
        "frame_x": none,
        "frame_y": none,
        "flux": np.empty((0, 1)),
        "flux_error": np.empty((0, 1)),
    }
    measures[3] = replace(measures[3], **blind)
    match = match_of(measures, "linear_fit")
    assert match.gain[3, 0] == 1.0
    assert len(set(match.gain_group.tolist())) == 2
    assert (match.group == 0).all()


def test_one_frame_alone_is_left_as_it_is():
    measures, _, _ = make_measures(1)
    match = match_of(measures, "linear_fit")
    assert match.gain[0, 0] == 1.0
    assert match.offset[0, 0] == pytest.approx(0, abs=1e-9)


def tilted(measures, seed=7, size=40.0):
    """Put a plane of its own on the sky of every frame; return the measures and the slopes (n, 2) a pixel."""
    slopes = np.random.default_rng(seed).normal(0.0, size / SIZE, (len(measures), 2))
    changed = []
    for m, (sx, sy) in zip(measures, slopes, strict=True):
        ramp = sx * (m.cell_x - SIZE / 2) + sy * (m.cell_y - SIZE / 2)
        changed.append(replace(m, level=m.level + ramp[:, None].astype(np.float32)))
    return changed, slopes


def test_gradients_are_recovered_but_for_a_plane_that_all_share():
    measures, transparency, _ = make_measures(n_stars=2000)
    measures, slopes = tilted(measures)
    match = match_of(measures, "global")
    left = match.gradient[:, 0] + match.gain * slopes
    assert np.abs(left - left.mean(axis=0)).max() * SIZE < 1.5
    product = match.gain[:, 0] * transparency
    assert np.abs(product / product.mean() - 1).max() < 0.01


def test_matched_levels_differ_by_noise_only_and_the_residuals_say_so():
    measures, _ = tilted(make_measures(n_stars=2000)[0])
    match = match_of(measures, "global")
    sums, counts = np.zeros(200 * 200), np.zeros(200 * 200)
    for k, m in enumerate(measures):
        row, column = cell_place(m.cell)
        centre = np.array([column.mean(), row.mean()]) * CELL
        plane = (np.column_stack([column, row]) * CELL - centre) @ match.gradient[k, 0]
        level = match.gain[k, 0] * m.level[:, 0] + match.offset[k, 0] + plane
        if k:
            shared = counts[row * 200 + column] > 0
            mean = sums[(row * 200 + column)[shared]] / counts[(row * 200 + column)[shared]]
            assert np.std(level[shared] - mean) < 3.0  # noise of the levels is 1.5
        np.add.at(sums, row * 200 + column, level)
        np.add.at(counts, row * 200 + column, 1)
    assert (match.residual < 3.0).all()


def test_large_pixels_are_known_to_tell_a_level_less_well():
    """Pixels of twice the side are four times fewer in a box: what their noise explains is no unevenness."""
    measures, _, _ = make_measures()
    rng = np.random.default_rng(7)
    ratio = np.ones(len(measures))
    for k in (1, 3, 5, 7):
        m, ratio[k] = measures[k], 0.25
        more = rng.normal(0.0, np.sqrt(0.08**2 - 0.05**2) * m.noise, m.level.shape)  # 0.05 is in there
        level = (m.level + more) / ratio[k]
        measures[k] = replace(m, sky=m.sky / ratio[k], noise=m.noise / ratio[k], level=level.astype(np.float32))
    match = match_of(measures, "global", area_ratio=ratio)
    noise = match.gain[:, 0] * np.array([m.noise[0] for m in measures])
    np.testing.assert_allclose(noise, noise.mean(), rtol=0.25)
    assert (match.residual[:, 0] < 0.02 * noise).all()


def test_a_cloud_over_half_a_frame_shows_in_its_residual_and_moves_no_other_frame():
    measures, _ = tilted(make_measures(step=100, n_stars=2000)[0])
    clear = match_of(measures, "global")
    cloud = np.where(measures[4].cell_x < SIZE / 2 - 20, 120.0, 0.0).astype(np.float32)
    clouded = [*measures[:4], replace(measures[4], level=measures[4].level + cloud[:, None]), *measures[5:]]
    match = match_of(clouded, "global")
    assert match.residual[4, 0] > 20.0  # a plane takes half of such a step away
    others = np.arange(9) != 4
    assert (match.residual[others] < 3.0).all()
    assert np.abs(match.gradient - clear.gradient)[others].max() * SIZE < 3.0
    between = (match.offset - clear.offset)[others]
    assert np.ptp(between) < 1.0


def test_the_sky_of_the_mosaic_is_level_and_a_nebula_keeps_its_light():
    rng = np.random.default_rng(9)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(60) * 50.0, np.arange(40) * 50.0))
    nebula = 80.0 * np.exp(-0.5 * (((x - 800) / 250) ** 2 + ((y - 1400) / 180) ** 2))
    place = np.column_stack([x, y])
    truth = np.array([0.03, -0.02])
    slope = sky_plane(place, 900.0 + place @ truth + nebula + rng.normal(0, 0.3, x.size))
    assert np.abs(slope - truth).max() * 3000 < 0.8  # 1 % of the nebula across the whole field


def test_too_few_places_say_nothing_of_a_tilt():
    place = np.random.default_rng(0).uniform(0, 100, (11, 2))
    slope, error = tilt_of_sky(place, place[:, 0])
    assert slope.tolist() == [0.0, 0.0]
    assert np.isinf(error).all()


def test_the_error_of_a_tilt_grows_with_what_fills_the_field():
    rng = np.random.default_rng(2)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(30) * 50.0, np.arange(20) * 50.0))
    place, noise = np.column_stack([x, y]), rng.normal(0, 0.3, x.size)
    cloud = 40.0 * np.cos(x / 300.0 + 1.0) * np.sin(y / 250.0)
    (plain, small), (filled, large) = tilt_of_sky(place, noise), tilt_of_sky(place, cloud + noise)
    assert (np.abs(plain) < 5 * small).all()
    assert (small * 1500 < 0.3).all()
    assert (large > 10 * small).all()
    assert (np.abs(filled) < 4 * large).all()


def test_a_single_frame_is_levelled_by_itself():
    measures, slopes = tilted(make_measures(1, n_stars=50)[0], size=300.0)
    match = match_of([replace(measures[0])], "global")
    assert np.abs(match.gradient[0, 0] + slopes[0]).max() * SIZE < 60.0
    assert np.isnan(match.residual[0, 0])


def test_panels_that_one_colour_does_not_tie_are_not_moved_apart_in_the_others():
    """Without levels in blue where they overlap, red and green still tie the panels."""
    measures, _, sky = make_measures(2, channels=3, n_stars=2000)
    seen_once = np.bincount(np.unique(np.concatenate([m.cell for m in measures]), return_inverse=True)[1]) == 1
    cells = np.unique(np.concatenate([m.cell for m in measures]))
    blind = []
    for k, m in enumerate(measures):
        level = m.level.copy()
        level[~seen_once[np.searchsorted(cells, m.cell)], 2] = np.nan
        blind.append(replace(m, level=level, sky=m.sky + 20.0 * k))  # galaxies raise the skies, not the levels
    match = match_of(blind)
    level = match.gain * sky + match.offset
    assert np.ptp(level[:, :2], axis=0).max() < 2.0


def test_an_unknown_method_is_named():
    measures, _, _ = make_measures(1)
    with pytest.raises(ValueError, match="affine"):
        match_of(measures, "affine")
