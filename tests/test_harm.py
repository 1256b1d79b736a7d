"""What leaving frames out does to the mosaic, against a slow loop; and which frames are suggested."""

from dataclasses import replace

import numpy as np
import pytest
import shapely

from zemosaic_harm import CELLS_ACROSS, PATCH_PX, Quality, Stack, places_of, predict, suggest

NY, NX = 240, 320


def outline(cx, cy, angle_deg=0.0, size=(NY, NX)):
    ny, nx = size
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    corners = np.array([[-nx, -ny], [nx, -ny], [nx, ny], [-nx, ny]]) / 2.0
    return corners @ np.array([[cos, sin], [-sin, cos]]) + [cx, cy]


def survey(seed=1, n=24, channels=1):
    """Frames in two panels that overlap, each as good as the others but for chance."""
    rng = np.random.default_rng(seed)
    centre = np.stack([200.0 + 250.0 * (np.arange(n) % 2), np.full(n, 150.0)], axis=1) + rng.normal(0, 5, (n, 2))
    outlines = np.array([outline(*c, a) for c, a in zip(centre, rng.uniform(-8, 8, n), strict=True)])
    noise = 30.0 * rng.uniform(0.9, 1.1, (n, channels))
    residual = np.abs(rng.normal(1.0, 0.3, (n, channels)))
    return outlines, Quality(1.0 / noise**2, noise, residual, rng.uniform(3.0, 3.4, n) ** 2)


def spoiled(quality, frame, *, wide=1.0, left=1.0):
    width2, residual = quality.width2.copy(), quality.residual.copy()
    width2[frame] *= wide**2
    residual[frame] *= left
    return replace(quality, width2=width2, residual=residual)


# ---- places ----------------------------------------------------------------------------------------------


def test_the_cells_of_a_frame_are_those_whose_centres_lie_in_it():
    outlines = np.array([outline(100, 80, 20), outline(160, 90, -35)[::-1], outline(400, 300, 3, (90, 700))])
    places = places_of(outlines)
    step = NY / CELLS_ACROSS
    origin = outlines.reshape(-1, 2).min(axis=0)
    n_columns = int((outlines[..., 0].max() - origin[0]) // step) + 1
    centres = origin + (np.stack(np.divmod(np.arange(places.n_cells), n_columns)[::-1], axis=1) + 0.5) * step
    for k, corners in enumerate(outlines):
        expected = np.flatnonzero(shapely.contains_xy(shapely.Polygon(corners), *centres.T))
        found, owner = places.of(np.array([k]))
        assert expected.size > 50
        np.testing.assert_array_equal(np.sort(found), expected)
        assert set(owner) == {0}


def test_a_frame_whose_outline_is_not_known_has_no_place_and_no_harm():
    outlines, quality = survey()
    outlines[3] = np.nan
    places = places_of(outlines)
    assert places.of(np.array([3]))[0].size == 0
    harm = Stack(places, quality).harm(np.arange(24)).total
    assert np.isnan(harm[3])
    assert np.isfinite(np.delete(harm, 3)).all()


def test_no_outline_at_all_gives_no_harm_and_no_suggestion():
    outlines, quality = survey()
    places = places_of(np.full_like(outlines, np.nan))
    assert np.isnan(Stack(places, quality).harm(np.arange(24)).total).all()
    assert suggest(places, quality, np.ones(24, dtype=bool), 5) == []


# ---- harm ------------------------------------------------------------------------------------------------


def variances(frames, quality, channel):
    """Noise and seam variance and FWHM squared of a place, from the definitions."""
    total = sum(quality.weight[i, channel] for i in frames)
    noise = sum((quality.weight[i, channel] * quality.noise[i, channel]) ** 2 for i in frames) / total**2
    seam = sum((quality.weight[i, channel] * quality.residual[i, channel]) ** 2 for i in frames) / total**2
    return noise, seam, sum(quality.weight[i, channel] * quality.width2[i] for i in frames) / total


def slow_harm(places, quality, frame):
    """Noise, seam and blur parts, place by place."""
    cells = [set(places.of(np.array([k]))[0].tolist()) for k in range(len(quality.width2))]
    parts = []
    for cell in cells[frame]:
        for c in range(quality.weight.shape[1]):
            here = [k for k, of in enumerate(cells) if cell in of and quality.weight[k, c] > 0]
            others = [k for k in here if k != frame]
            if frame not in here:
                continue
            if not others:
                parts.append((-1.0, 0.0, 0.0))
                continue
            n, s, b = variances(here, quality, c)
            n1, s1, b1 = variances(others, quality, c)
            error, error1 = n / PATCH_PX**2 + s, n1 / PATCH_PX**2 + s1
            both = error + error1
            parts.append(((n - n1) / PATCH_PX**2 / both, (s - s1) / both, (b - b1) / (b + b1)))
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_harm_of_a_frame_is_that_of_the_slow_loop(channels):
    outlines, quality = survey(channels=channels)
    quality = spoiled(spoiled(quality, 5, wide=1.9), 8, left=20.0)
    quality.weight[2, 0] = 0.0  # a frame without this colour, as a mono frame among others
    places = places_of(outlines)
    harm = Stack(places, quality).harm(np.arange(24))
    for k in (0, 2, 5, 8, 23):
        if channels == 1 and k == 2:
            assert np.isnan(harm.total[2])
            continue
        np.testing.assert_allclose(
            (harm.noise[k], harm.seam[k], harm.blur[k]), slow_harm(places, quality, k), rtol=1e-9
        )


def test_harm_is_about_the_logarithm_of_error_and_width():
    outlines = np.array([outline(200, 150)] * 20)
    _, quality = survey(n=20)
    quality = spoiled(quality, 4, wide=1.5, left=3.0)
    everyone, others = range(20), [k for k in range(20) if k != 4]
    logs = []
    for frames in (everyone, others):
        n, s, b = variances(frames, quality, 0)
        logs.append(0.5 * np.log(n / PATCH_PX**2 + s) + 0.5 * np.log(b))
    harm = Stack(places_of(outlines), quality).harm(np.array([4])).total[0]
    assert harm == pytest.approx(logs[0] - logs[1], abs=1e-4)
    assert harm > 0.01


def test_harm_does_not_depend_on_how_many_frames_are_looked_at_together(monkeypatch):
    outlines, quality = survey()
    whole = Stack(places_of(outlines), quality).harm(np.arange(24)).total
    monkeypatch.setattr("zemosaic_harm._BATCH_CELLS", 100)
    np.testing.assert_array_equal(Stack(places_of(outlines), quality).harm(np.arange(24)).total, whole)


def test_a_frame_alone_costs_everything():
    outlines, quality = survey(n=3)
    outlines[1] += 5000.0
    harm = Stack(places_of(outlines), quality).harm(np.arange(3))
    assert harm.total[1] == harm.noise[1] == -1.0


def test_taking_a_frame_out_leaves_the_sums_of_the_others():
    outlines, quality = survey()
    places = places_of(outlines)
    stack = Stack(places, quality)
    stack.remove(7)
    without = replace(quality, weight=np.where(np.arange(24)[:, None] == 7, 0.0, quality.weight))
    cells = np.arange(places.n_cells)
    assert stack.levels(cells).error == pytest.approx(Stack(places, without).levels(cells).error, rel=1e-12)
    others = np.delete(np.arange(24), 7)
    np.testing.assert_allclose(stack.harm(others).total, Stack(places, without).harm(others).total, atol=1e-12)


# ---- the suggestion --------------------------------------------------------------------------------------

ALL = np.ones(24, dtype=bool)


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_survey_has_nothing_to_leave_out(seed):
    outlines, quality = survey(seed)
    assert suggest(places_of(outlines), quality, ALL, 10) == []


def test_planted_culprits_are_found_worst_first():
    outlines, quality = survey()
    quality = spoiled(spoiled(spoiled(quality, 5, wide=2.2), 8, left=30.0), 14, left=12.0)
    assert suggest(places_of(outlines), quality, ALL, 10) == [8, 14, 5]
    assert suggest(places_of(outlines), quality, ALL, 2) == [8, 14]
    assert suggest(places_of(outlines), quality, np.arange(24) == 5, 10) == [5]


def test_harm_is_judged_again_after_each_frame():
    # Two frames alike are each half of what is wrong; without one the other weighs more, and goes too.
    outlines, quality = survey(n=8)
    quality = spoiled(spoiled(quality, 2, left=25.0), 4, left=25.0)
    places = places_of(outlines)
    alone = Stack(places, quality).harm(np.array([2, 4])).total
    stack = Stack(places, quality)
    stack.remove(2)
    assert stack.harm(np.array([4])).total[0] > alone[1]
    assert sorted(suggest(places, quality, np.ones(8, dtype=bool), 8)) == [2, 4]


def lost_pixels(outlines, out):
    """Pixels that only frames in `out` cover, and how far into the mosaic the deepest of them is."""
    polygons = shapely.polygons(outlines)
    everything, rest = shapely.union_all(polygons), shapely.union_all(np.delete(polygons, out))
    return shapely.difference(everything, rest), everything


def test_a_bad_frame_stays_where_nothing_else_covers_the_sky():
    outlines, quality = survey()
    outlines[5] += [0.0, 60.0]  # 180 rows in common with the panel, 60 of its own
    quality = spoiled(quality, 5, wide=4.0, left=50.0)
    assert Stack(places_of(outlines), quality).harm(np.array([5])).total[0] > 0.1
    assert suggest(places_of(outlines), quality, ALL, 10) == []


def test_a_gap_narrower_than_a_cell_of_the_grid_is_a_hole_too():
    side = np.array([outline(0, 0)] * 6 + [outline(NX + 4.0, 0)] * 6 + [outline(NX / 2 + 2.0, 0)])
    _, quality = survey(n=13)
    quality = spoiled(quality, 12, wide=3.0, left=50.0)
    suspects = np.ones(13, dtype=bool)
    assert suggest(places_of(side), quality, suspects, 5) == []
    side[6:12] -= [8.0, 0.0]  # now the panels overlap
    assert suggest(places_of(side), quality, suspects, 5) == [12]


def test_the_ragged_rim_of_the_mosaic_may_be_lost():
    outlines, quality = survey()
    outlines[5] = outline(200, 150, 9)
    quality = spoiled(quality, 5, left=30.0)
    assert suggest(places_of(outlines), quality, ALL, 10) == [5]
    lost, _ = lost_pixels(outlines, [5])
    assert lost.area > 10.0


@pytest.mark.parametrize("seed", range(6))
def test_no_suggestion_leaves_a_hole_deeper_than_the_rim(seed):
    rng = np.random.default_rng(seed)
    n = 40
    outlines = np.array([outline(*rng.uniform(0, 900, 2), rng.uniform(-20, 20)) for _ in range(n)])
    _, quality = survey(n=n)
    residual = quality.residual * np.where(rng.random(n) < 0.5, 40.0, 1.0)[:, None]
    quality = replace(quality, residual=residual)
    places = places_of(outlines)
    out = suggest(places, quality, np.ones(n, dtype=bool), n)
    assert out
    lost, everything = lost_pixels(outlines, out)
    assert shapely.area(shapely.intersection(lost, shapely.buffer(everything, -places.rim_px))) < len(out)
    kept = shapely.union_all(shapely.polygons(np.delete(outlines, out, axis=0)))
    assert len(shapely.get_parts(kept)) <= len(shapely.get_parts(everything))


def test_a_colour_that_only_one_frame_has_is_not_lost():
    outlines, quality = survey(channels=3)
    quality.weight[:, 0] = np.where(np.arange(24) == 5, quality.weight[:, 0], 0.0)
    quality = spoiled(quality, 5, wide=4.0)
    assert suggest(places_of(outlines), quality, ALL, 10) == []


# ---- the prediction --------------------------------------------------------------------------------------


def test_the_prediction_is_what_the_definitions_give():
    outlines = np.array([outline(200, 150)] * 10 + [outline(2000, 150)] * 10)
    _, quality = survey(n=20)
    quality = spoiled(quality, 3, wide=1.8, left=9.0)
    prediction = predict(places_of(outlines), quality, [3])
    others = [k for k in range(10) if k != 3]
    for levels, frames in zip(prediction.here, (range(10), others), strict=True):
        n, s, b = variances(frames, quality, 0)
        expected = np.sqrt([n, s, b, n / PATCH_PX**2 + s])
        np.testing.assert_allclose((levels.noise, levels.seam, levels.fwhm_px, levels.error), expected, rtol=1e-12)
    assert prediction.area == pytest.approx(0.5, abs=0.02)
    assert prediction.lost == 0.0
    n2, _, _ = variances(range(10, 20), quality, 0)
    n1, _, _ = variances(others, quality, 0)
    assert prediction.all[1].noise == pytest.approx(np.sqrt((n1 + n2) / 2), rel=0.01)
