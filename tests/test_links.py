"""Groups of what is tied to each other, and their members."""

import numpy as np

from zemosaic_links import linked_groups, members_of, tied_groups


def test_things_tied_through_others_are_one_group():
    group = linked_groups(np.array([[4, 1], [1, 3], [2, 5]]), 7)
    assert group[1] == group[3] == group[4]
    assert group[2] == group[5]
    assert np.unique(group).tolist() == [0, 1, 2, 3]


def test_nothing_is_tied_without_pairs():
    assert linked_groups(np.empty((0, 2), dtype=np.int64), 3).tolist() == [0, 1, 2]


def test_frames_are_tied_by_the_points_that_they_share_and_numbered_from_0_without_gaps():
    frame = np.array([0, 0, 1, 2, 3, 3, 5])
    point = np.array([0, 1, 7, 1, 7, 9, 4])
    assert tied_groups(frame, point, 6).tolist() == [0, 1, 0, 1, 2, 3]
    nothing = np.empty(0, dtype=np.int64)
    assert tied_groups(nothing, nothing, 3).tolist() == [0, 1, 2]


def test_members_come_by_group_as_they_stand_or_in_a_given_order():
    group = np.array([2, 0, 2, 1, 0])
    assert [m.tolist() for m in members_of(group)] == [[1, 4], [3], [0, 2]]
    assert [m.tolist() for m in members_of(group, np.array([4, 3, 2, 1, 0]))] == [[4, 1], [3], [2, 0]]
    assert [m.tolist() for m in members_of(group, np.array([2, 4]))] == [[4], [2]]
