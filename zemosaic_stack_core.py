"""The stacker: normalise, reject, combine.

Arrays in, arrays out. `stack` takes the samples that all frames give to a rectangle of pixels and returns one
value a pixel. The work is cut in two: a rejection names the bounds between which a pixel's samples survive, a
combination turns the survivors into one value; every rejection goes with every combination.

`stack_arrays` says what is computed, in plain array operations of the namespace that its arrays come from: numpy,
or CuPy on a device. For numpy arrays `stack` takes the compiled loops of `zemosaic_stack_kernels` instead, on a
device that it is given the kernels of `zemosaic_stack_cuda`, which do the same arithmetic; the tests hold all to
identical rejections.

Rejections
----------
``none``
    Every sample survives.
``kappa_sigma``
    Clip about the median at ``kappa_low`` and ``kappa_high`` standard deviations. With ``spread="sample"``, the
    textbook form, the deviation is that of the survivors, iterated. It cannot reject anything among n <= 10
    samples, where no deviation exceeds (n - 1) / sqrt(n), and a bad sample in twenty widens it enough to hide
    faint ones. With ``spread="noise_model"`` there is one clip, and the variance is the mean one of the frames
    that cover the pixel: of their sky's noise and of the photon noise of what the median shows above their sky,
    plus a term for steep places (misalignment). What a frame's seeing makes of curved places is foreseen.
    With ``spread="auto"`` the pixel's robust variance (scaled median absolute
    deviation, less its own standard error) takes the place of the expected one where it is larger.
``winsorized_sigma_clip``
    Huber-winsorised spread iterated to convergence (1.5 sigma, factor 1.134), then a clip of the original
    samples about their median, repeated; the form used by PixInsight and Siril. The winsor limits give the
    first winsorisation.
``linear_fit_clip``
    A line through the sorted samples; samples at either end that lie further from it than kappa times the mean
    absolute residual go, repeated.

Under three samples nothing is rejected. Rejected samples are removed, never put back.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import zemosaic_stack_kernels as kernels
from zemosaic_backend import Device, namespace_of, to_host
from zemosaic_noise_model import NoiseModel, has_whole_steps
from zemosaic_stack_arrays import combine_arrays, model_bounds, sample_bounds
from zemosaic_stack_cuda import can_stack, stack_on_cuda
from zemosaic_types import MAD_TO_SIGMA, StackParams

#: Share of the step to the neighbouring pixel that enters the spread: what a residual misalignment of so many
#: pixels does on the flank of a star.
STEEPNESS_SHARE = 0.2

#: Share of what the frames' differences in blur make of a pixel that is not foreseen.
BLUR_SHARE = 0.35

#: The noise of the medians themselves makes steps and curvatures of up to so many of their sigmas. The variance of
#: a median is pi / 2 n of a sample's, of a difference of two pi / n, of half a Laplacian 5 pi / 2 n.
_SLOPE_SIGMAS = 2.5

#: Relative standard error of the median absolute deviation of n normal samples, times sqrt n.
MAD_ERROR = 1.17

#: Rows and columns around the wanted pixels that the rejection looks at.
HALO_PX = 1

#: Finite-sample factors that make the scaled MAD of n normal samples unbiased, n = 0..9; n / (n - 0.8) above.
#: Source: C. Croux, P. J. Rousseeuw, "Time-efficient algorithms for two highly robust estimators of scale",
#: COMPSTAT 1992.
_MAD_FACTORS = (1.0, 1.0, 1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107)

_SAMPLE_METHODS = {
    "kappa_sigma": kernels.KAPPA,
    "winsorized_sigma_clip": kernels.WINSORIZED,
    "linear_fit_clip": kernels.LINEAR_FIT,
}
_SPREADS = ("auto", "sample", "noise_model")


@dataclass(frozen=True)
class StackResult:
    """A stacked rectangle of c channels; the arrays are where the samples were, on the host or a device.

    Attributes
    ----------
    image : ndarray, shape (c, ny, nx), float32
        NaN where no sample survives.
    weight : ndarray, shape (c, ny, nx), float32
        Sum of the weights of the survivors, 0 without any.
    coverage, rejected_low, rejected_high : ndarray, shape (c, ny, nx), int32
        Number of samples that survive, or are removed on either side.
    tally : ndarray, shape (n, 3), int64
        Samples of each frame that survive, are too low, are too high, over the rectangle and all channels.
    """

    image: Any
    weight: Any
    coverage: Any
    rejected_low: Any
    rejected_high: Any
    tally: Any


def normalise(data: Any, gain: np.ndarray, rows: Any, columns: Any) -> None:
    """Turn the samples of a frame into ``gain * value + rows[y] + columns[x]``, in place.

    Parameters
    ----------
    data : array of any namespace, shape (c, ny, nx), float32
    gain : ndarray, shape (c,)
    rows : array of the same namespace, shape (c, ny), float32
        Offset and the part of the gradient that changes along y.
    columns : array of the same namespace, shape (c, nx), float32, or None
        The part that changes along x; None without one.
    """
    for c in range(gain.size):
        samples = data[c]
        samples *= np.float32(gain[c])
        samples += rows[c][:, None]
        if columns is not None:
            samples += columns[c][None, :]


def radial_weight(
    radius: np.ndarray, *, feather: float = 0.8, power: float = 2.0, floor: float = 0.05
) -> np.ndarray:
    """Return ``cos(pi/2 * clip(radius / feather, 0, 1)) ** power``, at least `floor`.

    Parameters
    ----------
    radius : ndarray
        Distance from the frame's centre over half its diagonal.
    """
    shape = np.cos(0.5 * np.pi * np.clip(radius / feather, 0.0, 1.0)) ** power
    return np.maximum(shape, floor)


def stack(
    data: Any,
    weight: np.ndarray,
    noise: NoiseModel,
    params: StackParams,
    *,
    pixel_weight: Any = None,
    halo: tuple[int, int, int, int] = (0, 0, 0, 0),
    threads: int = 1,
    device: Device | None = None,
) -> StackResult:
    """Reject and combine the normalised samples of a rectangle.

    Parameters
    ----------
    data : array of any namespace, shape (n, c, ny, nx), float32
        Samples in frame order; NaN = no data, infinities are not allowed. Not altered.
    weight : ndarray, shape (n, c), float64, on the host
        Relative weight of each frame, positive.
    noise : NoiseModel
    params : StackParams
    pixel_weight : array of the namespace of `data`, shape (n, ny, nx), float32, optional
        Further weight a pixel; a sample of weight 0 is no data.
    halo : tuple of int
        Rows below, rows above, columns before and columns after the wanted pixels, present in `data` so that
        the steepness of the border is known; they are not in the result.
    threads : int
        Threads of the compiled loops; they leave no trace in the result.
    device : Device, optional
        The GPU that `data` is on, to be stacked by its kernels; without it, for a median, for very many frames and
        for frames of very different noise array operations do it.

    Returns
    -------
    StackResult

    Raises
    ------
    ValueError
        If a method is unknown or shapes disagree.
    one of ``device.errors``
        If the GPU fails.
    """
    _check(data, weight, noise, params)
    if not isinstance(data, np.ndarray):
        if device is not None and params.combine == "mean" and can_stack(data.shape, halo):
            data, pixel_weight = _with_weight(data, pixel_weight)
            given = _given(data, weight, noise, params)
            if given[2] != kernels.MODELLED or has_whole_steps(given[1]):
                return StackResult(*stack_on_cuda(device, data, *given, halo, pixel_weight))
        return stack_arrays(data, weight, noise, params, pixel_weight=pixel_weight, halo=halo)
    data, pixel_weight = _with_weight(data, pixel_weight)
    return _stack_compiled(data, weight, noise, params, pixel_weight, halo, threads)


def stack_arrays(
    data: Any,
    weight: np.ndarray,
    noise: NoiseModel,
    params: StackParams,
    *,
    pixel_weight: Any = None,
    halo: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> StackResult:
    """Like `stack`, in array operations of the namespace of `data`: the definition of what is computed."""
    _check(data, weight, noise, params)
    data, pixel_weight = _with_weight(data, pixel_weight)
    ny, nx = data.shape[2:]
    inside = (slice(halo[0], ny - halo[1]), slice(halo[2], nx - halo[3]))
    bounds = rejection_bounds(data, noise, params)
    blur = noise.table()[3].astype(np.float32)
    use_median = params.combine == "median"
    return StackResult(*combine_arrays(data, weight, bounds, blur, inside, pixel_weight, use_median))


def rejection_bounds(data: Any, noise: NoiseModel, params: StackParams) -> tuple[Any, ...] | None:
    """Return the bounds (low, high) between which samples survive, None if all do.

    With a modelled spread there is a third array, the curvature: the bounds are for samples less their frame's
    blur times that.
    """
    n = data.shape[0]
    method = _method(params, n)
    if method == kernels.NONE:
        return None
    with np.errstate(invalid="ignore"):  # missing samples are infinite in a sorted list
        if method != kernels.MODELLED:
            return sample_bounds(data, params)
        kappas = float(params.kappa_low), float(params.kappa_high)
        return model_bounds(data, noise.table(), _proven_sigma(params, n), _shares(), kappas)


def _check(data: Any, weight: np.ndarray, noise: NoiseModel, params: StackParams) -> None:
    if data.ndim != 4 or weight.shape != data.shape[:2] or noise.sky.shape != data.shape[:2]:
        raise ValueError(f"data {data.shape}, weight {weight.shape} and noise {noise.sky.shape} disagree")
    if not (weight > 0).all():
        raise ValueError("weights of frames must be positive")
    if params.reject != "none" and params.reject not in _SAMPLE_METHODS:
        raise ValueError(f"unknown rejection {params.reject!r}; known: none, {', '.join(_SAMPLE_METHODS)}")
    if params.combine not in ("mean", "median"):
        raise ValueError(f"unknown combination {params.combine!r}; known: mean, median")
    if params.spread not in _SPREADS:
        raise ValueError(f"unknown spread {params.spread!r}; known: {', '.join(_SPREADS)}")


def _with_weight(data: Any, pixel_weight: Any) -> tuple[Any, Any]:
    """Return the samples without those whose pixel has no weight, and weights of 0 or more."""
    xp = namespace_of(data)
    if pixel_weight is None or pixel_weight.size == 0 or bool(to_host(xp.min(pixel_weight)) > 0):
        return data, pixel_weight
    heavy = pixel_weight > 0
    return xp.where(heavy[:, None], data, np.float32(np.nan)), xp.where(heavy, pixel_weight, np.float32(0.0))


def _method(params: StackParams, n_frames: int) -> int:
    if params.reject == "none" or n_frames < 3:
        return kernels.NONE
    modelled = params.reject == "kappa_sigma" and params.spread != "sample"
    return kernels.MODELLED if modelled else _SAMPLE_METHODS[params.reject]


def _proven_sigma(params: StackParams, n_frames: int) -> np.ndarray:
    """Return what turns the MAD of 0..n samples into the spread they prove, one standard error below it."""
    count = np.arange(n_frames + 1)
    if params.spread == "noise_model":
        return np.zeros(count.size, dtype=np.float32)
    factor = count / np.maximum(count - 0.8, 0.1)
    factor[: len(_MAD_FACTORS)] = _MAD_FACTORS[: count.size]
    return (MAD_TO_SIGMA * factor / (1.0 + MAD_ERROR / np.sqrt(np.maximum(count, 1)))).astype(np.float32)


def _shares() -> tuple[np.float32, ...]:
    """Return the `shares` of `stack_rows`."""
    slopes = _SLOPE_SIGMAS**2 * np.pi
    return tuple(np.float32(v) for v in (STEEPNESS_SHARE**2, slopes, 2.5 * slopes, BLUR_SHARE))


def _given(data: Any, weight: np.ndarray, noise: NoiseModel, params: StackParams) -> tuple[Any, ...]:
    """Return weight, noise, method, clip, to_sigma and shares as compiled loops and CUDA kernels take them."""
    n = data.shape[0]
    clip = (
        (float(params.kappa_low), float(params.kappa_high)),
        params.max_iterations,
        (float(params.winsor_limits[0]), float(params.winsor_limits[1])),
    )
    weight = np.ascontiguousarray(weight, dtype=np.float64)
    return weight, noise.table(), _method(params, n), clip, _proven_sigma(params, n), _shares()


def _stack_compiled(
    data: np.ndarray,
    weight: np.ndarray,
    noise: NoiseModel,
    params: StackParams,
    pixel_weight: np.ndarray | None,
    halo: tuple[int, int, int, int],
    threads: int,
) -> StackResult:
    """Run the compiled loops, each thread over some of the rows."""
    n, channels, ny, nx = data.shape
    shape = (channels, ny - halo[0] - halo[1], nx - halo[2] - halo[3])
    filled = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty((3, *shape), np.int32)
    weight, table, *model = _given(data, weight, noise, params)
    given = (
        np.ascontiguousarray(data),
        weight,
        np.empty((0, 1, 1), np.float32) if pixel_weight is None else np.ascontiguousarray(pixel_weight),
        (table, model[0] == kernels.MODELLED and has_whole_steps(table)),
        *model,
        params.combine == "median",
    )

    def run(rows: tuple[int, int]) -> np.ndarray:
        tally = np.zeros((n, 3), dtype=np.int64)
        kernels.stack_rows(*given, rows, (halo[0], halo[2]), filled, tally)
        return tally

    parts = _split_rows(shape[1], threads)
    if len(parts) == 1:
        tally = run(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            tally = np.sum(list(pool.map(run, parts)), axis=0)
    image, weight_out, counts = filled
    return StackResult(image, weight_out, counts[0], counts[1], counts[2], tally)


def _split_rows(n_rows: int, parts: int) -> list[tuple[int, int]]:
    edges = [n_rows * k // parts for k in range(parts + 1)]
    return [(a, b) for a, b in pairwise(edges) if b > a] or [(0, 0)]
