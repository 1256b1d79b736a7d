"""Normal equations of all frames at once: conjugate gradients, and what makes them few.

Alignment, flat and match ask the same: some coefficients of every frame, where frames that see a common point are
tied to each other and the points are eliminated. Neighbours soon agree; what conjugate gradients (M. R. Hestenes,
E. Stiefel, J. Res. NBS 49, 409, 1952) find slowly is a bend over many frames. So the frames whose centres share a
box of about their size are taken for one frame too. The equations of the boxes are few and sparse, and are solved
directly; what they say is handed to the frames, whose own blocks say the rest (a two-level method by aggregation:
B. Smith, P. Bjorstad, W. Gropp, Domain Decomposition, 1996). Steps do not grow with the mosaic, and no matrix of
frames is formed. What preconditions decides how long the way is, not where it ends, so it need not be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import bsr_array, coo_array, diags_array, eye_array
from scipy.sparse.linalg import splu

# A box is so many root mean square radii of its frames: 0.7 short sides of one of 16 x 9.
_BOX_RADII = 1.2
# Share of the largest entry that is added to all: equations may leave something open, such as a common constant.
_FLOOR = 1e-9


@dataclass(frozen=True)
class Boxes:
    """Which of n frames share a box of the canvas.

    Attributes
    ----------
    number : ndarray, shape (n,), int64
        The box of each frame, from 0.
    centre : ndarray, shape (b, 2), float64
        The mean of its frames' centres.
    """

    number: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, centre: np.ndarray, radius: np.ndarray) -> Boxes:
        """Put frames of about one size into boxes of that size.

        Parameters
        ----------
        centre : ndarray, shape (n, 2)
        radius : ndarray, shape (n,)
            Root mean square distance of what a frame sees from its centre.
        """
        size = np.rint(np.log2(np.maximum(radius, np.finfo(float).tiny)))
        size = np.unique(size, return_inverse=True)[1]
        side = _BOX_RADII * (np.bincount(size, radius) / np.bincount(size))[size]
        place = np.floor(centre / np.where(side > 0.0, side, 1.0)[:, None])
        number = np.unique(np.column_stack([size, place]), axis=0, return_inverse=True)[1].ravel()
        sums = [np.bincount(number, centre[:, axis]) for axis in range(2)]
        return cls(number, np.column_stack(sums) / np.bincount(number)[:, None])


class CoarseLevel:
    """The equations of boxes, each of which stands for its frames.

    Parameters
    ----------
    boxes : Boxes
    shares : ndarray, shape (n, p, p), float64 or complex128
        Takes the p coefficients of a frame's box to those of the frame.
    frame, point : ndarray, shape (m,), int
        Which frame saw which point.
    weight : ndarray, shape (m,), float64
        0 for what shall not count for the frame's box.
    total : ndarray, shape (k,), float64
        Sums of all weights at the points.
    basis : callable
        Returns, for e points and boxes, what the coefficients of the box do to the value at the point, (e, p).
    prior : ndarray, shape (n, p), float64
        Weights that hold a frame's coefficients at 0.
    """

    def __init__(
        self,
        boxes: Boxes,
        shares: np.ndarray,
        frame: np.ndarray,
        point: np.ndarray,
        weight: np.ndarray,
        total: np.ndarray,
        basis: Callable[[np.ndarray, np.ndarray], np.ndarray],
        prior: np.ndarray,
    ) -> None:
        (n, p, _), b = shares.shape, len(boxes.centre)
        of_frames = bsr_array((shares, boxes.number, np.arange(n + 1)), shape=(n * p, b * p)).tocsr()
        self._to_frames, self._to_boxes = of_frames, of_frames.conj().T.tocsr()
        seen = coo_array((weight, (point, boxes.number[frame])), shape=(total.size, b)).tocsr()
        at = np.repeat(np.arange(total.size), np.diff(seen.indptr))
        columns = np.sqrt(seen.data)[:, None, None] * basis(at, seen.indices)[:, None, :]
        share = np.sqrt(np.divide(seen.data, total[at], out=np.zeros(at.size), where=total[at] > 0.0))
        alone = bsr_array((columns, seen.indices, np.arange(at.size + 1)), shape=(at.size, b * p))
        shared = bsr_array((share[:, None, None] * columns, seen.indices, seen.indptr), shape=(total.size, b * p))
        matrix = alone.conj().T @ alone + self._to_boxes @ diags_array(prior.ravel()) @ self._to_frames
        # Of boxes that are seen with no other nothing may be left, so the size of an entry is judged before that.
        floor = _FLOOR * max(float(matrix.diagonal().real.max(initial=0.0)), 1e-290)
        matrix = matrix - shared.conj().T @ shared + floor * eye_array(b * p)
        # Definite as they are, they need no pivots, which would fill the factors.
        how = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
        self._factors = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", **how)

    def __call__(self, right: np.ndarray) -> np.ndarray:
        """Return what the boxes say of the coefficients, (n * p, c), to right sides (n * p, c)."""
        return self._to_frames @ self._factors.solve(self._to_boxes @ right)


def conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    guess: np.ndarray,
    arrived: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    most: int,
    between: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, bool]:
    """Solve Hermitian, semi-definite equations for each column of a right side, side by side.

    Parameters
    ----------
    product, precondition : callable
        Return the matrix and about its inverse times columns (s, c).
    right, guess : ndarray, shape (s, c), float64 or complex128
    arrived : callable
        Returns which columns, (c,), are good enough, by what is left of the right side, (s, c), and by its squares
        as `precondition` measures them, (c,).
    most : int
        Steps at most.
    between : callable
        Called before each step.

    Returns
    -------
    solution : ndarray, shape (s, c)
    done : bool
        Whether all columns have arrived.
    """
    solution = guess
    residual = right - product(guess)
    direction, norm = np.zeros_like(residual), np.zeros(right.shape[1])
    going = np.ones(right.shape[1], dtype=bool)
    for _ in range(most):
        ready = precondition(residual)
        before, norm = norm, _inner(residual, ready)
        going &= ~arrived(residual, norm) & (norm > 0.0)
        if not going.any():
            return solution, True
        between()
        direction = ready + np.where(before > 0.0, norm / np.where(before > 0.0, before, 1.0), 0.0) * direction
        image = product(direction)
        bend = _inner(direction, image)
        going &= bend > 0.0
        step = np.where(going, norm / np.where(going, bend, 1.0), 0.0)
        solution = solution + step * direction
        residual = residual - step * image
    return solution, False


def without_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return values (n, c) less their means in each group (n,).

    Where a constant of a group costs nothing, rounding alone makes one in a right side, and a preconditioner must
    not divide that by nothing.
    """
    count = np.bincount(group)
    means = np.column_stack([np.bincount(group, column) / count for column in values.T])
    return values - means[group]


def _inner(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the inner products of columns, real as they are of what is positive."""
    return np.einsum("sc,sc->c", one.conj(), other).real
