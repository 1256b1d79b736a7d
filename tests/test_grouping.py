"""Who belongs together: panels, chains, kinds and orientations, anywhere on the sky."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from references import linked_groups
from zemosaic_grouping import (
    GroupRules,
    group_pointings,
    position_angle_deg,
    spanning_tree,
    threshold_for,
)
from zemosaic_sphere import mean_place, unit_vectors

SHORT, LONG = 0.7125, 1.2667  # degrees: 1080 x 1920 px of 2.375"
HALF = GroupRules(SHORT / 2, SHORT / 2)


def group(centre, rules=HALF, *, angle=None, kinds=None):
    n = len(centre)
    angle = np.zeros(n) if angle is None else np.asarray(angle, dtype=float)
    return group_pointings(np.asarray(centre, dtype=float), angle, kinds or [()] * n, rules)


def offsets_to_sky(offsets, place):
    """Degrees east and north of a place, moved there with the sphere."""
    ra, dec = place
    turn = Rotation.from_euler("yz", [-dec, ra], degrees=True)
    return spherical(turn.apply(unit_vectors(offsets)))


def spherical(points):
    x, y, z = points.T
    return np.column_stack([np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arctan2(z, np.hypot(x, y)))])


def panels(rng, rows=2, columns=3, *, overlap=0.08, each=25, dither=0.06):
    """Offsets of dithered frames, shuffled, and the panel of each."""
    step = (1 - overlap) * np.array([LONG, SHORT])
    panel = rng.permutation(np.repeat(np.arange(rows * columns), each))
    corner = np.column_stack([panel % columns, panel // columns]) * step
    return corner - corner.mean(axis=0) + rng.uniform(-dither, dither, (panel.size, 2)), panel


def same_partition(first, second):
    pairs = set(zip(list(first), list(second), strict=True))
    return len(pairs) == len(set(first)) == len(set(second))


def numbered_by_first_frame(number):
    firsts = [list(number).index(g) for g in range(max(number) + 1)]
    return firsts == sorted(firsts)


PLACES = {
    "equator": (150.0, 0.0),
    "right ascension 0": (0.0, 41.0),
    "north pole": (77.0, 90.0),
    "beside the pole": (200.0, -89.5),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("layout", [(2, 3), (1, 1), (4, 1), (5, 5)])
def test_dithered_panels_are_found_wherever_they_lie(place, layout):
    offsets, panel = panels(np.random.default_rng(3), *layout)
    found = group(offsets_to_sky(offsets, place))
    assert same_partition(found.number, panel)
    assert numbered_by_first_frame(found.number)
    assert not found.cut.any()
    assert not found.turned.any()
    assert found.n_linked == layout[0] * layout[1]


def test_centre_and_radius_of_a_group_are_those_of_its_frames():
    offsets, _ = panels(np.random.default_rng(4))
    centre = offsets_to_sky(offsets, (359.9, 89.0))
    found = group(centre)
    points = unit_vectors(centre)
    for g in range(6):
        members = points[found.number == g]
        mean = unit_vectors(found.centre_deg[g][None])[0]
        np.testing.assert_allclose(mean, members.mean(axis=0) / np.linalg.norm(members.mean(axis=0)), atol=1e-14)
        away = np.rad2deg(np.arctan2(np.linalg.norm(np.cross(members, mean), axis=1), members @ mean))
        assert found.radius_deg[g] == pytest.approx(away.max(), abs=1e-9)
        assert mean_place(centre[found.number == g]) == pytest.approx(tuple(found.centre_deg[g]), abs=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_friends_of_friends_are_those_of_all_against_all(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 120))
    scale = 10.0 ** rng.uniform(-2, 2)
    points = rng.normal(size=3) + rng.normal(scale=np.deg2rad(scale), size=(n, 3))
    points = np.concatenate([points, points[rng.integers(0, n, n // 3)]])  # some frames twice
    centre = spherical(points)
    kinds = [(str(k),) for k in rng.integers(0, rng.integers(1, 4), len(centre))]
    threshold = scale * 10.0 ** rng.uniform(-1.5, 0.5)
    found = group(centre, GroupRules(threshold), kinds=kinds)
    assert same_partition(found.number, linked_groups(unit_vectors(centre), threshold, kinds))
    assert numbered_by_first_frame(found.number)


@pytest.mark.parametrize("seed", range(25))
def test_the_spanning_tree_is_as_short_as_prims(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 150))
    points = rng.normal(size=(n, 3))
    if seed % 3 == 0:  # dense heaps far from each other, so that nearest neighbours show no stranger
        points = 0.01 * points + 10 * rng.integers(0, 3, (n, 1))
    if seed % 3 == 1:  # a lattice: all distances occur many times
        points = rng.integers(0, 4, (n, 3)).astype(float)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    nearest, expected = distance[0].copy(), []
    inside = np.arange(n) == 0
    for _ in range(n - 1):
        chosen = np.where(inside, np.inf, nearest).argmin()
        expected.append(nearest[chosen])
        inside[chosen] = True
        nearest = np.minimum(nearest, distance[chosen])
    tree = spanning_tree(points)
    np.testing.assert_allclose(np.sort(distance[tree[:, 0], tree[:, 1]]), np.sort(expected), atol=1e-12)
    assert len(set(map(tuple, tree.tolist()))) == n - 1


def test_twenty_thousand_frames_of_one_pointing_are_one_group():
    rng = np.random.default_rng(5)
    centre = offsets_to_sky(rng.normal(scale=0.02, size=(20_000, 2)), (10, 41))
    found = group(centre)
    assert found.number.max() == 0
    assert group(np.repeat(centre[:1], 20_000, axis=0)).radius_deg.tolist() == pytest.approx([0], abs=1e-6)


def test_twenty_thousand_frames_of_six_panels_are_six_groups():
    offsets, panel = panels(np.random.default_rng(6), each=3334)
    found = group(offsets_to_sky(offsets, (0, 60)))
    assert same_partition(found.number, panel)


def test_memory_grows_with_the_frames_and_not_with_their_pairs():
    import tracemalloc

    offsets, _ = panels(np.random.default_rng(7), 1, 1, each=20_000)
    tracemalloc.start()
    group(offsets_to_sky(offsets, (10, 41)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 2_000  # all pairs would take 400 million entries


# ---- chains ---------------------------------------------------------------------------------------------


def test_a_chain_of_frames_that_walks_over_the_sky_is_cut():
    walk = np.column_stack([np.linspace(0, 5, 400), np.linspace(0, 1, 400)])
    found = group(offsets_to_sky(walk, (358, 30)))
    assert found.n_linked == 1
    assert found.cut.all()
    assert found.radius_deg.max() <= SHORT / 2
    assert found.radius_deg.size <= 16  # at least half as long as allowed, 8 pieces of 0.71 deg would do
    steps = np.abs(np.diff(found.number))
    assert np.count_nonzero(steps) == found.radius_deg.size - 1  # each piece is one stretch of the walk


def test_a_chain_whose_steps_grow_is_cut_in_its_middle_and_not_peeled_from_its_end():
    walk = np.column_stack([np.cumsum(np.linspace(0.01, 0.1, 100)), np.zeros(100)])  # 5.5 deg long
    found = group(offsets_to_sky(walk, (10, 5)))
    assert found.radius_deg.size <= 16
    assert np.bincount(found.number).min() >= 3


def test_panels_that_a_chain_links_are_cut_between_them():
    offsets, panel = panels(np.random.default_rng(8), 1, 2, overlap=0.6, dither=0.02)
    found = group(offsets_to_sky(offsets, (10, 5)), GroupRules(0.6, 0.2))
    assert found.n_linked == 1
    assert same_partition(found.number, panel)


@pytest.mark.parametrize("seed", range(15))
def test_cut_groups_fit_their_circle_and_only_wide_ones_are_cut(seed):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum(rng.normal(scale=0.08, size=(300, 2)), axis=0)
    centre = offsets_to_sky(offsets, tuple(rng.uniform([0, -90], [360, 90])))
    rules = GroupRules(0.1, float(rng.uniform(0.15, 0.6)))
    found, linked = group(centre, rules), group(centre, GroupRules(0.1))
    assert found.radius_deg.max() <= rules.radius_deg
    for g in range(found.radius_deg.size):
        whole = set(linked.number[found.number == g].tolist())
        assert len(whole) == 1
        assert found.cut[g] == (linked.radius_deg[whole.pop()] > rules.radius_deg)


def test_frames_that_only_rounding_tells_apart_are_never_cut_however_small_the_limits():
    centre = [(10 + k * 1e-14, 41) for k in range(0, 40, 3)]
    rules = GroupRules(1.0, 1e-300, orientation_split_deg=1e-300)
    found = group(centre, rules, angle=90 + 1e-14 * np.arange(len(centre)))
    assert found.number.max() == 0


# ---- invariance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_the_frames_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    centre = offsets_to_sky(np.cumsum(rng.normal(scale=0.1, size=(200, 2)), axis=0), (0, 88))
    angle = rng.uniform(0, 360, 200)
    kinds = [(f"filter {k}",) for k in rng.integers(0, 2, 200)]
    rules = GroupRules(0.12, 0.4, orientation_split_deg=40)
    first, order = group(centre, rules, angle=angle, kinds=kinds), rng.permutation(200)
    other = group(centre[order], rules, angle=angle[order], kinds=[kinds[k] for k in order])
    assert same_partition(first.number[order], other.number)
    for name in ("centre_deg", "radius_deg", "angle_deg", "cut", "turned"):
        ours, theirs = getattr(first, name)[first.number[order]], getattr(other, name)[other.number]
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(10))
def test_turning_the_sphere_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    centre = offsets_to_sky(np.cumsum(rng.normal(scale=0.1, size=(200, 2)), axis=0), (120, 20))
    angle = rng.uniform(0, 360, 200)
    ahead = spherical(unit_vectors(centre) + 1e-4 * direction(centre, angle))
    turn = Rotation.random(rng=seed) if seed else Rotation.from_euler("yz", [-70, 240], degrees=True)
    there, ahead = (spherical(turn.apply(unit_vectors(places))) for places in (centre, ahead))
    rules = GroupRules(0.12, 0.4, orientation_split_deg=40)
    first = group(centre, rules, angle=angle)
    other = group(there, rules, angle=position_angle_deg(there, ahead))
    assert len(first.centre_deg) > 20
    np.testing.assert_array_equal(first.number, other.number)
    np.testing.assert_allclose(first.radius_deg, other.radius_deg, atol=1e-9)


def direction(centre, angle):
    lon, lat = np.deg2rad(centre).T
    north = np.column_stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    east = np.column_stack([-np.sin(lon), np.cos(lon), 0 * lon])
    angle = np.deg2rad(angle)[:, None]
    return np.cos(angle) * north + np.sin(angle) * east


def test_the_position_angle_runs_from_north_through_east():
    start = np.array([[10.0, 40.0]] * 4)
    end = start + np.array([[0, 1], [1, 0], [0, -1], [-1, 0]]) * 1e-3
    off = position_angle_deg(start, end) - [0, 90, 180, 270]
    np.testing.assert_allclose((off + 180) % 360 - 180, 0, atol=1e-3)


# ---- a number of groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_target_is_met_exactly_where_all_distances_differ(seed):
    rng = np.random.default_rng(seed)
    centre = rng.uniform([0, -60], [360, 60], (40, 2))
    for target in (1, 2, 7, 39, 40):
        found = group(centre, GroupRules(0.1, 0.1, target=target))
        assert len(found.centre_deg) == found.n_linked == target
        at_threshold = group(centre, GroupRules(found.threshold_deg))
        np.testing.assert_array_equal(at_threshold.number, found.number)


def test_the_target_finds_the_panels_and_their_rows():
    offsets, panel = panels(np.random.default_rng(9))
    centre = offsets_to_sky(offsets, (0, 10))
    assert same_partition(group(centre, GroupRules(0, target=6)).number, panel)
    # Panels of one column lie nearer to each other than columns do.
    assert same_partition(group(centre, GroupRules(0, target=3)).number, panel % 3)


def test_a_target_out_of_reach_gives_the_nearest_number():
    centre = [(10, 0), (11, 0), (12, 0), (13, 0), (20, 0), (20, 0)]  # steps of 1, 1, 1 and 7 deg
    expected = {1: 1, 2: 2, 3: 2, 4: 5, 5: 5, 6: 5, 100: 5}
    for target, n in expected.items():
        assert group(centre, GroupRules(0, target=target)).n_linked == n
    kinds = [("L",), ("R",)] * 3
    assert group(centre, GroupRules(0, target=1), kinds=kinds).n_linked == 2


def test_of_two_numbers_equally_near_the_target_takes_the_larger():
    lengths = np.array([1.0, 1.0, 3.0])  # 4, 2 or 1 groups
    assert threshold_for(lengths, 4, 3) == pytest.approx(0.5)
    assert threshold_for(lengths, 4, 2) == pytest.approx(2.0)
    assert threshold_for(lengths, 4, 1) > 3.0
    assert threshold_for(np.array([]), 1, 5) > 0


def test_a_larger_threshold_never_leaves_more_groups():
    rng = np.random.default_rng(10)
    centre = rng.uniform(0, 30, (150, 2))
    counts = [group(centre, GroupRules(t)).n_linked for t in np.geomspace(0.01, 40, 60)]
    assert counts[0] == 150
    assert counts[-1] == 1
    assert all(first >= second for first, second in itertools.pairwise(counts))


# ---- orientation and kinds ------------------------------------------------------------------------------


def turned(angles, split, place=(10, 41)):
    rng = np.random.default_rng(11)
    centre = offsets_to_sky(rng.uniform(-0.02, 0.02, (len(angles), 2)), place)
    return group(centre, GroupRules(0.3, 0.3, orientation_split_deg=split), angle=angles)


@pytest.mark.parametrize(
    ("angles", "split", "expected"),
    [
        ([0, 2, 70, 71], 5, [0, 0, 1, 1]),
        ([359, 1, 358, 2], 5, [0, 0, 0, 0]),
        ([179, 1, 178, 2], 5, [0, 0, 0, 0]),
        ([10, 190, 11, 191], 5, [0, 0, 0, 0]),  # half a turn covers the same field
        ([-178.7, 1.3, 70, -110], 5, [0, 0, 1, 1]),
        ([0, 90], 89, [0, 1]),
        ([0, 90], 90.5, [0, 0]),
        ([0, 45, 55, 46, 54, 100], 20, [0, 1, 1, 1, 1, 2]),
        ([720.5, 0, -360.5], 2, [0, 0, 0]),
        ([33], 1, [0]),
    ],
)
def test_orientations_are_split_on_a_circle_of_half_a_turn(angles, split, expected):
    found = turned(angles, split)
    assert found.number.tolist() == expected
    assert found.n_linked == 1
    assert found.turned.all() == (max(expected) > 0)


def test_without_a_split_any_orientations_stay_together():
    found = turned([0, 45, 90, 135], 0)
    assert found.number.tolist() == [0, 0, 0, 0]
    assert np.isnan(found.angle_deg).all()


@pytest.mark.parametrize("seed", range(20))
def test_no_two_frames_of_a_group_are_turned_by_more_than_the_split(seed):
    rng = np.random.default_rng(seed)
    angles = np.concatenate([rng.uniform(0, 360, 40), rng.normal(rng.uniform(0, 360), 3, 40)])
    split = float(rng.uniform(2, 60))
    found = turned(angles, split, place=(10, 0))
    for g in range(len(found.centre_deg)):
        members = angles[found.number == g]
        if members.size > 1:
            apart = pdist(members[:, None] % 180)
            assert np.minimum(apart, 180 - apart).max() <= split + 1e-3  # positions differ by arcminutes
        off = np.abs((members - found.angle_deg[g] + 90) % 180 - 90)
        assert off.max() <= split / 2 + 1e-3


def test_at_the_pole_a_common_orientation_stays_one_although_north_differs():
    centre = np.array([(ra, 89.9) for ra in range(0, 360, 30)], dtype=float)
    # All frames point the same way in the plane of the pole, so their angle from north runs with right ascension.
    found = group(centre, GroupRules(0.3, 0.3, orientation_split_deg=5), angle=25.0 + centre[:, 0])
    assert found.number.max() == 0
    found = group(centre, GroupRules(0.3, 0.3, orientation_split_deg=5), angle=np.full(12, 25.0))
    assert found.number.max() > 2


def test_in_a_wide_group_angles_are_carried_along_great_circles():
    # Along a great circle, here the equator turned, the angle to the way is kept.
    along = np.column_stack([np.linspace(0, 60, 13), np.zeros(13)])
    turn = Rotation.from_euler("zx", [50, 70], degrees=True)
    ahead = spherical(unit_vectors(along) + 1e-4 * direction(along, np.full(13, 35.0)))
    centre, ahead = (spherical(turn.apply(unit_vectors(places))) for places in (along, ahead))
    angle = position_angle_deg(centre, ahead)
    assert np.ptp(angle) > 20
    found = group(centre, GroupRules(0, target=1, orientation_split_deg=0.1), angle=angle)
    assert found.number.max() == 0


def test_kinds_are_kept_apart_although_they_share_a_pointing():
    offsets, panel = panels(np.random.default_rng(12))
    rng = np.random.default_rng(13)
    filters = rng.choice(["L", "Ha"], panel.size)
    found = group(offsets_to_sky(offsets, (0, 0)), kinds=[(str(name), "camera") for name in filters])
    assert same_partition(found.number, [f"{a}{b}" for a, b in zip(panel, filters, strict=True)])


# ---- what cannot be grouped -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("centre", "angle", "kinds", "rules"),
    [
        ([], [], [], HALF),
        ([(0, 0)], [0, 1], [()], HALF),
        ([(0, 0)], [0], [(), ()], HALF),
        ([(0, np.nan)], [0], [()], HALF),
        ([(0, 0)], [np.inf], [()], HALF),
        ([(0, 0)], [0], [()], GroupRules(-1)),
        ([(0, 0)], [0], [()], GroupRules(1, 0)),
        ([(0, 0)], [0], [()], GroupRules(1, target=-2)),
        ([(0, 0)], [0], [()], GroupRules(1, orientation_split_deg=-5)),
        ([(0, 0)], [0], [()], GroupRules(float("nan"))),
    ],
)
def test_what_makes_no_sense_is_refused(centre, angle, kinds, rules):
    with pytest.raises(ValueError, match=r"kinds, but|not finite|out of range"):
        group_pointings(np.array(centre, dtype=float), np.array(angle, dtype=float), kinds, rules)
