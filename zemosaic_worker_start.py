"""What the server of the workers imports before it forks them, so that no worker has to load it again.

These are the modules of a run and the compiled loops that nearly every run needs. numba would otherwise load them,
from its cache or by compiling, in every worker at the first call. Nothing here starts a thread: a process that has
one cannot be forked safely.
"""

from __future__ import annotations

import gc
from contextlib import suppress

import numpy as np
from numba.core.errors import NumbaError

import classic_mode  # noqa: F401 - loaded for the workers
import grid_mode  # noqa: F401 - loaded for the workers
from zemosaic_noise_model import NoiseModel
from zemosaic_preprocess import (
    ISOLATED_SIGMA,
    bayer_colours,
    binned,
    demosaic,
    half_planes,
    replace_isolated,
)
from zemosaic_registration import ring_sums
from zemosaic_reproject import Lattice, resample
from zemosaic_stack_core import stack
from zemosaic_types import Rect, StackParams


def load_loops() -> None:
    """Call the compiled loops of a run with the default methods on a few pixels, with the types of a run."""
    one, whole = np.ones(3), Rect(0, 8, 0, 8)
    raw = np.zeros(whole.shape, dtype=np.float32)
    binned(raw[None])
    half_planes(raw, "GRBG")
    ring_sums(raw, raw > 0, one, one, (1.0, 2.0), 1.0)
    colours = bayer_colours("GRBG")
    planes = demosaic(replace_isolated(raw, colours, one, one, ISOLATED_SIGMA), colours)
    nodes = np.stack(np.meshgrid(np.arange(0.0, 33.0, 16.0), np.arange(0.0, 33.0, 16.0)))
    samples = resample(planes, whole, whole.shape, Lattice(nodes, 0, 0, 16), whole)[None]
    stack(samples, one[None], NoiseModel(*(one[None] for _ in range(4))), StackParams())


with suppress(OSError, RuntimeError, NumbaError):  # a loop that cannot be loaded gives its reason to who needs it
    load_loops()
gc.freeze()  # what is loaded stays: a worker whose collector looked through it would copy its pages
