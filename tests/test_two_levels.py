"""The preconditioner of two levels against dense matrices, and that it keeps the way short."""

import numpy as np
import pytest

from zemosaic_two_levels import Boxes, CoarseLevel, conjugate_gradients


def row_of_frames(n, step=0.6, seed=0):
    """Frames of width 2 in a row, `step` apart, and points: who is where, and frame and point of each sighting."""
    rng = np.random.default_rng(seed)
    centre = np.column_stack([step * np.arange(n), rng.normal(0.0, 0.05, n)])
    place = np.column_stack([rng.uniform(-1.0, step * n + 1.0, 30 * n), rng.uniform(-1.0, 1.0, 30 * n)])
    frame, point = np.nonzero(np.abs(place[None, :, 0] - centre[:, None, 0]) < 1.0)
    return centre, place, frame, point


def planes(at, centre):
    """What the coefficients of planes about centres do at places."""
    return np.column_stack([np.ones(len(at)), at - centre])


def similarities(at, centre):
    """What shift and turn about centres do at places, as complex numbers."""
    return np.column_stack([np.ones(len(at)), (at - centre) @ [1.0, 1.0j]])


def shares_of(boxes, centre, basis):
    """A frame's coefficients from those of its box: the value at its centre, and the same slopes."""
    values = basis(centre, boxes.centre[boxes.number])
    shares = np.repeat(np.eye(values.shape[1], dtype=values.dtype)[None], len(centre), axis=0)
    shares[:, 0, :] = values
    return shares


def equations(n, basis, prior, seed=0):
    """The dense normal matrix of a row of frames, points eliminated, and its coarse level."""
    centre, place, frame, point = row_of_frames(n, seed=seed)
    weight = np.random.default_rng(seed + 1).uniform(0.5, 2.0, frame.size)
    total = np.bincount(point, weight, minlength=len(place))
    design = basis(place[point], centre[frame])
    p = design.shape[1]
    whole = np.zeros((frame.size, n, p), dtype=design.dtype)
    whole[np.arange(frame.size), frame] = design
    whole = whole.reshape(frame.size, -1)
    at_point = np.zeros((len(place), n * p), dtype=design.dtype)
    np.add.at(at_point, point, weight[:, None] * whole)
    matrix = whole.conj().T @ (weight[:, None] * whole) + prior * np.eye(n * p)
    seen = total > 0
    matrix -= at_point[seen].conj().T @ (at_point[seen] / total[seen, None])
    boxes = Boxes.of(centre, np.full(n, 0.8))
    shares = shares_of(boxes, centre, basis)
    coarse = CoarseLevel(
        boxes,
        shares,
        frame,
        point,
        weight,
        total,
        lambda k, b: basis(place[k], boxes.centre[b]),
        np.full((n, p), prior),
    )
    return matrix, coarse, boxes, shares


@pytest.mark.parametrize("basis", [planes, similarities])
def test_the_equations_of_boxes_are_those_of_their_frames_together(basis):
    matrix, coarse, boxes, shares = equations(12, basis, 0.3)
    n, p, _ = shares.shape
    spread = np.zeros((n, p, len(boxes.centre), p), dtype=shares.dtype)
    for k in range(n):
        spread[k, :, boxes.number[k], :] = shares[k]
    spread = spread.reshape(n * p, -1)
    right = np.random.default_rng(3).normal(size=(n * p, 2)).astype(shares.dtype)
    expected = spread @ np.linalg.solve(spread.conj().T @ matrix @ spread, spread.conj().T @ right)
    assert 3 < len(boxes.centre) < n
    np.testing.assert_allclose(coarse(right), expected, rtol=1e-5, atol=1e-9)


def steps(n, basis, *, with_boxes):
    """Steps to a solution, which is checked."""
    matrix, coarse, _, _ = equations(n, basis, 1e-3)
    blocks = np.stack([matrix[k : k + 2, k : k + 2] for k in range(0, 2 * n, 2)])
    inverse, count = np.linalg.inv(blocks), []

    def precondition(flat):
        own = np.einsum("nij,njc->nic", inverse, flat.reshape(n, 2, -1)).reshape(flat.shape)
        return own + coarse(flat) if with_boxes else own

    right = np.random.default_rng(5).normal(size=(2 * n, 1)).astype(complex)
    small = 1e-9 * np.linalg.norm(right)
    solution, done = conjugate_gradients(
        lambda flat: matrix @ flat,
        precondition,
        right,
        np.zeros_like(right),
        lambda residual, _: np.linalg.norm(residual, axis=0) <= small,
        most=1000,
        between=lambda: count.append(1),
    )
    assert done
    np.testing.assert_allclose(matrix @ solution, right, atol=2 * small)
    return len(count)


def test_a_long_row_of_frames_takes_no_more_steps_than_a_short_one():
    short, long = (steps(n, similarities, with_boxes=True) for n in (20, 160))
    assert long < 1.3 * short
    assert 4 * long < steps(160, similarities, with_boxes=False)


def test_columns_are_solved_side_by_side_each_as_if_alone():
    rng = np.random.default_rng(6)
    root = rng.normal(size=(8, 8))
    matrix, right = root @ root.T + np.eye(8), rng.normal(size=(8, 3)) * [1.0, 1e6, 0.0]

    def solve(columns):
        goal = 1e-24 * np.square(columns).sum(axis=0)
        how = {"arrived": lambda residual, _: np.square(residual).sum(axis=0) <= goal, "most": 50}
        return conjugate_gradients(lambda v: matrix @ v, np.copy, columns, np.zeros_like(columns), **how)[0]

    np.testing.assert_allclose(solve(right), np.linalg.solve(matrix, right), rtol=1e-9)
    np.testing.assert_allclose(solve(right)[:, 1:2], solve(right[:, 1:2]), rtol=1e-12)


def test_a_solution_that_is_not_found_in_time_is_told():
    matrix, right = np.diag(np.arange(1.0, 30.0)), np.ones((29, 1))
    how = {"arrived": lambda residual, _: np.abs(residual).max(axis=0) < 1e-12, "most": 5}
    assert not conjugate_gradients(lambda v: matrix @ v, np.copy, right, np.zeros_like(right), **how)[1]


def test_what_a_group_leaves_open_stays_open():
    """Two frames tied to each other alone: a common constant costs nothing, and no step is made towards one."""
    matrix, right = np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([[2.0], [-2.0]])
    how = {"arrived": lambda residual, _: np.abs(residual).max(axis=0) < 1e-12, "most": 10}
    solution, done = conjugate_gradients(lambda v: matrix @ v, np.copy, right, np.array([[5.0], [5.0]]), **how)
    assert done
    np.testing.assert_allclose(solution, [[6.0], [4.0]])


def test_frames_of_one_pointing_share_a_box_and_those_of_other_sizes_have_their_own():
    centre = np.array([[10.0, 10.0], [10.2, 10.1], [13.0, 10.0], [10.1, 10.0]])
    boxes = Boxes.of(centre, np.array([1.0, 1.0, 1.0, 8.0]))
    assert boxes.number[0] == boxes.number[1]
    assert len(set(boxes.number.tolist())) == len(boxes.centre) == 3
    np.testing.assert_allclose(boxes.centre[boxes.number[0]], [10.1, 10.05])


def test_frames_that_see_nothing_have_boxes_too():
    boxes = Boxes.of(np.zeros((3, 2)), np.zeros(3))
    assert boxes.number.tolist() == [0, 0, 0]
    nothing = np.zeros(0, dtype=int)
    coarse = CoarseLevel(
        boxes,
        np.ones((3, 1, 1)),
        nothing,
        nothing,
        np.zeros(0),
        np.zeros(0),
        lambda k, b: np.ones((k.size, 1)),
        np.zeros((3, 1)),
    )
    assert (coarse(np.zeros((3, 1))) == 0.0).all()
