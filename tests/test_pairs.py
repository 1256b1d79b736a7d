"""Which frames are compared: enough to tie together what overlaps, at a cost that grows with the frames."""

import tracemalloc

import numpy as np
import pytest
import shapely
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from test_tiling import square
from zemosaic_pairs import partner_pairs, thin_pairs


def overlapping_pairs(placements):
    """All pairs of frames that overlap, (p, 2), sorted: there are too many of them in a crowd."""
    polygons = [shapely.Polygon(p.polygon) for p in placements]
    first, second = np.triu_indices(len(polygons), 1)
    touch = shapely.intersects(np.array(polygons)[first], np.array(polygons)[second])
    return np.column_stack([first, second])[touch]


def groups_of(pairs, n):
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[0]


@pytest.mark.parametrize("gap", [250, 290, 299])
def test_thinned_pairs_tie_panels_together_however_few_pairs_join_them(gap):
    rng = np.random.default_rng(gap)
    left = [square(*rng.normal(0, 5, 2), 300) for _ in range(120)]
    right = [square(gap + rng.normal(0, 5), rng.normal(0, 5), 300) for _ in range(120)]
    placements = left + right
    centres = np.array([np.mean(p.polygon, axis=0) for p in placements])
    pairs = overlapping_pairs(placements)
    thin = thin_pairs(pairs, centres, 12)
    assert {tuple(p) for p in thin.tolist()} <= {tuple(p) for p in pairs.tolist()}
    assert len(thin) < 13 * len(placements)
    assert groups_of(thin, 240) == groups_of(pairs, 240) == 1
    across = ((thin[:, 0] < 120) & (thin[:, 1] >= 120)).sum()
    assert across > 50


def test_few_pairs_are_all_kept():
    pairs = np.array([(0, 1), (0, 2), (1, 2), (2, 3)])
    centres = np.zeros((5, 2))
    assert thin_pairs(pairs, centres, 4).tolist() == pairs.tolist()
    assert thin_pairs(np.empty((0, 2), dtype=int), centres[:3], 4).shape == (0, 2)


def centres_of(placements):
    return np.array([np.mean(p.polygon, axis=0) for p in placements])


def panels(rng, counts, spacing, side=300, dither=8.0):
    """Return frames of panels in a row, as many as `counts` says."""
    return [
        square(spacing * panel + rng.normal(0, dither), rng.normal(0, dither), side, rng.uniform(0, 3))
        for panel, count in enumerate(counts)
        for _ in range(count)
    ]


def test_partners_of_few_frames_are_all_that_overlap():
    rng = np.random.default_rng(5)
    placements = panels(rng, [6] * 12, 200)
    assert partner_pairs(placements, 60).tolist() == overlapping_pairs(placements).tolist()
    thin = thin_pairs(overlapping_pairs(placements), centres_of(placements), 8)
    assert partner_pairs(placements, 8).tolist() == thin.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_partners_overlap_and_tie_together_what_overlaps(seed):
    rng = np.random.default_rng(seed)
    placements = [square(*rng.uniform(0, 4000, 2), rng.choice([80, 300]), rng.uniform(0, 3)) for _ in range(250)]
    placements += panels(rng, [120, 3, 80], 250)
    every = overlapping_pairs(placements)
    some = partner_pairs(placements, 12)
    assert {tuple(p) for p in some.tolist()} <= {tuple(p) for p in every.tolist()}
    assert groups_of(some, len(placements)) == groups_of(every, len(placements))
    assert len(some) < 13 * len(placements) < len(every)


@pytest.mark.parametrize("seed", range(4))
def test_two_crowded_panels_that_one_pair_joins_are_one_group(seed):
    rng = np.random.default_rng(seed)
    frames = [square(*rng.normal(0, 2, 2), 300) for _ in range(200)]
    frames += [square(400 + rng.normal(0, 2), rng.normal(0, 2), 300) for _ in range(200)]
    frames[37] = square(45, 0, 300)  # the two that lie between
    frames[291] = square(340, 0, 300)
    assert groups_of(overlapping_pairs(frames), 400) == 1
    assert groups_of(partner_pairs(frames, 12), 400) == 1


def test_every_frame_of_one_pointing_has_enough_partners_and_the_usual_one_few():
    rng = np.random.default_rng(8)
    degree = np.bincount(partner_pairs(panels(rng, [1500], 0), 24).ravel(), minlength=1500)
    assert 12 <= degree.min()
    assert np.median(degree) < 48


def test_memory_grows_with_the_frames_and_not_with_their_pairs():
    placements = panels(np.random.default_rng(9), [4000], 0)  # eight million pairs
    tracemalloc.start()
    pairs = partner_pairs(placements, 24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) < 25 * 4000
    assert peak < 100e6


def test_no_frame_and_one_frame_have_no_partners():
    assert partner_pairs([], 24).shape == partner_pairs([square(0, 0, 10)], 24).shape == (0, 2)
