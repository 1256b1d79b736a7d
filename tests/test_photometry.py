"""The match on made-up measures with known transparencies and skies."""

import numpy as np
import pytest

from zemosaic_photometry import FrameMeasure, box_medians, identify_stars, solve_match

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
        number = (rows[:, None] * 1000 + columns[None, :]).ravel()
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


def all_pairs(measures):
    n = len(measures)
    return np.array(
        [
            (i, j)
            for i in range(n)
            for j in range(i + 1, n)
            if np.intersect1d(measures[i].cell, measures[j].cell).size
        ]
    ).reshape(-1, 2)


def test_transparencies_are_recovered_within_one_percent():
    measures, transparency, _ = make_measures(channels=3)
    match = solve_match(measures, all_pairs(measures), np.ones(9), method="linear_fit")
    product = match.gain * transparency[:, None]
    assert np.abs(product / product.mean(axis=0) - 1).max() < 0.01
    assert (match.gain_group == 0).all()


def test_noise_does_not_dilute_the_gains():
    """With sky noise far above the structure of the sky a slope over pixels would come out far below 1."""
    measures, transparency, _ = make_measures(noise=200.0, n_stars=3000)
    match = solve_match(measures, all_pairs(measures), np.ones(9), method="linear_fit")
    product = match.gain[:, 0] * transparency
    assert np.abs(product / product.mean() - 1).max() < 0.02


def test_skies_come_out_level():
    measures, _, sky = make_measures()
    match = solve_match(measures, all_pairs(measures), np.ones(9), method="linear_fit")
    level = match.gain[:, 0] * sky[:, 0] + match.offset[:, 0]
    assert np.ptp(level) < 1.0


def test_the_sky_mean_moves_levels_only():
    measures, _, sky = make_measures()
    match = solve_match(measures, all_pairs(measures), np.ones(9), method="sky_mean")
    assert (match.gain == 1).all()
    assert np.ptp(match.offset[:, 0] + sky[:, 0]) < 15  # the nebula is still seen through each transparency


def test_none_changes_nothing_but_the_pixel_area():
    measures, _, _ = make_measures()
    match = solve_match(measures, all_pairs(measures), np.full(9, 1.5), method="none")
    assert (match.gain == 1.5).all()
    assert (match.offset == 0).all()


def test_the_mean_sky_and_the_mean_gain_are_kept():
    measures, _, _ = make_measures()
    match = solve_match(measures, all_pairs(measures), np.ones(9), method="linear_fit")
    sky = np.array([m.sky[0] for m in measures])
    assert np.log(match.gain[:, 0]).mean() == pytest.approx(0, abs=1e-9)
    assert (match.gain[:, 0] * sky + match.offset[:, 0]).mean() == pytest.approx(sky.mean())


def test_the_order_of_frames_and_pairs_does_not_matter():
    measures, _, _ = make_measures()
    pairs = all_pairs(measures)
    order = np.random.default_rng(1).permutation(9)
    first = solve_match(measures, pairs, np.ones(9), method="linear_fit")
    moved = [measures[k] for k in order]
    second = solve_match(moved, all_pairs(moved), np.ones(9), method="linear_fit")
    np.testing.assert_allclose(second.gain, first.gain[order], rtol=1e-9)
    np.testing.assert_allclose(second.offset, first.offset[order], atol=1e-6)


def test_a_wrong_pair_of_stars_does_not_pull_the_gains():
    measures, transparency, _ = make_measures()
    flux = measures[4].flux.copy()
    flux[:10] *= 5.0
    measures[4] = FrameMeasure(**{**measures[4].__dict__, "flux": flux})
    match = solve_match(measures, all_pairs(measures), np.ones(9), method="linear_fit")
    product = match.gain[:, 0] * transparency
    assert np.abs(product / product.mean() - 1).max() < 0.015


def test_groups_that_do_not_touch_are_solved_apart_and_tied_by_their_sky():
    near, t_near, _ = make_measures(2, seed=3)
    far, t_far, _ = make_measures(2, seed=4)
    moved = [
        FrameMeasure(**{**m.__dict__, "cell": m.cell + 10**6, "star_x": m.star_x + 1e5, "star_y": m.star_y + 1e5})
        for m in far
    ]
    measures = near + moved
    match = solve_match(measures, all_pairs(measures), np.ones(8), method="linear_fit")
    assert match.group.tolist() == [0] * 4 + [1] * 4
    level = match.gain[:, 0] * np.array([m.sky[0] for m in measures]) + match.offset[:, 0]
    assert level[:4].mean() == pytest.approx(level[4:].mean())
    for part, transparency in ((slice(0, 4), t_near), (slice(4, 8), t_far)):
        product = match.gain[part, 0] * transparency
        assert np.abs(product / product.mean() - 1).max() < 0.01


def test_frames_without_common_stars_keep_their_gain_and_are_told():
    measures, _, _ = make_measures(2)
    none = np.empty(0)
    blind = {"star_x": none, "star_y": none, "flux": np.empty((0, 1)), "flux_error": np.empty((0, 1))}
    measures[3] = FrameMeasure(**{**measures[3].__dict__, **blind})
    match = solve_match(measures, all_pairs(measures), np.ones(4), method="linear_fit")
    assert match.gain[3, 0] == 1.0
    assert len(set(match.gain_group[:, 0].tolist())) == 2
    assert (match.group == 0).all()


def test_one_frame_alone_is_left_as_it_is():
    measures, _, _ = make_measures(1)
    match = solve_match(measures, np.empty((0, 2), dtype=int), np.ones(1), method="linear_fit")
    assert match.gain[0, 0] == 1.0
    assert match.offset[0, 0] == pytest.approx(0, abs=1e-9)


def test_an_unknown_method_is_named():
    measures, _, _ = make_measures(1)
    with pytest.raises(ValueError, match="affine"):
        solve_match(measures, np.empty((0, 2), dtype=int), np.ones(1), method="affine")


def test_box_medians_are_those_of_whole_boxes_only():
    plane = np.random.default_rng(5).normal(size=(60, 80)).astype(np.float32)
    plane[40, 50] = np.nan
    x, y = np.array([10.2, 50.0, 2.0, 79.0, np.nan, 30.6]), np.array([10.0, 38.0, 20.0, 30.0, 5.0, 55.0])
    found = box_medians(plane, x, y, 4)
    assert found[0] == np.median(plane[6:15, 6:15])
    assert found[5] == np.median(plane[51:60, 27:36])
    assert np.isnan(found[1:5]).all()


def test_a_plane_smaller_than_a_box_has_no_median():
    assert np.isnan(box_medians(np.zeros((5, 5), np.float32), np.array([2.0]), np.array([2.0]), 4)).all()


def test_stars_are_identified_across_frames_and_crowded_ones_left_out():
    measures, _, _ = make_measures(2, n_stars=300)
    crowd = np.concatenate([measures[0].star_x, measures[0].star_x[:1] + 0.5])
    rows = np.concatenate([measures[0].star_y, measures[0].star_y[:1]])
    double = {"star_x": crowd, "star_y": rows}
    measures[1] = FrameMeasure(**{**measures[1].__dict__, **double})
    numbers = identify_stars(measures)
    assert numbers[1][0] == numbers[1][-1] == -1
    assert numbers[1][1:-1].tolist() == numbers[0][1:].tolist()
