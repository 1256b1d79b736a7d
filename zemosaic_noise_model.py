"""What noise the samples of frames are expected to have, in whole numbers of steps.

The stacker takes means of it over the frames that a pixel has. All is rounded so that sums of it are exact, if the
noise of the frames does not differ too much: then their order does not matter, and a GPU can sum whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A variance is rounded to so many bits, 0.003 % of it; it is never known that well.
_NOISE_BITS = 14

#: A blur is rounded to this, in square pixels.
_BLUR_STEP = 2.0**-16

# Of sky, photons, floor and blur: 64 of them fit into the 32 bits of a GPU's sums; blurs are compared in float32.
_MOST_STEPS = 2**25, 2**25, 2**25, 2**24


@dataclass(frozen=True)
class NoiseModel:
    """What noise the normalised samples of each frame are expected to have; finite, (n, c), float64, on the host.

    Attributes
    ----------
    sky : ndarray
        Standard deviation of a sample on empty sky.
    photon : ndarray, optional
        Variance that a unit of signal adds (photon noise; the inverse gain in the samples' units); None for none.
    level : ndarray, optional
        Level of the sky, above which a sample's signal is counted.
    blur : ndarray, optional
        By how much the variance of a frame's point spread function, in square pixels of the canvas, differs from
        the usual one of the run. By the heat equation a pixel changes by half its Laplacian times that, which
        is taken off a sample before it is judged.
    """

    sky: np.ndarray
    photon: np.ndarray | None = None
    level: np.ndarray | None = None
    blur: np.ndarray | None = None

    def table(self) -> np.ndarray:
        """Return (4, n, c): variance of sky, variance per unit of signal, that times the level, blur.

        All are rounded to few bits, so that sums over frames whose noise does not differ by more than some forty
        times are exact, whatever their order. How a frame's are rounded depends on that frame alone: which other
        frames reach a part of the canvas must leave no trace.
        """
        nothing = np.zeros(self.sky.shape)
        photon, level, blur = (nothing if v is None else v for v in (self.photon, self.level, self.blur))
        sky = np.square(self.sky)
        steps = _step_of(sky), _step_of(photon), _step_of(sky), _BLUR_STEP
        quantities = sky, photon, photon * level, blur
        return np.stack([np.rint(v / step) * step for v, step in zip(quantities, steps, strict=True)])


def has_whole_steps(noise: np.ndarray) -> bool:
    """Return whether a table (4, n, c) of noise can be summed exactly over any of its frames, in any order.

    It can unless the noise differs too much: sums are int32 on a GPU, float64 on the host.
    """
    whole = [np.abs(quantity / common_step(quantity)) for quantity in noise]
    return all(numbers.max(initial=0.0) < limit for numbers, limit in zip(whole, _MOST_STEPS, strict=True))


def common_step(values: np.ndarray) -> float:
    """Return the largest power of two of which all values are multiples; 1 of zeros."""
    if not values.any():
        return 1.0
    mantissa, exponent = np.frexp(values[values != 0.0])
    whole = (mantissa * 2.0**53).astype(np.int64)
    return float(np.ldexp((whole & -whole).astype(np.float64), exponent - 53).min())


def _step_of(values: np.ndarray) -> np.ndarray:
    """Return, for each value, the power of two of which it is about 2^_NOISE_BITS."""
    return np.ldexp(1.0, np.frexp(values)[1] - _NOISE_BITS)
