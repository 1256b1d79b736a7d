"""The stack core against its own plain mean, numpy and astropy: rejection and weighted mean of a rectangle."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from astropy.stats import sigma_clip
from astropy.utils.exceptions import AstropyUserWarning
from bench_helpers import best_of, positive_int, print_environment, table

from zemosaic_noise_model import NoiseModel
from zemosaic_stack_core import StackResult, stack
from zemosaic_types import StackParams

PACKAGES = ("zemosaic", "numpy", "numba", "astropy", "bottleneck")
SKY, NOISE = 1000.0, 20.0
OUTLIERS = 0.002  # share of samples that are far too high

CORE = {
    "stack: none": StackParams(reject="none"),
    "stack: kappa_sigma, auto": StackParams(),
    "stack: kappa_sigma, sample": StackParams(spread="sample"),
    "stack: winsorized": StackParams(reject="winsorized_sigma_clip"),
}
PLAIN, NUMPY, ASTROPY = "stack: none", "numpy: weighted mean", "astropy: sigma_clip, mean"


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples ``(n, 1, ny, nx)`` float32 with NaN for no data; weight ``(n, 1)`` and noise of the frames."""

    data: np.ndarray
    weight: np.ndarray
    noise: NoiseModel


def main() -> None:
    """Time every method at every number of frames and print a table for each number."""
    arguments = _parser().parse_args()
    print_environment(PACKAGES)
    _prepare()
    for n in arguments.frames:
        samples = make_samples(n, arguments.size)
        ny, nx = samples.data.shape[2:]
        how = f"best of {arguments.best}, {arguments.threads} thread(s) of the stack core, one of the others"
        print(f"n = {n} frames of {nx} x {ny} px, {how}", flush=True)
        print(_compare(samples, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time the stack core against numpy and astropy.")
    add = parser.add_argument
    add("--frames", type=positive_int, nargs="+", default=[30, 200], metavar="N", help="default: 30 200")
    add("--size", type=positive_int, default=1024, metavar="PX", help="pixels a side (default: %(default)s)")
    add(
        "--best",
        type=positive_int,
        default=3,
        metavar="K",
        help="calls, the best counts (default: %(default)s)",
    )
    add("--threads", type=positive_int, default=2, metavar="T", help="of the stack core (default: %(default)s)")
    add("--no-astropy", action="store_true", help="leave out sigma_clip, which takes most of the time and memory")
    return parser


def make_samples(n: int, size: int) -> Samples:
    """Return seeded normal samples with outliers and differing weights, of frames that end at a line somewhere."""
    rng = np.random.default_rng([n, size])
    data = rng.standard_normal((n, 1, size, size), dtype=np.float32)
    data *= np.float32(NOISE)
    data += np.float32(SKY)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for frame in data:
        frame[rng.random(frame.shape, dtype=np.float32) < OUTLIERS] += np.float32(100.0 * NOISE)
        angle, reach = rng.uniform(0.0, 2.0 * np.pi), size * rng.uniform(0.3, 0.7)
        across = (x - 0.5 * size) * np.cos(angle) + (y - 0.5 * size) * np.sin(angle)
        frame[:, across > reach] = np.nan
    return Samples(data, rng.uniform(0.5, 1.5, (n, 1)), NoiseModel(np.full((n, 1), NOISE)))


def _prepare() -> None:
    """Compile every method, untimed."""
    small = make_samples(5, 16)
    for params in CORE.values():
        stack(small.data, small.weight, small.noise, params)


def _compare(samples: Samples, arguments: argparse.Namespace) -> str:
    """Return a table of times, speeds and ratios to the yardsticks."""
    seconds, rejected = {}, {}
    for name, function in _methods(samples, arguments).items():
        seconds[name], result = best_of(arguments.best, function)
        rejected[name] = _rejected(result, samples)
    rows = [(name, *_figures(s, seconds, samples), f"{rejected[name]:.2%}") for name, s in seconds.items()]
    return table(("", "ms", "Ms/s", "this / plain", "numpy / this", "astropy / this", "rejected"), rows)


def _methods(samples: Samples, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    methods: dict[str, Callable[[], object]] = {NUMPY: lambda: weighted_mean(samples)}
    if not arguments.no_astropy:
        methods[ASTROPY] = lambda: clipped_mean(samples)
    given, threads = (samples.data, samples.weight, samples.noise), arguments.threads
    for name, params in CORE.items():
        methods[name] = lambda params=params: stack(*given, params, threads=threads)
    return methods


def weighted_mean(samples: Samples) -> np.ndarray:
    """Return the weighted mean of the samples that are not NaN, ``(1, ny, nx)``, without any rejection."""
    weight = samples.weight.astype(np.float32)[:, :, None, None]
    with np.errstate(invalid="ignore"):  # a pixel without samples is 0 / 0
        return np.nansum(samples.data * weight, axis=0) / np.sum(np.isfinite(samples.data) * weight, axis=0)


def clipped_mean(samples: Samples) -> tuple[np.ndarray, int]:
    """Return the mean, not weighted, of what astropy's clip about the median leaves, and how many that is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyUserWarning)  # it says that samples without data do not count
        kept = sigma_clip(samples.data, sigma=3.0, maxiters=5, axis=0, masked=False)
    return np.nanmean(kept, axis=0), int(np.count_nonzero(np.isfinite(kept)))


def _rejected(result: object, samples: Samples) -> float:
    """Return the share of the samples that a method removed."""
    if isinstance(result, StackResult):
        kept, low, high = result.tally.sum(axis=0)
        return float((low + high) / (kept + low + high))
    if isinstance(result, tuple):
        return 1.0 - result[1] / np.count_nonzero(np.isfinite(samples.data))
    return 0.0


def _figures(value: float, seconds: dict[str, float], samples: Samples) -> list[str]:
    """Return milliseconds, million samples a second, and the ratios to the plain mean, numpy and astropy."""
    ratios = [f"{value / seconds[PLAIN]:.2f}"]
    ratios += [f"{seconds[name] / value:.2f}" if name in seconds else "" for name in (NUMPY, ASTROPY)]
    return [f"{1e3 * value:.1f}", f"{samples.data.size / value / 1e6:.0f}", *ratios]


if __name__ == "__main__":
    main()
