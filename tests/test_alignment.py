"""The alignment kernel: planted corrections, pinned modes, frames far off, against a slow dense solution."""

from dataclasses import replace

import numpy as np
import pytest

from zemosaic_alignment import (
    MAX_CORRECTION_PX,
    Positions,
    _prior,
    _solve,
    _System,
    align,
    displace,
    find_offsets,
)
from zemosaic_detections import cluster_stars

SIDE = 1000.0
NOISE = 0.1
RNG_SEED = 7


def sky(n_stars, width, seed=0):
    """Stars no closer than 20 px, so that none is two."""
    rng = np.random.default_rng(seed)
    stars = rng.uniform(0.0, width, (4 * n_stars, 2))
    away = np.hypot(*(stars[:, None] - stars[None]).transpose(2, 0, 1)) + np.tril(np.full((len(stars),) * 2, 1e9))
    return stars[(away.min(axis=0) > 20.0)][:n_stars]


def frames_of(stars, centres, *, planted=None, noise=NOISE, seed=RNG_SEED, most=None):
    """Square frames whose WCS are wrong by the inverse of `planted`, so that `align` should find `planted`."""
    rng = np.random.default_rng(seed)
    centres = np.asarray(centres, dtype=float)
    planted = np.zeros((len(centres), 4)) if planted is None else np.asarray(planted, dtype=float)
    frame, positions = [], []
    radius = SIDE / np.sqrt(6.0)
    for k, centre in enumerate(centres):
        seen = stars[np.abs(stars - centre).max(axis=1) < SIDE / 2][:most]
        tx, ty, a, b = planted[k]
        matrix = np.array([[1 + a / radius, -b / radius], [b / radius, 1 + a / radius]])
        there = np.linalg.solve(matrix, (seen - centre - [tx, ty]).T).T + centre
        positions.append(there + rng.normal(0.0, noise, there.shape))
        frame.append(np.full(len(seen), k))
    frame, positions = np.concatenate(frame), np.concatenate(positions)
    sigma = np.full(frame.size, max(noise, 0.01))
    return Positions(frame, *positions.T.copy(), sigma, centres, np.full(len(centres), radius))


def grid(n, step=500.0, first=600.0):
    return [(first + step * i, first + step * j) for j in range(n) for i in range(n)]


def every_pair(n):
    return np.array([(i, j) for i in range(n) for j in range(i + 1, n)], dtype=np.int64)


def small_corrections(n, size, seed=3):
    planted = np.random.default_rng(seed).normal(0.0, size, (n, 4))
    return planted - planted.mean(axis=0)


def without_common_mode(correction, centres, radius):
    """Take the best common shift, rotation and scale off corrections."""
    away = (centres - centres.mean(axis=0)) / radius
    modes = []
    for tx, ty, a, b in np.eye(4):
        shift = np.column_stack([tx + a * away[:, 0] - b * away[:, 1], ty + b * away[:, 0] + a * away[:, 1]])
        modes.append(np.column_stack([shift, np.full(len(away), a), np.full(len(away), b)]).ravel())
    modes = np.array(modes).T
    flat = correction.ravel()
    return (flat - modes @ np.linalg.lstsq(modes, flat, rcond=None)[0]).reshape(correction.shape)


def dense_solution(system, weight, prior):
    """The same equations with the stars among the unknowns, in one dense least-squares problem."""
    n, k, m = len(system.free), system.there.size, system.frame.size
    free = np.repeat(system.free, 2, axis=1)
    rows, right = [], []
    for d in range(m):
        f, s, root, place = system.frame[d], system.star[d], np.sqrt(weight[d]), system.place[d]
        for axis, entries in enumerate(([1.0, 0.0, place.real, -place.imag], [0.0, 1.0, place.imag, place.real])):
            row = np.zeros(4 * n + 2 * k)
            row[4 * f : 4 * f + 4] = np.where(free[f], entries, 0.0)
            row[4 * n + 2 * s + axis] = -1.0
            rows.append(root * row)
            right.append(-root * (system.offset[d].imag if axis else system.offset[d].real))
    for f in range(n):
        for q in range(4):
            row = np.zeros(4 * n + 2 * k)
            row[4 * f + q] = np.sqrt(prior[f])
            rows.append(row)
            right.append(0.0)
    return np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0][: 4 * n].reshape(n, 4)


def solved(system, weight, prior):
    """What the kernel makes of these equations, as real numbers."""
    nothing = np.zeros((len(system.free), 2), dtype=complex)
    coarse = system.coarse_level(weight, prior)
    return _solve(system, coarse, weight, prior, nothing, 1e-12, lambda: None).view(float)


def test_the_gradient_is_that_of_the_weighted_squares_about_the_means_of_the_stars():
    rng = np.random.default_rng(4)
    positions = frames_of(sky(60, 1800.0), grid(2), planted=small_corrections(4, 0.3))
    star = cluster_stars(np.column_stack([positions.x, positions.y]), positions.frame, 3.0)
    system = _System.of(positions, star, held=np.array([False, True, False, False]))
    m = system.frame.size
    weight, offset = (
        rng.uniform(0.0, 3.0, m) * (rng.random(m) < 0.9),
        rng.normal(size=(2, m)).T.copy().view(complex)[:, 0],
    )
    correction = rng.normal(size=(4, 4)).view(complex)
    free = correction * system.free
    left = offset + free[system.frame, 0] + free[system.frame, 1] * system.place
    expected = np.zeros((4, 2), dtype=complex)
    for k in range(system.there.size):
        its = np.flatnonzero(system.star == k)
        if weight[its].sum() > 0.0:
            for d, away in zip(its, left[its] - np.average(left[its], weights=weight[its]), strict=True):
                expected[system.frame[d]] += weight[d] * away * np.array([1.0, np.conj(system.place[d])])
    expected[1] = 0.0
    assert np.abs(expected[0]).min() > 1.0
    gradient = system.gradient(weight, system.totals(weight), offset, correction)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-11)


def test_the_solution_is_that_of_a_dense_least_squares_with_all_unknowns():
    stars = sky(120, 2200.0)
    positions = frames_of(stars, grid(3), planted=small_corrections(9, 0.5))
    star = cluster_stars(np.column_stack([positions.x, positions.y]), positions.frame, 3.0)
    system = _System.of(positions, star)
    rng = np.random.default_rng(1)
    weight, prior = rng.uniform(1.0, 100.0, system.frame.size), rng.uniform(0.5, 2.0, 9)
    expected = dense_solution(system, weight, prior)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(solved(system, weight, prior), expected, rtol=0, atol=1e-7)


def test_frames_with_few_stars_enter_the_dense_solution_with_a_shift_only():
    stars = sky(60, 1400.0)
    positions = frames_of(stars, grid(2, step=200.0, first=700.0), planted=small_corrections(4, 0.3))
    few = np.flatnonzero(positions.frame == 2)[4:]
    positions = positions.only(~np.isin(np.arange(positions.frame.size), few))
    star = cluster_stars(np.column_stack([positions.x, positions.y]), positions.frame, 3.0)
    system = _System.of(positions, star)
    assert system.free.tolist() == [[True, True], [True, True], [True, False], [True, True]]
    weight, prior = np.full(system.frame.size, 50.0), np.ones(4)
    np.testing.assert_allclose(
        solved(system, weight, prior), dense_solution(system, weight, prior), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("size", [0.3, 1.2], ids=["small errors", "errors of a few pixels"])
def test_planted_shifts_rotations_and_scales_come_back(size):
    stars = sky(400, 2200.0)
    planted = without_common_mode(small_corrections(9, size), np.array(grid(3)), SIDE / np.sqrt(6.0))
    positions = frames_of(stars, grid(3), planted=planted, noise=0.02)
    offsets = find_offsets(positions, every_pair(9))
    found = align(positions, offsets.shift)
    recovered = without_common_mode(found.correction, positions.centre, positions.radius[0])
    assert np.abs(planted).max() > 1.5 * size
    np.testing.assert_allclose(recovered, planted, rtol=0, atol=0.02)
    assert found.rms(found.before) > 10 * found.rms(found.after)
    assert found.rms(found.after) < 0.04
    assert found.alone.all() if size > 1.0 else found.common_gain_px > 0.4 * size


def test_the_common_mode_is_pinned():
    """What all frames have in common the stars cannot tell; it must not be moved."""
    centres = np.array(grid(3))
    radius = SIDE / np.sqrt(6.0)
    positions = frames_of(sky(400, 2200.0), centres, planted=small_corrections(9, 0.1))
    found = align(positions)
    assert np.abs(found.correction).max() > 0.1
    away = (centres - centres.mean(axis=0)) / radius
    t, a, b = found.correction[:, :2], found.correction[:, 2], found.correction[:, 3]
    assert np.abs(t.mean(axis=0)).max() < 1e-5
    assert abs(np.mean(a + np.sum(t * away, axis=1))) < 1e-5
    assert abs(np.mean(b + t[:, 1] * away[:, 0] - t[:, 0] * away[:, 1])) < 1e-5


def test_errors_do_not_add_up_along_a_row_of_panels():
    """Each panel's distortion shows a scale error to its neighbours; 30 of them must not become a drift."""
    n = 30
    centres = np.array([(600.0 + 800.0 * k, 600.0) for k in range(n)])
    rng = np.random.default_rng(2)
    stars = np.column_stack([rng.uniform(0, 800.0 * n + 1200, 9000), rng.uniform(0, 1200.0, 9000)])
    positions = frames_of(stars, centres, noise=0.1)
    u = (positions.x - positions.centre[positions.frame, 0]) / (SIDE / 2)
    bent = replace(positions, x=positions.x + 0.4 * u**3)
    found = align(bent)
    assert found.rms(found.after) < 0.8 * found.rms(found.before)
    assert np.abs(found.correction).max() < 0.6


def test_the_order_of_the_frames_leaves_no_trace():
    planted = small_corrections(9, 0.4)
    positions = frames_of(sky(200, 2200.0), grid(3), planted=planted)
    turned = np.random.default_rng(5).permutation(9)
    number = np.argsort(turned)[positions.frame]
    order = np.argsort(number, kind="stable")
    parts = (positions.x[order], positions.y[order], positions.sigma[order])
    other = Positions(number[order], *parts, positions.centre[turned], positions.radius[turned])
    first, second = align(positions), align(other)
    np.testing.assert_allclose(second.correction, first.correction[turned], rtol=0, atol=1e-7)
    np.testing.assert_allclose(second.after, first.after[turned], rtol=0, atol=1e-7)
    again = align(positions)
    np.testing.assert_array_equal(again.correction, first.correction)


def test_outliers_do_not_pull_a_frame():
    stars = sky(300, 1400.0)
    clean = frames_of(stars, grid(2, step=100.0, first=700.0), planted=small_corrections(4, 0.3), noise=0.05)
    rng = np.random.default_rng(9)
    bad = rng.random(clean.frame.size) < 0.1
    spoiled = replace(clean, x=clean.x + np.where(bad, rng.uniform(0.8, 1.8, bad.size), 0.0))
    reference, found = align(clean), align(spoiled)
    assert np.abs(found.correction - reference.correction).max() < 0.02
    assert (found.weight[bad & (found.star >= 0)] == 0).mean() > 0.9
    assert found.rms(found.after) < 0.1


def test_groups_that_do_not_touch_are_pinned_each_for_itself():
    two = [*grid(2, step=300.0, first=600.0), *grid(2, step=300.0, first=5600.0)]
    stars = np.concatenate([sky(200, 1500.0), sky(200, 1500.0, seed=1) + 5000.0])
    planted = np.concatenate([small_corrections(4, 0.1), small_corrections(4, 0.1, seed=4)])
    together = align(frames_of(stars, two, planted=planted))
    alone = align(frames_of(stars, two[:4], planted=planted[:4]))
    np.testing.assert_allclose(together.correction[:4, :2].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(together.correction[4:, :2].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(together.correction[:4], alone.correction, rtol=0, atol=0.03)


def test_frames_keep_what_their_stars_allow():
    planted = small_corrections(6, 0.3)
    stars = sky(200, 1400.0)
    positions = frames_of(stars, [(700.0 + 20 * k, 700.0) for k in range(6)], planted=planted)
    rank = np.arange(positions.frame.size) - np.searchsorted(positions.frame, positions.frame)
    limits = np.array([999, 999, 999, 4, 1, 0])
    found = align(positions.only(rank < limits[positions.frame]))
    assert found.n_common[3:].tolist() == [4, 0, 0]
    assert (found.correction[:3] != 0).all()
    assert (found.correction[3, :2] != 0).all()
    assert (found.correction[3, 2:] == 0).all()
    assert (found.correction[4:] == 0).all()
    assert np.isnan(found.after[5])
    assert np.isfinite(found.correction).all()


@pytest.mark.parametrize("n_odd", [1, 4])
def test_a_frame_with_few_stars_pins_nobody(n_odd):
    """A frame that cannot be turned, or not be moved at all, must not hold the others where its stars are."""
    positions = frames_of(sky(200, 1400.0), [(700.0 + 20 * k, 700.0) for k in range(6)])
    alone = align(positions.only(positions.frame != 2))
    rank = np.arange(positions.frame.size) - np.searchsorted(positions.frame, positions.frame)
    few = positions.only((positions.frame != 2) | (rank < n_odd))
    odd = few.frame == 2
    turned = np.linspace(-1.4, 1.4, odd.sum()) if n_odd > 1 else 1.4
    few.x[odd] += turned
    found = align(few)
    others = np.arange(6) != 2
    np.testing.assert_allclose(found.correction[others], alone.correction[others], rtol=0, atol=0.02)


def test_exact_frames_gain_nothing():
    found = align(frames_of(sky(300, 2200.0), grid(3), noise=0.1))
    assert found.common_gain_px == 0.0
    assert not found.alone.any()
    assert np.abs(found.correction).max() < 0.15


def test_no_stars_at_all_are_no_problem():
    centres = np.array(grid(2))
    nothing = Positions(np.empty(0, dtype=np.int64), *np.empty((3, 0)), centres, np.full(4, 400.0))
    found = align(nothing, find_offsets(nothing, every_pair(4)).shift)
    assert (found.correction == 0).all()
    assert found.common_gain_px == 0.0
    assert not found.alone.any()
    assert np.isnan(found.rms(found.before))


# ---- frames that are far off -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("jump", [(20.0, 0.0), (-12.0, 16.0), (0.0, -38.0), (6.5, 0.0)], ids=str)
def test_one_wrong_frame_of_three_is_found_and_the_others_are_not_blamed(which, jump):
    planted = np.zeros((3, 4))
    planted[which, :2] = jump
    positions = frames_of(sky(60, 1400.0), [(700.0, 700.0), (720.0, 690.0), (710.0, 730.0)], planted=planted)
    offsets = find_offsets(positions, every_pair(3))
    assert offsets.wrong.tolist() == [k == which for k in range(3)]
    np.testing.assert_allclose(offsets.shift[which], jump, atol=0.2)
    assert offsets.witnesses[which] == 2
    assert offsets.undecided == ()


def test_a_wrong_frame_that_is_turned_a_little_is_found():
    planted = np.zeros((5, 4))
    planted[2] = 15.0, 8.0, 0.0, SIDE / np.sqrt(6.0) * np.deg2rad(0.1)
    positions = frames_of(sky(60, 1400.0), [(700.0 + 5 * k, 700.0) for k in range(5)], planted=planted)
    offsets = find_offsets(positions, every_pair(5))
    assert offsets.wrong.tolist() == [False, False, True, False, False]


def test_two_wrong_frames_of_five_are_found_whether_they_agree_or_not():
    for jumps in ([(20.0, 5.0), (20.0, 5.0)], [(20.0, 5.0), (-9.0, 14.0)]):
        planted = np.zeros((5, 4))
        planted[1, :2], planted[3, :2] = jumps
        positions = frames_of(sky(60, 1400.0), [(700.0 + 5 * k, 700.0) for k in range(5)], planted=planted)
        offsets = find_offsets(positions, every_pair(5))
        assert offsets.wrong.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("n", [2, 4])
def test_without_a_majority_nobody_is_blamed(n):
    planted = np.zeros((n, 4))
    planted[: n // 2, 0] = 20.0
    positions = frames_of(sky(60, 1400.0), [(700.0 + 5 * k, 700.0) for k in range(n)], planted=planted)
    offsets = find_offsets(positions, every_pair(n))
    assert not offsets.wrong.any()
    ((members, apart),) = offsets.undecided
    assert members.tolist() == list(range(n))
    assert apart == pytest.approx(20.0, abs=0.3)
    assert not offsets.trusted.any()


def test_frames_without_common_stars_are_not_moved_by_chance():
    """Two crowded fields that show different stars: some coincide by chance, at any offset."""
    rng = np.random.default_rng(0)
    centres = np.array([(500.0, 500.0)] * 2)
    x, y = rng.uniform(0.0, SIDE, (2, 1000))
    frame = np.repeat([0, 1], 500)
    positions = Positions(frame, x, y, np.full(1000, 0.1), centres, np.full(2, 400.0))
    offsets = find_offsets(positions, every_pair(2))
    assert (offsets.shift == 0).all()
    assert not offsets.trusted.any()


def test_the_limit_lies_between_what_is_corrected_and_what_is_left_out():
    for jump in (0.8 * MAX_CORRECTION_PX, 1.2 * MAX_CORRECTION_PX):
        planted = np.zeros((6, 4))
        planted[4, 1] = jump
        positions = frames_of(sky(60, 1400.0), [(700.0 + 5 * k, 700.0) for k in range(6)], planted=planted)
        offsets = find_offsets(positions, every_pair(6))
        assert offsets.wrong[4] == (jump > MAX_CORRECTION_PX)
        if jump < MAX_CORRECTION_PX:
            found = align(positions, offsets.shift)
            relative = found.correction[4] - found.correction[[0, 1, 2, 3, 5]].mean(axis=0)
            np.testing.assert_allclose(relative, [0.0, jump, 0.0, 0.0], atol=0.08)
            # The one that is off pulls the others no further than it must.
            assert np.abs(found.correction[[0, 1, 2, 3, 5]]).max() < 0.2


def test_the_prior_pulls_no_harder_at_frames_that_are_far_off():
    pull = _prior(np.array([[0.2, 0], [3.0, 0], [4.0j, 3.0j]])) * [0.2, 3.0, 5.0]
    assert pull == pytest.approx([0.2, 0.5, 0.5])


def test_a_displacement_is_a_similarity_about_the_centre():
    x, y = displace(np.array([10.0, 30.0]), np.array([5.0, 5.0]), (1.0, 2.0, 0.1, 0.2), (10.0, 5.0), 10.0)
    np.testing.assert_allclose(x, [11.0, 31.2])
    np.testing.assert_allclose(y, [7.0, 7.4])
