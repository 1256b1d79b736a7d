"""Refine, flat and match at any scale: time and memory for 200, 2,000 and 20,000 measured frames.

No pixel is read: the measures are made up, as a survey of panels would give them. See README.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_helpers import BYTES_PER_MB, positive_int, print_environment, table

from zemosaic_flat_frames import flatten_frames
from zemosaic_match import MatchedFrames, MatchOptions, match_frames
from zemosaic_measure import MeasuredFrame
from zemosaic_photometry import FrameMeasure, cell_number, cell_place
from zemosaic_refine import refine_frames
from zemosaic_reproject import Canvas, place
from zemosaic_types import FrameHeader, FrameRecord

PACKAGES = ("zemosaic", "numpy", "numba", "scipy")
SIZES = (200, 2_000, 20_000)
SHAPE, OVERLAP, DITHER_PX, ROTATION_DEG = (1080, 1920), 0.08, 15.0, 15.0
CELL_PX, NOISE, SKY, GRADIENT = 64, 30.0, (700.0, 1100.0), 30.0
STARS_A_FRAME = 100
#: The WCS of a frame is off by this much along an axis. Pixels are so small that even a large field is flat.
WCS_ERROR_PX, PIXEL_DEG = 0.3, 5e-6


@dataclass(frozen=True)
class Pointing:
    """Where a frame lies on the canvas, and what it does to the light."""

    x: float
    y: float
    angle: float
    transparency: float
    sky: float
    slope: tuple[float, float]
    error: tuple[float, float]


def main() -> None:
    """Solve surveys of growing size, each in a process of its own; print time, memory and what is left."""
    arguments = _parser().parse_args()
    if arguments.only:
        print(json.dumps(solve(arguments.only, arguments.per_panel, arguments.channels)))
        return
    print_environment(PACKAGES)
    rows = []
    for size in arguments.sizes:
        command = [sys.executable, str(Path(__file__)), "--only", str(size)]
        command += ["--per-panel", str(arguments.per_panel), "--channels", str(arguments.channels)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append((f"{size:,}", *(f"{found[key]:{form}}" for key, form in _COLUMNS.values())))
    print(f"{arguments.channels} channel(s), {arguments.per_panel} frames a panel of {SHAPE[1]} x {SHAPE[0]} px")
    print(table(("frames", *_COLUMNS), rows))


_COLUMNS = {
    "refine, s": ("refine", ".1f"),
    "flat": ("flat", ".1f"),
    "match": ("match", ".1f"),
    "CPU s": ("cpu_s", ".1f"),
    "peak MB": ("peak_mb", ",.0f"),
    "of which the measures": ("measures_mb", ",.0f"),
    "WCS before, px": ("before_px", ".2f"),
    "after": ("after_px", ".2f"),
    "gain error, rms": ("gain_error", ".2%"),
    "sky left, sigma of a pixel of the mosaic": ("level", ".3f"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time refine, flat and match of made-up measures.")
    add = parser.add_argument
    add("--sizes", type=positive_int, nargs="+", default=SIZES, metavar="N", help="numbers of frames")
    add("--per-panel", type=positive_int, default=7, metavar="N", help="frames a panel (default: %(default)s)")
    add("--channels", type=positive_int, default=1, choices=(1, 3), help="(default: %(default)s)")
    add("--only", type=positive_int, help=argparse.SUPPRESS)
    return parser


def solve(n_frames: int, per_panel: int, channels: int) -> dict[str, float]:
    """Make the measures of a survey, refine, flatten and match them, and compare with the truth."""
    pointings = _point(n_frames, per_panel)
    stars = _stars(pointings, channels)
    canvas = _canvas(pointings)
    measured = [_measured(k, pointing, stars, channels, canvas) for k, pointing in enumerate(pointings)]
    found: dict[str, float] = {"measures_mb": _peak_mb()}
    cpu = time.process_time()
    with _timed("refine", found):
        refined = refine_frames(measured, canvas, method="auto")
    with _timed("flat", found):
        measured, _ = flatten_frames(refined.measured, "auto")
    with _timed("match", found):
        matched = match_frames(measured, canvas, MatchOptions())
    found |= {"cpu_s": time.process_time() - cpu, "peak_mb": _peak_mb()}
    found |= {"before_px": refined.before_px, "after_px": refined.after_px}
    left = [pointings[int(m.record.frame_id)] for m in matched.measured]
    product = matched.match.gain[:, 0] * np.array([p.transparency for p in left])
    found["gain_error"] = float(np.std(product / product.mean()))
    return found | {"level": _level_left(left, matched)}


@contextmanager
def _timed(name: str, found: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    found[name] = time.perf_counter() - start


def _canvas(pointings: list[Pointing]) -> Canvas:
    """Return a canvas in whose pixels the pointings lie."""
    reach = np.hypot(*SHAPE) / 2
    nx, ny = (int(max(getattr(p, axis) for p in pointings) + reach) for axis in "xy")
    return Canvas((180.0, 0.0), (nx / 2, ny / 2), PIXEL_DEG, 0.0, (ny, nx))


def _measured(k: int, p: Pointing, stars: tuple, channels: int, canvas: Canvas) -> MeasuredFrame:
    ny, nx = SHAPE
    measure = _measure(k, p, stars, channels)
    where = p.x + p.error[0], p.y + p.error[1]
    sky = canvas.wcs().pixel_to_world_values(*where)
    own = Canvas(tuple(map(float, sky)), ((nx + 1) / 2, (ny + 1) / 2), PIXEL_DEG, np.degrees(p.angle), SHAPE)
    layout = "chw" if channels == 3 else "mono"
    header = FrameHeader(
        0,
        layout,
        SHAPE,
        wcs_text=own.wcs().to_header().tostring(endcard=False, padding=False),
        instrument="made up",
    )
    record = FrameRecord(f"{k:06d}", f"{k:06d}.fits", header, 10.0)
    return MeasuredFrame(record, measure, place(own.wcs(), SHAPE, canvas), CELL_PX)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / BYTES_PER_MB


def _point(n_frames: int, per_panel: int) -> list[Pointing]:
    """Lay out panels on a field about as high as wide; frames visit them in turn."""
    rng = np.random.default_rng(1)
    ny, nx = SHAPE
    columns = max(1, round(np.sqrt(n_frames / per_panel * ny / nx)))
    panels = max(1, round(n_frames / per_panel))
    pointings = []
    for k in range(n_frames):
        row, column = divmod(k % panels, columns)
        panel = np.array([(column + 1) * nx, (row + 1) * ny]) * (1 - OVERLAP)
        x, y = panel + rng.normal(0.0, DITHER_PX, 2)
        towards = rng.uniform(0.0, 2.0 * np.pi)
        slope = np.array([np.cos(towards), np.sin(towards)])
        slope *= GRADIENT / (np.abs(slope) @ (nx, ny))
        angle = np.radians(rng.uniform(-ROTATION_DEG, ROTATION_DEG))
        transparency, sky = rng.uniform(0.7, 1.0), rng.uniform(*SKY)
        error = tuple(rng.normal(0.0, WCS_ERROR_PX, 2))
        pointings.append(Pointing(x, y, angle, transparency, sky, tuple(slope), error))
    return pointings


def _stars(pointings: list[Pointing], channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y and fluxes (m, channels) of stars over the whole field, ordered by x."""
    rng = np.random.default_rng(2)
    reach = np.hypot(*SHAPE) / 2
    x_max, y_max = max(p.x for p in pointings) + reach, max(p.y for p in pointings) + reach
    count = round(STARS_A_FRAME * x_max * y_max / (SHAPE[0] * SHAPE[1]))
    x = np.sort(rng.uniform(0.0, x_max, count))
    return x, rng.uniform(0.0, y_max, count), 10 ** rng.uniform(3.5, 5.5, (count, channels))


def _in_frame(p: Pointing, x: np.ndarray, y: np.ndarray, margin: float) -> tuple[np.ndarray, ...]:
    """Return which places of the canvas a frame shows, and their places from its centre in the frame."""
    cos, sin = np.cos(p.angle), np.sin(p.angle)
    u, v = (x - p.x) * cos + (y - p.y) * sin, (y - p.y) * cos - (x - p.x) * sin
    return (np.abs(u) < SHAPE[1] / 2 - margin) & (np.abs(v) < SHAPE[0] / 2 - margin), u, v


def _measure(k: int, p: Pointing, stars: tuple, channels: int) -> FrameMeasure:
    rng = np.random.default_rng([3, k])
    reach = np.hypot(*SHAPE) / 2
    x, y, flux = stars
    near = slice(*np.searchsorted(x, (p.x - reach, p.x + reach)))
    inside, u, v = _in_frame(p, x[near], y[near], 5.0)
    true = p.transparency * flux[near][inside]
    error = np.full(true.shape, 14.0 * NOISE)
    jitter = rng.normal(0.0, 0.1, (2, len(true)))
    cos, sin = np.cos(p.angle), np.sin(p.angle)
    seen = u[inside] + cos * jitter[0] + sin * jitter[1], v[inside] + cos * jitter[1] - sin * jitter[0]
    rows, columns = (np.arange(int(c - reach) // CELL_PX, int(c + reach) // CELL_PX + 2) for c in (p.y, p.x))
    cx, cy = (a.ravel() for a in np.meshgrid(columns * float(CELL_PX), rows * float(CELL_PX)))
    within, cu, cv = _in_frame(p, cx, cy, CELL_PX / 2 + 1)
    number = cell_number(rows[:, None], columns[None, :]).ravel()[within]
    level = p.sky + cu[within] * p.slope[0] + cv[within] * p.slope[1]
    level = level[:, None] + rng.normal(0.0, 1.25 * NOISE / CELL_PX, (number.size, channels))
    return FrameMeasure(
        sky=np.full(channels, p.sky),
        noise=np.full(channels, NOISE),
        fwhm_px=3.3,
        elongation=1.1,
        star_x=x[near][inside] + jitter[0] + p.error[0],
        star_y=y[near][inside] + jitter[1] + p.error[1],
        frame_x=(seen[0] + (SHAPE[1] - 1) / 2).astype(np.float32),
        frame_y=(seen[1] + (SHAPE[0] - 1) / 2).astype(np.float32),
        flux=(true + rng.normal(0.0, error)).astype(np.float32),
        flux_error=error.astype(np.float32),
        cell=number,
        level=level.astype(np.float32),
        cell_x=(cu[within] + (SHAPE[1] - 1) / 2).astype(np.float32),
        cell_y=(cv[within] + (SHAPE[0] - 1) / 2).astype(np.float32),
    )


def _level_left(pointings: list[Pointing], matched: MatchedFrames) -> float:
    """Return how uneven the mosaic's sky would be: rms over the cells, in noises of its pixels there."""
    match = matched.match
    row, column = cell_place(match.cell)
    x, y = column * float(CELL_PX), row * float(CELL_PX)
    total, weight = np.zeros(x.size), np.zeros(x.size)
    order = np.argsort(x, kind="stable")
    sorted_x = x[order]
    reach = np.hypot(*SHAPE) / 2
    for k, p in enumerate(pointings):
        near = order[slice(*np.searchsorted(sorted_x, (p.x - reach, p.x + reach)))]
        inside, u, v = _in_frame(p, x[near], y[near], 0.0)
        at = near[inside]
        sky = p.sky + u[inside] * p.slope[0] + v[inside] * p.slope[1]
        gain, (sx, sy) = match.gain[k, 0], match.gradient[k, 0]
        level = gain * sky + match.offset[k, 0] + sx * (x[at] - p.x) + sy * (y[at] - p.y)
        total[at] += level / (gain * NOISE) ** 2
        weight[at] += 1.0 / (gain * NOISE) ** 2
    seen = weight > 0
    level = total[seen] / weight[seen]
    return float(np.sqrt(np.mean(np.square(level - np.median(level)) * weight[seen])))


if __name__ == "__main__":
    main()
