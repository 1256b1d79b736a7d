"""What the main process of a run loads while its workers measure: the compiled loops of refine, flat and match.

It has nothing else to do then, and numba takes a while to load its first loop.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numba.core.errors import NumbaError

import zemosaic_alignment_kernels as alignment
import zemosaic_overlap_kernels as overlap
from zemosaic_detection_kernels import identify


def load_loops() -> None:
    """Call the loops on nothing, with the types of a run."""
    # A loop that cannot be loaded gives its reason to who needs it.
    with suppress(OSError, RuntimeError, NumbaError):
        _load_loops()


def _load_loops() -> None:
    numbers, start = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    one, two, shifts = np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=complex)
    identify(two, start, 0, 1.0, numbers)
    alignment.pair_offsets(np.zeros((0, 2), dtype=np.int64), start, one, one, 1.0, np.zeros((0, 4)))
    pairs = np.zeros((0, 2), dtype=complex)
    alignment.gradient(start, numbers, shifts, one, one, shifts, pairs, shifts, pairs)
    where = start, numbers, two, two
    overlap.point_sums(start, numbers, one, one, 0)
    overlap.modelled(*where, two, one)
    overlap.residuals(numbers, one, one, one, one, one, 1.0, one, one)
    overlap.frame_sums(*where, one, one, two)
    overlap.own_blocks(*where, one, one, np.zeros((0, 2, 2)))
    overlap.normal_product(*where, one, one, two, one, two)
