"""Star patterns: the same sky is recognised whatever was done to it, and no other sky ever is."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

import references
import zemosaic_star_patterns
from catalogues import SHAPE, sky, two_views, view
from zemosaic_star_patterns import (
    FEWEST_STARS,
    MOST_BY_CHANCE,
    REACH_PX,
    common_shapes,
    fit_tan,
    match_patterns,
    star_pattern,
    tan_wcs,
)

CORNERS = np.array([0, SHAPE[1] - 1, 1j * (SHAPE[0] - 1), SHAPE[1] - 1 + 1j * (SHAPE[0] - 1)])


def off_px(match, turn, shift):
    """The largest distance of two similarities over the stars that they are found from, in px."""
    return np.abs((match.turn - turn) * CORNERS + match.shift - shift).max()


# ---- two views of one sky --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_common_stars_are_those_that_trying_everything_finds(seed):
    """Each pair of stars on each pair, without quads, codes or trees."""
    first, second, *_ = two_views(seed, 22, overlap=0.9, missing=0.1, spurious=0.2)
    match = match_patterns(first, second)
    pairs, turn, shift = references.coinciding_stars(first.z, second.z, REACH_PX)
    if match is None:  # too few for anybody to be sure
        assert len(pairs) < 10
        return
    assert list(zip(match.first.tolist(), match.second.tolist(), strict=True)) == pairs
    assert off_px(match, turn, shift) < 1e-6


FAULTS = {
    "none": {},
    "a small scale": {"scale": 0.98},
    "a large scale": {"scale": 1.02},
    "another camera": {"scale": 0.6},
    "finer pixels": {"scale": 1.5, "n_in_view": 120},
    "noisy centres": {"noise": 0.5},
    "half an overlap": {"overlap": 0.5, "n_in_view": 120},
    "a crowded field": {"n_in_view": 900},
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_sky_is_recognised_though_stars_are_missing_and_others_are_none(case):
    """Of each list 30 % are missing, and half as many are spurious; any rotation."""
    found = 0
    for seed in range(20):
        first, second, turn, shift = two_views(seed, **FAULTS[case])
        match = match_patterns(first, second)
        if match is not None:
            assert match.first.size >= FEWEST_STARS
            assert match.chance < MOST_BY_CHANCE
            assert abs(match.turn - turn) < 0.01 * abs(turn)
            common = first.z[match.first]
            assert np.median(np.abs(turn * common + shift - (match.turn * common + match.shift))) < 1.0
            found += 1
    assert found >= 18


def test_the_other_way_round_the_similarity_is_the_inverse():
    first, second, *_ = two_views(3)
    there, back = match_patterns(first, second), match_patterns(second, first)
    np.testing.assert_array_equal(np.sort(there.first), np.sort(back.second))
    assert there.turn * back.turn == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("seed", range(10))
def test_a_mirrored_image_is_refused_and_told_apart(seed):
    first, second, *_ = two_views(seed, overlap=0.9, missing=0.1, spurious=0.1, mirrored=True)
    assert match_patterns(first, second) is None
    assert match_patterns(first, second.mirrored()) is not None


@pytest.mark.parametrize("n_stars", range(FEWEST_STARS + 1))
def test_too_few_stars_are_no_pattern(n_stars):
    """A few stars fit others somewhere: the same few, seen twice, are no proof."""
    rng = np.random.default_rng(n_stars)
    x, y = rng.uniform(0, 500, (2, n_stars))
    pattern = star_pattern(x, y, SHAPE)
    again = star_pattern(x + rng.normal(0, 0.5, n_stars), y + rng.normal(0, 0.5, n_stars), SHAPE)
    assert len(pattern.quads) == 0 or n_stars >= FEWEST_STARS
    assert match_patterns(pattern, again) is None
    assert common_shapes([pattern], [again]).shape == (1, 1)


def test_stars_at_one_place_or_on_a_line_harm_nobody():
    line = np.arange(40.0)
    for pattern in (
        star_pattern(np.full(40, 7.0), np.full(40, 9.0), SHAPE),
        star_pattern(10 * line, 5 * line, SHAPE),
    ):
        assert match_patterns(pattern, two_views(1)[0]) is None
        match_patterns(pattern, pattern)


# ---- two skies -------------------------------------------------------------------------------------------


def unrelated(seed):
    """Views of two skies, from a few stars to more than a pattern takes."""
    rng = np.random.default_rng([seed, 77])
    n_in_view = int(rng.integers(8, 300))
    return (view(rng, *sky(rng, n_in_view)) for _ in range(2))


def test_two_skies_never_match_and_chance_is_not_told_too_small(monkeypatch):
    """Asked to accept what comes by chance once in twenty times, no more is accepted, and nothing that is sure."""
    monkeypatch.setattr(zemosaic_star_patterns, "MOST_BY_CHANCE", 0.05)
    monkeypatch.setattr(zemosaic_star_patterns, "_LEAST_SHARE", 0.0)
    matches = [match_patterns(*unrelated(seed)) for seed in range(1500)]
    chances = [match.chance for match in matches if match is not None]
    assert len(chances) <= 75
    assert min(chances, default=1.0) > 10 * MOST_BY_CHANCE


def test_clusters_of_two_skies_do_not_match():
    """Where stars crowd together more of them coincide than an even sky lets expect."""
    for seed in range(200):
        rng = np.random.default_rng([seed, 99])
        patterns = []
        for _ in range(2):
            spread = rng.normal(0, 40, 80) + 1j * rng.normal(0, 40, 80) + 480 + 270j
            field = rng.uniform(0, 960, 30) + 1j * rng.uniform(0, 540, 30)
            z = rng.permutation(np.concatenate([spread, field]))
            patterns.append(star_pattern(z.real, z.imag, SHAPE))
        assert match_patterns(*patterns) is None, seed


def test_defects_of_the_detector_are_no_stars():
    """What two frames of one camera show at the same pixels, and little else, is no sky that they share."""
    for seed in range(30):
        rng = np.random.default_rng([seed, 55])
        defects = rng.uniform(0, SHAPE[1], 12) + 1j * rng.uniform(0, SHAPE[0], 12)
        patterns = []
        for _ in range(2):
            places = rng.uniform(0, SHAPE[1], 40) + 1j * rng.uniform(0, SHAPE[0], 40)
            z = rng.permutation(np.concatenate([places, defects + rng.normal(0, 0.1, 12)]))
            patterns.append(star_pattern(z.real, z.imag, SHAPE))
        assert match_patterns(*patterns) is None


def test_frames_that_did_not_move_against_the_sky_match_all_the_same():
    for seed in range(10):
        rng = np.random.default_rng([seed, 56])
        places, flux = sky(rng, 60)
        first, second = (view(rng, places, flux, missing=0.15, spurious=0.25) for _ in range(2))
        match = match_patterns(first, second)
        assert abs(match.turn - 1.0) < 1e-3
        assert abs(match.shift) < 1.0


# ---- many patterns ---------------------------------------------------------------------------------------


def test_shapes_tell_whom_it_is_worth_to_compare():
    """Five views of each of six skies: the four others of its sky come first for each."""
    rng = np.random.default_rng(4)
    patterns = []
    for _ in range(6):
        places, flux = sky(rng, 60)
        for _ in range(5):
            turn, shift = np.exp(1j * rng.uniform(0, 2 * np.pi)), rng.normal(0, 40) + 1j * rng.normal(0, 40)
            patterns.append(view(rng, places, flux, turn=turn, shift=shift))
    votes = common_shapes(patterns, patterns).toarray()
    np.fill_diagonal(votes, 0)
    own = np.kron(np.eye(6, dtype=bool), np.ones((5, 5), dtype=bool))
    likeliest = np.argsort(-votes, axis=1, kind="stable")[:, :4]
    assert np.take_along_axis(own, likeliest, axis=1).mean() > 0.6
    assert votes[own].mean() > 15 * votes[~own].mean()


def test_no_pattern_no_shapes():
    nobody, blank = [], [star_pattern(np.empty(0), np.empty(0), SHAPE)]
    seen = [two_views(1)[0]]
    for first, second in ((nobody, seen), (seen, nobody), (blank, seen), (seen, blank)):
        votes = common_shapes(first, second)
        assert votes.shape == (len(first), len(second))
        assert votes.sum() == 0


# ---- a place on the sky ----------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [(192.7, 41.1), (0.001, 0.0), (359.999, -30.0), (120.0, 89.9), (33.0, -90.0)])
@pytest.mark.parametrize("parity", [-1, 1])
def test_a_tan_is_found_from_places_that_it_gave(centre, parity):
    angle, step = 2.0, 2.4 / 3600
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    truth = tan_wcs(centre, step * rotation @ np.diag([1.0, parity]), (1920, 1080))
    x, y = np.random.default_rng(1).uniform(0, 1000, (2, 12))
    sky_deg = truth.all_pix2world(np.column_stack([x, y]), 0)
    found = fit_tan(x, y, sky_deg, (1920, 1080), parity)
    corners = np.array([[0.0, 0.0], [1079.0, 0.0], [0.0, 1919.0], [1079.0, 1919.0]])
    np.testing.assert_allclose(found.all_world2pix(truth.all_pix2world(corners, 0), 0), corners, atol=1e-5)
    assert np.sign(np.linalg.det(found.pixel_scale_matrix)) == parity
    middle = SkyCoord(*found.wcs.crval, unit="deg").separation(SkyCoord(*truth.wcs.crval, unit="deg"))
    assert middle.arcsec < 1e-4


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_a_minority_of_stars_from_a_frame_whose_wcs_is_wrong_do_not_count(share):
    truth = tan_wcs((10.0, 50.0), np.diag([-1e-3, 1e-3]), (500, 700))
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 500, (2, 40))
    sky_deg = truth.all_pix2world(np.column_stack([x, y]), 0)
    x, y = x + rng.normal(0, 0.1, 40), y + rng.normal(0, 0.1, 40)
    n_wrong = round(40 * share)
    clean = fit_tan(x[n_wrong:], y[n_wrong:], sky_deg[n_wrong:], (500, 700), -1)
    x[:n_wrong] += 20.0
    spoiled = fit_tan(x, y, sky_deg, (500, 700), -1)
    corners = np.array([[0.0, 0.0], [699.0, 499.0]])
    away = spoiled.all_world2pix(clean.all_pix2world(corners, 0), 0) - corners
    assert np.abs(away).max() < 0.1


@pytest.mark.parametrize("place", [(190.0, -50.0), (100.0, 0.0), (np.nan, np.nan)])
@pytest.mark.parametrize("n_wrong", [1, 15, 20])
def test_stars_of_a_frame_on_the_other_side_of_the_sky_do_not_count(place, n_wrong):
    truth = tan_wcs((10.0, 50.0), np.diag([-1e-3, 1e-3]), (500, 700))
    x, y = np.random.default_rng(4).uniform(0, 500, (2, 40))
    sky_deg = truth.all_pix2world(np.column_stack([x, y]), 0)
    sky_deg[-n_wrong:] = sky_deg[-n_wrong:] - sky_deg[0] + place
    found = fit_tan(x, y, sky_deg, (500, 700), -1)
    corners = np.array([[0.0, 0.0], [699.0, 499.0]])
    np.testing.assert_allclose(found.all_world2pix(truth.all_pix2world(corners, 0), 0), corners, atol=1e-4)


def test_a_sure_star_counts_more_than_an_unsure_one():
    truth = tan_wcs((10.0, 50.0), np.diag([-1e-3, 1e-3]), (500, 700))
    rng = np.random.default_rng(3)
    off = {"alike": [], "weighted": []}
    for _ in range(40):
        x, y = rng.uniform(0, 500, (2, 20))
        sky_deg = truth.all_pix2world(np.column_stack([x, y]), 0)
        sigma = np.repeat([0.02, 0.3], 10)
        x, y = x + sigma * rng.normal(size=20), y + sigma * rng.normal(size=20)
        for case, errors in (("alike", None), ("weighted", sigma)):
            found = fit_tan(x, y, sky_deg, (500, 700), -1, errors)
            middle = found.all_world2pix([truth.wcs.crval], 0)[0] - (truth.wcs.crpix - 1.0)
            off[case].append(np.hypot(*middle))
    assert np.mean(off["weighted"]) < 0.4 * np.mean(off["alike"])
