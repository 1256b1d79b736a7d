"""The resampler against reproject: one frame of 1920 x 1080 px and three channels onto its canvas, one thread."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from astropy.wcs import WCS
from bench_helpers import best_of, positive_int, print_environment, table
from reproject import reproject_interp

from zemosaic_reproject import Canvas, Lattice, Placement, lattice, optimal_canvas, place, resample
from zemosaic_synthetic import frame_wcs, plan_survey, render_planes, swarp_spec
from zemosaic_types import Rect

PACKAGES = ("zemosaic", "numpy", "numba", "scipy", "astropy", "reproject")
NOISE_ADU = 30.0
EACH, TOGETHER = "reproject_interp, a channel at a time", "reproject_interp, three at once"


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame ``(3, ny, nx)`` float32 and where it goes."""

    planes: np.ndarray
    wcs: WCS
    canvas: Canvas
    placement: Placement
    grid: Lattice

    @property
    def shape(self) -> tuple[int, int]:
        """``(ny, nx)`` of the frame."""
        return self.planes.shape[1:]


def main() -> None:
    """Time the resampling of a frame without and with SIP distortion."""
    arguments = _parser().parse_args()
    print_environment(PACKAGES)
    for sip in (False, True):
        frame = make_frame(sip=sip)
        kind = "TAN-SIP" if sip else "TAN"
        sizes = " onto ".join(f"{nx} x {ny}" for ny, nx in (frame.shape, frame.canvas.shape))
        print(f"{kind}: {sizes} px, 3 channels, best of {arguments.best}, one thread")
        print(_compare(frame, arguments.best))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time the resampling of one frame against reproject.")
    text = "calls; the shortest counts (default: %(default)s)"
    parser.add_argument("--best", type=positive_int, default=3, metavar="K", help=text)
    return parser


def make_frame(*, sip: bool) -> Frame:
    """Return the first frame of the benchmark survey in colour, with noise, and its own canvas."""
    survey = plan_survey(swarp_spec(color=True, sip=sip))
    wcs = frame_wcs(survey.frames[0])
    planes = render_planes(survey, 0)
    planes += np.random.default_rng(1).normal(0.0, NOISE_ADU, planes.shape)
    canvas = optimal_canvas([(planes.shape[1:], wcs)])
    placement, grid = _place(wcs, planes.shape[1:], canvas)
    return Frame(planes.astype(np.float32), wcs, canvas, placement, grid)


def _place(wcs: WCS, shape: tuple[int, int], canvas: Canvas) -> tuple[Placement, Lattice]:
    placement = place(wcs, shape, canvas)
    return placement, lattice(wcs, canvas, placement.bounds, placement.step)


def _compare(frame: Frame, count: int) -> str:
    """Return a table of times and of the ratios of reproject's to them, and the agreement of the two."""
    seconds, images = {}, {}
    for name, function in _methods(frame).items():
        function()  # untimed: compiles, or fills caches
        seconds[name], images[name] = best_of(count, function)
    rows = [(name, f"{1e3 * s:.1f}", *_ratios(s, seconds)) for name, s in seconds.items()]
    text = table(("", "ms", "a channel at a time / this", "three at once / this"), rows)
    return text + _agreement(images["resample: bilinear"], images[TOGETHER])


def _ratios(value: float, seconds: dict[str, float]) -> list[str]:
    return [f"{seconds[name] / value:.2f}" for name in (EACH, TOGETHER)]


def _methods(frame: Frame) -> dict[str, Callable[[], object]]:
    """Return what is timed; `resample` is given its pixel map, whose making is a line of its own."""
    target = {"output_projection": frame.canvas.wcs(), "shape_out": frame.canvas.shape, "return_footprint": False}
    once = partial(reproject_interp, (frame.planes, frame.wcs), **target, roundtrip_coords=False)
    return {
        EACH: lambda: [reproject_interp((plane, frame.wcs), **target) for plane in frame.planes],
        TOGETHER: once,
        "reproject_interp, three at once, bicubic": partial(once, order="bicubic"),
        "placement and lattice (the pixel map)": partial(_place, frame.wcs, frame.shape, frame.canvas),
        "resample: bilinear": partial(_resample, frame, "bilinear"),
        "resample: lanczos3": partial(_resample, frame, "lanczos3"),
    }


def _resample(frame: Frame, kernel: str) -> np.ndarray:
    whole = Rect(0, frame.shape[0], 0, frame.shape[1])
    return resample(frame.planes, whole, frame.shape, frame.grid, frame.canvas.rect, kernel=kernel)


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say how far the two bilinear images are apart where both have data."""
    difference = (ours - theirs)[np.isfinite(ours) & np.isfinite(theirs)]
    rms = float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
    return f"bilinear images differ by {rms / NOISE_ADU:.1e} of the noise of a frame's pixel (rms)\n"


if __name__ == "__main__":
    main()
