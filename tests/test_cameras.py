"""Frames of several cameras in one mosaic: one scale for all of them, and honest words about each."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_cameras import Cameras, common_scale
from zemosaic_synthetic import small_spec

SURVEY = small_spec(
    frame_shape=(240, 300),
    star_density=1500.0,
    star_flux=(4000.0, 300000.0),
    overlap_fraction=0.3,
    frames_per_panel=5,
    trail_fraction=0.0,
    seed=4,
)


# ---- the kernel -------------------------------------------------------------------------------------------


def dense(values, group, camera):
    """Solve for a constant a group and one a camera at once: what one of each stays in doubt of is near 0."""
    n, n_groups = len(values), group.max() + 1
    design = np.zeros((n, n_groups + camera.max() + 1))
    design[np.arange(n), group] = 1.0
    design[np.arange(n), n_groups + camera] = -1.0
    solution = np.linalg.lstsq(design, -values, rcond=None)[0]
    return values + solution[group]


def centred(values, group):
    return values - (np.bincount(group, values) / np.bincount(group))[group]


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_share_cameras_are_put_on_one_scale_like_dense_least_squares_does(seed):
    rng = np.random.default_rng(seed)
    n = 60
    camera, group = rng.integers(0, 4, n), np.sort(rng.integers(0, 7, n))
    group = np.unique(group, return_inverse=True)[1]
    true = rng.normal(0.0, 3.0, 4)[camera]
    values = np.stack([centred(true + rng.normal(0.0, 0.1, n), group) for _ in range(3)], axis=1)
    cameras = Cameras(camera, np.ones(n))
    found, by_sky = common_scale(values, group, cameras, np.ones((n, 3)))
    assert not by_sky.any()
    usual = cameras.usual()
    for c in range(3):
        expected = dense(values[:, c], group, camera)
        np.testing.assert_allclose(found[:, c], expected - expected[usual].mean(), atol=1e-9)
    away = found[:, 0] - true
    assert np.ptp([away[camera == k].mean() for k in range(4)]) < 0.3


def test_cameras_that_no_star_ties_are_compared_by_their_sky():
    camera, group = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2])
    light = np.array([800.0, 810.0, 790.0, 0.08, 0.081, 1.6e6])[:, None]
    log_gain, by_sky = common_scale(np.zeros((6, 1)), group, Cameras(camera, np.ones(6)), light)
    np.testing.assert_allclose(np.exp(log_gain[:, 0]) * light[:, 0], 800.0, rtol=0.02)
    assert by_sky.tolist() == [False, False, False, True, True, True]


def test_exposures_of_one_camera_tell_how_groups_compare():
    seconds = np.array([10.0, 10.0, 10.0, 30.0, 30.0])
    cameras = Cameras(np.zeros(5, dtype=int), seconds)
    log_gain, by_sky = common_scale(np.zeros((5, 1)), np.array([0, 0, 0, 1, 1]), cameras, np.ones((5, 1)))
    np.testing.assert_allclose(np.exp(log_gain[:, 0]) * seconds, 10.0)
    assert not by_sky.any()


def test_frames_of_one_kind_are_left_as_they_are():
    values = np.random.default_rng(0).normal(0.0, 1.0, (9, 3))
    cameras = Cameras(np.zeros(9, dtype=int), np.linspace(9.8, 10.2, 9))
    log_gain, by_sky = common_scale(values, np.arange(9), cameras, np.ones((9, 3)))
    assert log_gain is values
    assert not by_sky.any()


@pytest.mark.parametrize("seconds", [[9.97] * 4 + [10.0] * 4 + [30.0] * 5, [9.5] * 5 + [10.4] * 4 + [20.0] * 6])
def test_the_usual_exposure_is_the_one_that_most_frames_are_near(seconds):
    usual = Cameras(np.zeros(len(seconds), dtype=int), np.array(seconds)).usual()
    assert usual.tolist() == np.flatnonzero(np.array(seconds) < 15.0).tolist()


# ---- whole runs -------------------------------------------------------------------------------------------


def changed(path, *, binning=1, units=1.0, exptime_s=None, light=1.0, instrument="another"):
    """Rewrite a frame as another camera would have taken it: sums of pixels, other units, longer or dimmer."""
    with fits.open(path) as hdus:
        data, header = hdus[0].data.astype(np.float64), hdus[0].header.copy()
    for card in ("BZERO", "BSCALE"):
        header.remove(card, ignore_missing=True)
    ny, nx = (size // binning for size in data.shape)
    data = data[: ny * binning, : nx * binning].reshape(ny, binning, nx, binning).sum(axis=(1, 3))
    for axis in (1, 2):
        header[f"CRPIX{axis}"] = (header[f"CRPIX{axis}"] - 0.5) / binning + 0.5
        for other in (1, 2):
            header[f"CD{axis}_{other}"] *= binning
    if instrument:
        header["INSTRUME"] = instrument
    if exptime_s is not None:
        header["EXPTIME"] = header["EXPOSURE"] = exptime_s
    data = ((data - np.median(data)) * light + np.median(data)) * units
    fits.writeto(path, data.astype(np.float32), header, overwrite=True)


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A survey of one camera and its mosaic."""
    folder = tmp_path_factory.mktemp("alike")
    survey = survey_in(folder / "frames", SURVEY)
    return survey, Run(folder / "frames", folder / "out")


def sky_of(run):
    return float(np.nanmedian(run.mosaic))


def sky_of_first(run):
    """Mean sky of the frames of the first camera, of 10 s."""
    rows = [row for row in run.ledger if float(row["exptime_s"]) == 10.0 and "another" not in row["camera"]]
    return np.mean([float(row["sky"]) for row in rows])


SECOND_CAMERAS = {
    "binned, in shares of the full range": {"binning": 2, "units": 1.0 / 65535.0},
    "binned": {"binning": 2},
    "exposed six times longer": {"units": 6.0, "exptime_s": 60.0},
    "the same camera, exposed six times longer": {"units": 6.0, "exptime_s": 60.0, "instrument": ""},
}


@pytest.mark.parametrize("case", SECOND_CAMERAS)
def test_two_cameras_make_one_level_mosaic_in_the_units_of_the_first(alike, tmp_path, case):
    survey, reference = alike
    mixed = survey_in(tmp_path / "frames", SURVEY)
    for frame in mixed.frames[1::3]:
        changed(frame.path, **SECOND_CAMERAS[case])
    run = Run(tmp_path / "frames", tmp_path / "out")
    assert run.result.complete
    assert sky_of(run) == pytest.approx(sky_of_first(run), rel=0.01)
    score, usual = run.score(survey), reference.score(survey)
    assert score.flux_ratio[0] == pytest.approx(usual.flux_ratio[0], rel=0.1)  # transparencies of other frames
    assert score.flux_scatter[0] < usual.flux_scatter[0] + 0.01
    assert score.level_rms[0] < 0.15
    assert score.position_rms_px < 0.06
    assert all(0.5 < float(row["transparency"]) < 2.0 for row in run.ledger)


@pytest.mark.parametrize("units", [1.0 / 65535.0, 1.0 / 100.0, 300.0])
def test_cameras_without_common_stars_are_compared_by_their_sky_and_the_user_is_told(tmp_path, units):
    sparse = replace(SURVEY, star_density=10.0)
    for frame in survey_in(tmp_path / "frames", sparse).frames[6:]:
        changed(frame.path, units=units)
    run = Run(tmp_path / "frames", tmp_path / "out")
    assert run.result.complete
    assert "told by their sky alone" in run.log
    weight = [float(row["weight"]) for row in run.ledger]
    assert max(weight) < 4.0 * min(weight)
    assert sky_of(run) == pytest.approx(sky_of_first(run), rel=0.02)


@pytest.mark.parametrize("method", ["none", "sky_mean", "linear_fit", "global"])
def test_long_exposures_among_short_ones_are_no_clouds(tmp_path, method):
    for frame in survey_in(tmp_path / "frames", SURVEY).frames[::4]:
        changed(frame.path, units=30.0, exptime_s=300.0, instrument="")
    run = Run(tmp_path / "frames", tmp_path / "out", replace(TWO_WORKERS, normalise=method))
    assert run.result.complete


@pytest.mark.parametrize("exptime_s", [10_000.0, 0.01])
def test_a_mistyped_exposure_is_no_cloud(tmp_path, exptime_s):
    changed(survey_in(tmp_path / "frames", SURVEY).frames[3].path, exptime_s=exptime_s, instrument="")
    assert Run(tmp_path / "frames", tmp_path / "out").result.complete


def test_a_missing_exposure_is_the_usual_one(tmp_path):
    survey = survey_in(tmp_path / "frames", SURVEY)
    for frame in survey.frames[:7]:
        with fits.open(frame.path, mode="update") as hdus:
            for card in ("EXPTIME", "EXPOSURE"):
                hdus[0].header.remove(card, ignore_missing=True)
    run = Run(tmp_path / "frames", tmp_path / "out")
    assert run.result.complete
    assert all(0.5 < float(row["transparency"]) < 2.0 for row in run.ledger)


def test_of_two_frames_of_a_camera_the_clouded_one_is_named(tmp_path):
    survey = survey_in(tmp_path / "frames", SURVEY)
    changed(survey.frames[3].path, units=0.01)
    changed(survey.frames[4].path, units=0.01, light=1.0 / 3.0)
    run = Run(tmp_path / "frames", tmp_path / "out")
    light = {row["path"].rsplit("/", 1)[-1]: float(row["transparency"]) for row in run.ledger}
    assert light[survey.frames[3].name] == pytest.approx(1.0)
    assert 0.2 < light[survey.frames[4].name] < 0.5


def test_saturation_is_told_in_units_of_the_mosaic(alike, tmp_path):
    _, reference = alike
    for frame in survey_in(tmp_path / "frames", SURVEY).frames[1::3]:
        changed(frame.path, units=1.0 / 65535.0)
        fits.setval(frame.path, "SATURATE", value=1.0)
    run = Run(tmp_path / "frames", tmp_path / "out")
    gains = [float(row["gain"]) for row in reference.ledger]
    assert reference.header["SATURATE"] == pytest.approx(65535.0 * min(gains), rel=0.05)
    assert run.header["SATURATE"] == pytest.approx(reference.header["SATURATE"], rel=0.2)


def test_a_colour_frame_that_is_left_out_by_the_match_leaves_no_trace(alike, tmp_path):
    """The only frame with colours is hidden by clouds: the mosaic is that of the mono frames alone."""
    _, reference = alike
    survey = survey_in(tmp_path / "frames", SURVEY)
    with fits.open(survey.frames[2].path) as hdus:
        data, header = hdus[0].data.astype(np.float32), hdus[0].header.copy()
    for card in ("BZERO", "BSCALE"):
        header.remove(card, ignore_missing=True)
    cloud = 600.0 * np.sin(np.arange(data.shape[1]) / 12.0).astype(np.float32) ** 2
    colours = np.stack([data + cloud] * 3)
    fits.writeto(tmp_path / "frames" / "clouded_colours.fit", colours, header)
    run = Run(tmp_path / "frames", tmp_path / "out")
    (left_out,) = [row for row in run.ledger if row["used"] == "no"]
    assert left_out["frame_id"] == "clouded_colours.fit"
    assert "cannot be levelled" in left_out["reason"]
    assert run.mosaic.ndim == 2
    np.testing.assert_array_equal(run.mosaic, reference.mosaic)
