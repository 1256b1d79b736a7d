"""The kernel of the flat: patterns planted into made-up stars and skies come back, and nothing else does."""

from dataclasses import replace

import numpy as np
import pytest

import zemosaic_flat as kernel
import zemosaic_frame_arrays as arrays
from strict_namespace import StrictNamespace
from zemosaic_detections import Detections
from zemosaic_flat import SharedSky, basis, correction_at, flat_model, sky_flat, stars_flat
from zemosaic_links import tied_groups
from zemosaic_preprocess import bayer_colours, flattened
from zemosaic_synthetic import SurveySpec, vignette
from zemosaic_types import Rect

SHAPE = (480, 640)
LAYOUTS = {"rotated": (0.0, 0.6), "dithered": (60.0, 0.0), "panels": (220.0, 0.2)}


def pattern(rng, rms=0.03):
    """Terms of a random pattern."""
    terms = rng.normal(0.0, 1.0, basis(np.zeros(1), np.zeros(1), SHAPE).shape[1])
    x, y = np.meshgrid(np.linspace(0, 639, 40), np.linspace(0, 479, 30))
    return terms * rms / np.std(basis(x.ravel(), y.ravel(), SHAPE) @ terms)


def frames_of(rng, n_frames, layout):
    """Angles and centres on the canvas."""
    scatter, turn = LAYOUTS[layout]
    return list(zip(rng.uniform(-turn, turn, n_frames), rng.normal(0.0, scatter, (n_frames, 2)), strict=True))


def on_detector(frame, points):
    """Pixels (x, y) of a frame at which places of the canvas lie, and which of them are inside."""
    angle, centre = frame
    d = points - centre
    x = np.cos(angle) * d[:, 0] - np.sin(angle) * d[:, 1] + 319.5
    y = np.sin(angle) * d[:, 0] + np.cos(angle) * d[:, 1] + 239.5
    return x, y, (x > 0) & (x < 639) & (y > 0) & (y < 479)


def detections(rng, frames, terms, *, channels=1, n_stars=300, error=60.0, scatter=0.005):
    places, brightness = rng.uniform(-600, 600, (n_stars, 2)), np.exp(rng.uniform(8.0, 12.0, n_stars))
    rows = []
    for k, frame in enumerate(frames):
        x, y, inside = on_detector(frame, places)
        seen = np.flatnonzero(inside)
        light = brightness[seen] * np.exp(rng.normal(0.0, 0.1) + basis(x[seen], y[seen], SHAPE) @ terms)
        noise = np.hypot(scatter * light, error)[:, None]
        flux = light[:, None] + noise * rng.standard_normal((seen.size, channels))
        where = (*places[seen].T, x[seen], y[seen])
        rows.append((np.full(seen.size, k), seen, *where, flux, np.full(flux.shape, error)))
    return Detections(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def dense(stars, n_frames):
    """Terms by plain weighted least squares with a column for each star and each frame, nothing eliminated."""
    flux, error = stars.flux[:, 0], stars.error[:, 0]
    number = np.unique(stars.star, return_inverse=True)[1]
    indicators = [(number[:, None] == np.arange(number.max() + 1)), (stars.frame[:, None] == np.arange(n_frames))]
    shapes = basis(stars.frame_x, stars.frame_y, SHAPE)
    weight = 1.0 / np.hypot(error / flux, 0.01)
    design = np.column_stack([shapes, *indicators]) * weight[:, None]
    return np.linalg.lstsq(design, weight * np.log(flux), rcond=None)[0][: shapes.shape[1]]


def errors(star):
    """Errors of the terms of the first colour."""
    return np.sqrt(np.diag(star.modes @ np.linalg.inv(star.information[0]) @ star.modes.T))


def told(star, truth):
    """How much of each of the modes a pattern holds: they are orthonormal over the detector."""
    y, x = (p.ravel() for p in np.indices(SHAPE))
    some = basis(x[::11], y[::11], SHAPE)
    return star.modes.T @ (some.T @ some / len(some)) @ truth


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_planted_pattern_comes_back_within_its_stated_error(layout):
    """What rotation about one place cannot tell is left out and does not spoil the rest."""
    chi_squared = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        truth = pattern(rng)
        star = stars_flat(detections(rng, frames_of(rng, 24, layout), truth), 24, SHAPE)
        amount = told(star, truth)
        assert (amount.size == truth.size) == (layout == "panels")
        away = star.amplitudes[0] - amount
        chi_squared.append(away @ star.information[0] @ away / amount.size)
        assert np.sqrt(np.square(away).sum()) < 0.012
        assert star.significance > 30
        assert star.rms == pytest.approx(np.sqrt(np.square(amount).sum()), rel=0.12)
    assert 0.7 < np.mean(chi_squared) < 1.4


def test_the_solution_is_that_of_dense_least_squares():
    rng = np.random.default_rng(5)
    frames, truth = frames_of(rng, 12, "panels"), pattern(rng)
    stars = detections(rng, frames, truth, n_stars=120, error=40.0)
    bright = np.bincount(stars.star, stars.flux[:, 0]) / np.maximum(1, np.bincount(stars.star)) > 3000.0
    stars = stars.chosen(bright[stars.star] & (np.bincount(stars.star)[stars.star] > 1))
    star = stars_flat(stars, 12, SHAPE)
    assert np.abs(star.terms[0] - dense(stars, 12)).max() < 0.5 * errors(star).max()
    one = replace(stars, flux=stars.flux[:, 0], error=stars.error[:, 0])
    columns = np.column_stack([np.log(one.flux), basis(one.frame_x, one.frame_y, SHAPE)])
    weight = 1.0 / (np.square(one.error / one.flux) + 0.01**2)
    number = np.unique(one.star, return_inverse=True)[1]
    frames = kernel._Frames(one, number, tied_groups(one.frame, number, 12))
    rest, _ = frames.without_effects(columns, weight, np.zeros((12, columns.shape[1])))
    root = np.sqrt(weight)[:, None]
    terms = np.linalg.lstsq(rest[:, 1:] * root, (rest[:, :1] * root)[:, 0], rcond=None)[0]
    np.testing.assert_allclose(terms, dense(stars, 12), atol=1e-8)


def test_the_polynomial_of_the_inverse_is_that_of_dense_least_squares():
    u, v = np.linspace(-0.9, 0.9, 33), np.linspace(-0.5, 0.5, 33)
    values = np.random.default_rng(2).normal(1.0, 0.1, (33, 33))
    powers = [(j, i) for j in range(7) for i in range(7 - j)]
    design = np.stack([np.outer(v**j, u**i).ravel() for j, i in powers], axis=1)
    expected = np.zeros((7, 7))
    expected[tuple(zip(*powers, strict=True))] = np.linalg.lstsq(design, values.ravel())[0]
    np.testing.assert_allclose(kernel._polynomial(u, v, values), expected, rtol=1e-9, atol=1e-9)


def test_stars_that_vary_or_are_mistaken_do_no_harm():
    rng = np.random.default_rng(6)
    frames, truth = frames_of(rng, 24, "panels"), pattern(rng)
    stars = detections(rng, frames, truth)
    wild = rng.random(stars.star.size) < 0.03
    spoiled = replace(stars, flux=np.where(wild[:, None], stars.flux * rng.uniform(0.3, 3.0), stars.flux))
    variable = rng.random(stars.star.max() + 1) < 0.05
    swing = np.exp(0.3 * rng.standard_normal(stars.star.size))[:, None]
    spoiled = replace(spoiled, flux=np.where(variable[stars.star][:, None], spoiled.flux * swing, spoiled.flux))
    star = stars_flat(spoiled, 24, SHAPE)
    off = np.linalg.solve(star.modes, star.terms[0] - truth)
    assert off @ star.information[0] @ off / off.size < 3.0
    assert np.sqrt(np.square(off).sum()) < 0.004


def test_no_pattern_is_not_significant():
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        stars = detections(rng, frames_of(rng, 8, "panels"), np.zeros(14), n_stars=150, channels=3)
        star = stars_flat(stars, 8, SHAPE)
        assert star.significance < 5.0


def test_frames_at_one_place_and_angle_tell_nothing():
    rng = np.random.default_rng(7)
    frames = [(0.1, np.array([5.0, 3.0]))] * 10
    assert stars_flat(detections(rng, frames, pattern(rng)), 10, SHAPE).modes.shape[1] == 0


def test_frames_turned_about_their_middle_tell_all_but_what_is_round():
    rng = np.random.default_rng(8)
    frames = [(angle, np.zeros(2)) for angle in np.linspace(0.0, 1.5, 20)]
    round_one = np.zeros(14)
    round_one[[2, 4]] = -0.1  # the terms u**2 and v**2
    star = stars_flat(detections(rng, frames, round_one, n_stars=1500), 20, SHAPE)
    assert 8 <= star.modes.shape[1] <= 12
    assert star.significance < 5.0


def test_without_stars_there_is_no_mode():
    nothing = Detections(*(np.empty(0, dtype=int),) * 2, *(np.empty(0),) * 4, *(np.empty((0, 3)),) * 2)
    assert stars_flat(nothing, 5, SHAPE).modes.shape[1] == 0


def test_stars_too_few_to_contradict_each_other_tell_nothing():
    """Three stars, each in two frames of its own: whatever they show, the gains of the frames explain it."""
    rng = np.random.default_rng(9)
    frame, star = np.arange(6), np.repeat(np.arange(3), 2)
    places = rng.uniform(0, 400, (4, 6))
    flux = rng.uniform(1e4, 1e5, (6, 1))
    found = stars_flat(Detections(frame, star, *places, flux, np.full(flux.shape, 50.0)), 6, SHAPE)
    assert found.modes.shape[1] == 0


def skies(rng, frames, terms, *, pedestal, sky=900.0, glow=0.0, nebula=0.0):
    """Levels of boxes of the canvas in neighbouring frames, each with a plane and noise of its own."""
    grid = np.stack(np.meshgrid(np.arange(-600.0, 601.0, 50.0), np.arange(-600.0, 601.0, 50.0)), axis=-1)
    grid = grid.reshape(-1, 2)
    cloud = nebula * np.exp(-np.square(grid).sum(axis=1) / (2 * 150.0**2))
    levels = []
    for frame in frames:
        x, y, inside = on_detector(frame, grid)
        u, v = (x - 319.5) / 400, (y - 239.5) / 400
        light = sky * rng.uniform(0.9, 1.1) + cloud + rng.normal(0, 15) * u + rng.normal(0, 15) * v
        level = pedestal + light * np.exp(basis(x, y, SHAPE) @ terms) + glow * (u + v) ** 4
        levels.append((x, y, inside, level + rng.normal(0.0, 1.0, level.size)))
    pairs = []
    for i, (x0, y0, in0, l0) in enumerate(levels):
        for j in range(i + 1, min(i + 4, len(frames))):
            x1, y1, in1, l1 = levels[j]
            both = in0 & in1
            places = np.stack([x0, x1])[:, both], np.stack([y0, y1])[:, both]
            pairs.append(SharedSky((i, j), *places, np.stack([l0, l1])[:, both, None]))
    return pairs


def stars_and_skies(seed, **more):
    """Twenty frames without gains of their own: truth, what the stars say, and the skies."""
    rng = np.random.default_rng(seed)
    frames, truth = frames_of(rng, 20, "panels"), pattern(rng)
    star = stars_flat(detections(rng, frames, truth), 20, SHAPE)
    assert star.modes.shape[1] == truth.size
    star = replace(star, log_gain=np.zeros(20))
    return truth, star, skies(rng, frames, truth, **more)


def off(terms, truth, *, tilted=True):
    """Rms over the detector of the difference of two patterns, also less the slopes, which the sky cannot tell."""
    x, y = (p.ravel() for p in np.meshgrid(np.linspace(0, 639, 40), np.linspace(0, 479, 30)))
    difference = basis(x, y, SHAPE) @ (terms[0] - truth)
    slopes = np.column_stack([np.ones(x.size), x, y])
    fitted = slopes @ np.linalg.lstsq(slopes, difference, rcond=None)[0]
    return float(np.std(difference if tilted else difference - fitted))


@pytest.mark.parametrize("nebula", [0.0, 600.0])
@pytest.mark.parametrize("pedestal", [0.0, 300.0])
def test_the_sky_sharpens_the_pattern_and_finds_the_pedestal(pedestal, nebula):
    truth, star, pairs = stars_and_skies(21, pedestal=pedestal, nebula=nebula)
    sky = sky_flat(star, pairs, SHAPE)
    assert sky.agrees
    assert sky.pedestal == pytest.approx(pedestal, abs=60.0)
    assert off(sky.terms, truth, tilted=False) < 0.7 * off(star.terms, truth, tilted=False)
    without, with_it = sky.unevenness
    assert with_it < 0.3 * without


@pytest.mark.parametrize("glow", [2.0, 10.0, 60.0])
@pytest.mark.parametrize("seed", [22, 25])
def test_a_glow_of_the_camera_cannot_take_the_pattern_further_than_the_stars_doubt(seed, glow):
    truth, star, pairs = stars_and_skies(seed, pedestal=300.0, glow=glow)
    sky = sky_flat(star, pairs, SHAPE)
    assert sky.agrees or np.allclose(sky.terms, star.terms, atol=1e-12)
    assert off(sky.terms, truth) < 0.005
    assert 0.0 <= sky.pedestal <= min(pair.level.min() for pair in pairs if pair.level.size)


def test_a_sky_that_contradicts_the_stars_is_not_let_in():
    _, star, pairs = stars_and_skies(22, pedestal=300.0, glow=20.0)
    sky = sky_flat(star, pairs, SHAPE)
    assert not sky.agrees
    np.testing.assert_allclose(sky.terms, star.terms, atol=1e-12)


def test_without_shared_skies_the_stars_stand_alone():
    _, star, pairs = stars_and_skies(23, pedestal=300.0)
    strangers = replace(star, group=np.arange(20))
    for found in (sky_flat(star, [], SHAPE), sky_flat(strangers, pairs, SHAPE)):
        assert (found.agrees, found.pedestal) == (False, 0.0)
        np.testing.assert_array_equal(found.terms, star.terms)


def test_a_colour_is_as_strong_as_its_own_stars_say_and_else_follows_the_light_of_all():
    rng = np.random.default_rng(24)
    truth = pattern(rng)
    frames, scatter = frames_of(rng, 24, "panels"), {"channels": 3, "error": 20.0}
    stars = detections(rng, frames, truth, **scatter)
    more = np.exp(0.2 * basis(stars.frame_x, stars.frame_y, SHAPE) @ truth)
    tinted = replace(stars, flux=stars.flux * np.column_stack([1.0 / more, np.ones_like(more), more]))
    star = stars_flat(tinted, 24, SHAPE)
    for terms, strength in zip(star.terms, (0.8, 1.0, 1.2), strict=True):
        assert off(terms[None], strength * truth) < 0.0025
    dim = stars_flat(replace(stars, flux=stars.flux * [1.0, 1.0, 1e-5]), 24, SHAPE)
    np.testing.assert_allclose(dim.terms[2], dim.terms[0], rtol=0.05, atol=1e-4)


def vignetted(loss):
    """A simulated pattern as terms, one colour, and itself with mean 1."""
    spec = SurveySpec(frame_shape=SHAPE, vignetting=loss)
    share = vignette(spec)[0]
    share /= share.mean()
    y, x = (p.ravel() for p in np.indices(SHAPE))
    shapes = basis(x, y, SHAPE)
    some = slice(None, None, 7)
    return np.linalg.lstsq(shapes[some], np.log(share.ravel()[some]), rcond=None)[0], share


def test_the_model_undoes_the_pattern_everywhere_and_keeps_the_mean():
    terms, _ = vignetted(0.3)
    flat = flat_model(terms[None], 0.0, SHAPE)
    y, x = (p.ravel() for p in np.indices(SHAPE))
    share = np.exp(basis(x, y, SHAPE) @ terms)
    share /= share.mean()
    assert np.abs(correction_at(flat, x, y)[:, 0] * share - 1.0).max() < 2e-4
    assert kernel.corner_loss(flat)[0] == pytest.approx(-0.3, abs=0.02)


def test_the_polynomial_is_able_to_follow_a_usual_vignetting():
    terms, share = vignetted(0.1)
    flat = flat_model(terms[None], 0.0, SHAPE)
    y, x = (p.ravel() for p in np.indices(SHAPE))
    assert np.abs(correction_at(flat, x, y)[:, 0] * share.ravel() - 1.0).max() < 5e-4


def test_a_pattern_too_dark_for_vignetting_has_no_model():
    assert flat_model(20.0 * vignetted(0.1)[0][None], 0.0, SHAPE) is None


def model(channels):
    """A flat whose colours differ, with a pedestal."""
    terms = vignetted(0.2)[0]
    return flat_model(np.stack([terms * factor for factor in (0.9, 1.0, 1.2)[:channels]]), 300.0, SHAPE)


COLOURS = {"mono": np.zeros((2, 2), dtype=np.int64), "GRBG": bayer_colours("GRBG")}


@pytest.mark.parametrize("layout", COLOURS)
def test_every_section_gets_the_values_of_the_whole_frame_and_a_device_the_same_bits(layout):
    flat, colours = model(3), COLOURS[layout]
    raw = np.random.default_rng(3).uniform(300, 60000, SHAPE).astype(np.float32)
    raw[40:50, 60:90] = np.nan
    whole = flattened(raw, colours, *kernel.section_polynomials(flat, Rect(0, 480, 0, 640)), flat.pedestal)
    y, x = np.indices(SHAPE)
    factor = correction_at(flat, x.ravel(), y.ravel()).reshape(*SHAPE, 3)
    own = np.take_along_axis(factor, colours[y % 2, x % 2][..., None], axis=2)[..., 0]
    np.testing.assert_allclose(whole, 300.0 + (raw - 300.0) * own, rtol=1e-6)
    for section in (Rect(0, 480, 0, 640), Rect(38, 161, 58, 300), Rect(100, 101, 2, 3), Rect(476, 480, 600, 640)):
        rows, columns = kernel.section_polynomials(flat, section)
        part = np.ascontiguousarray(raw[section.slices])
        np.testing.assert_array_equal(flattened(part, colours, rows, columns, 300.0), whole[section.slices])
        xp = StrictNamespace()
        there = [xp.asarray(a) for a in (part, rows, columns)]
        xp.uploads = 0
        on_device = arrays.flattened(there[0], colours, *there[1:], 300.0)
        assert (xp.uploads, xp.downloads) == (0, 0)
        result = on_device.get()
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, whole[section.slices])
