"""From measures to frames of the stack: what a frame weighs, and what a run takes from the frames it used."""

from dataclasses import replace

import numpy as np
import pytest

from surveys import survey_in
from zemosaic_fits_io import frame_wcs
from zemosaic_flat_frames import flatten_frames
from zemosaic_match import MatchOptions, match_frames, usual_feather_px
from zemosaic_measure import cell_size_px, measure_frames
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_reproject import optimal_canvas
from zemosaic_synthetic import small_spec


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("match")
    survey_in(folder, small_spec(frames_per_panel=4, star_density=2000.0))
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    canvas = optimal_canvas([(record.header.shape, frame_wcs(record.header)) for record in records])
    return measure_frames(records, canvas, cell_size_px([(160, 200)]), 1), canvas


def test_the_width_of_stars_counts_on_the_sky_and_not_in_pixels(measured):
    """A frame of pixels twice as coarse shows the same stars half as wide, which makes it no sharper."""
    frames, canvas = measured
    coarse = replace(
        frames[0],
        measure=replace(frames[0].measure, fwhm_px=frames[0].measure.fwhm_px / 2.0),
        placement=replace(frames[0].placement, area_ratio=frames[0].placement.area_ratio / 4.0),
    )
    plain, sharp = MatchOptions("none", "noise_variance"), MatchOptions("none", "noise_fwhm")

    def gain_of_width(some):
        by_noise, by_width = (match_frames(some, canvas, options).frames for options in (plain, sharp))
        return np.array(
            [w.solution.weight[0] / n.solution.weight[0] for w, n in zip(by_width, by_noise, strict=True)]
        )

    before, after = gain_of_width(frames), gain_of_width([coarse, *frames[1:]])
    np.testing.assert_allclose(after, before, rtol=1e-9)


@pytest.mark.parametrize("shift", [(-4.3, 0.0), (0.0, 4.6), (3.2, -3.1)])
def test_frames_that_were_moved_over_the_rim_keep_all_their_pixels(measured, shift):
    frames, canvas = measured
    assert match_frames(frames, canvas, MatchOptions()).canvas == canvas
    moved = []
    for m in frames:
        polygon = tuple((x + shift[0], y + shift[1]) for x, y in m.placement.polygon)
        moved.append(replace(m, placement=replace(m.placement, polygon=polygon)))
    matched = match_frames(moved, canvas, MatchOptions())
    outline = np.concatenate([frame.placement.polygon for frame in matched.frames])
    assert (outline.min(axis=0) >= -0.5).all()
    assert (outline.max(axis=0) <= np.array(matched.canvas.shape[::-1]) - 0.5).all()
    here = matched.canvas.wcs().pixel_to_world_values(*matched.frames[0].placement.polygon[0])
    there = canvas.wcs().pixel_to_world_values(*moved[0].placement.polygon[0])
    np.testing.assert_allclose(here, there, atol=1e-9)


def test_the_feather_is_a_sixtieth_of_the_short_side_of_the_usual_frame(measured):
    frames, canvas = measured
    found = match_frames(frames, canvas, MatchOptions()).frames
    assert usual_feather_px(found) == 4  # no less

    def sized(shape):
        header = replace(found[0].record.header, shape=shape)
        return replace(found[0], record=replace(found[0].record, header=header))

    assert usual_feather_px([sized((1080, 1920))] * 3 + [sized((200, 300))]) == 18


def test_a_camera_behind_another_telescope_has_a_flat_of_its_own(measured):
    frames, _ = measured
    other = [
        replace(m, record=replace(m.record, header=replace(m.record.header, telescope="another")))
        for m in frames[4:]
    ]
    assert len(flatten_frames(frames, "auto")[1]) == 1
    assert len(flatten_frames([*frames[:4], *other], "auto")[1]) == 2


def scaled(m, factor, *, instrument="another", exptime_s=None, light=1.0):
    """Return a frame as another camera would measure it: in other units, and with a share of the light."""
    measure = m.measure
    values = {name: getattr(measure, name) * factor for name in ("sky", "noise", "flux_error", "level")}
    record = replace(m.record, header=replace(m.record.header, instrument=instrument))
    if exptime_s is not None:
        record = replace(record, exptime_s=exptime_s)
    return replace(m, record=record, measure=replace(measure, flux=measure.flux * factor * light, **values))


@pytest.mark.parametrize("factor", [1.0 / 65535.0, 300.0])
def test_a_camera_of_other_units_is_no_cloud_and_the_units_are_those_of_most_frames(measured, factor):
    frames, canvas = measured
    alone = match_frames(frames, canvas, MatchOptions())
    mixed = match_frames([*frames[:5], *(scaled(m, factor) for m in frames[5:])], canvas, MatchOptions())
    assert mixed.left_out == []
    usual = np.array([frame.solution.gain[0] for frame in alone.frames])
    gain = np.array([frame.solution.gain[0] for frame in mixed.frames])
    gain[5:] *= factor
    np.testing.assert_allclose(gain / usual, gain[0] / usual[0], rtol=1e-5)
    assert gain[:5].mean() == pytest.approx(1.0, abs=0.2)
    weight = np.array([[frame.solution.weight[0] for frame in some.frames] for some in (alone, mixed)])
    np.testing.assert_allclose(weight[1] / weight[0], weight[1, 0] / weight[0, 0], rtol=1e-4)


def test_a_clouded_frame_is_named_among_those_of_its_camera(measured):
    frames, canvas = measured
    faint = [scaled(m, 1e-3, light=1.0 / 40.0 if k == 2 else 1.0) for k, m in enumerate(frames[:4])]
    matched = match_frames([*faint, *frames[4:]], canvas, MatchOptions())
    assert [item.path for item in matched.left_out] == [frames[2].record.path]
    assert "times fainter" in matched.left_out[0].reason


def test_frames_of_one_camera_are_of_one_wherever_they_lie_on_a_wide_canvas(measured):
    """A TAN canvas stretches towards its rim, so the same pixels cover fewer of its pixels there."""
    frames, canvas = measured
    ratios = [2.0**0.5 + (1e-3 if k == 2 else -1e-3) for k in range(len(frames))]
    spread = [
        replace(m, placement=replace(m.placement, area_ratio=ratio))
        for m, ratio in zip(frames, ratios, strict=True)
    ]
    spread[2] = scaled(spread[2], 1.0, light=1.0 / 40.0, instrument=spread[2].record.header.instrument)
    matched = match_frames(spread, canvas, MatchOptions())
    assert [item.path for item in matched.left_out] == [frames[2].record.path]


def test_transparency_is_the_light_of_a_second_against_frames_of_the_same_camera(measured):
    frames, canvas = measured
    before = match_frames(frames, canvas, MatchOptions()).transparency
    longer = [
        scaled(m, 3.0, instrument=m.record.header.instrument, exptime_s=3.0 * m.record.exptime_s) for m in frames
    ]
    after = match_frames([*longer[:3], *frames[3:]], canvas, MatchOptions()).transparency
    np.testing.assert_allclose(after, before, rtol=1e-4)
    for nonsense in (0.0, -1.0, 1e30, np.inf, np.nan):
        odd = replace(frames[2], record=replace(frames[2].record, exptime_s=nonsense))
        same = match_frames([*frames[:2], odd, *frames[3:]], canvas, MatchOptions())
        assert same.left_out == []
        np.testing.assert_allclose(same.transparency, before, rtol=1e-4)
    other = match_frames(
        [*frames[:4], *(scaled(m, 50.0) for m in frames[4:])], canvas, MatchOptions()
    ).transparency
    for some in (slice(0, 4), slice(4, 8)):
        ratio = np.array(other[some]) / np.array(before[some])
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
        assert np.median(other[some]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("ratio", [0.25, 4.0])
def test_pixels_larger_than_those_of_the_mosaic_weigh_as_few_as_they_are(measured, ratio):
    """Samples of one large pixel share its noise; samples of small ones are not averaged, and share nothing."""
    frames, canvas = measured
    placed = [replace(m, placement=replace(m.placement, area_ratio=1.0)) for m in frames]
    other = replace(placed[0], placement=replace(placed[0].placement, area_ratio=ratio))
    matched = match_frames([other, *placed[1:]], canvas, MatchOptions("none"))
    weight, noise = (
        np.array([getattr(frame.solution, name)[0] for frame in matched.frames]) for name in ("weight", "noise")
    )
    expected = np.ones(len(frames))
    expected[0] = min(1.0, ratio)
    product = weight * np.square(noise)
    np.testing.assert_allclose(product / product[1], expected, rtol=1e-9)
