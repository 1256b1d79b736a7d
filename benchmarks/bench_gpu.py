"""The GPU against the CPU: agreement, the stacker against the memory, a tile, a whole run. See README.md.

The figures go into ``docs/gpu.md``. Without a GPU it says why, writes nothing and ends with status 2.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_helpers import best_of, installed, positive_int, print_environment, processor, table
from bench_programs import in_work_folder, zemosaic
from bench_surveys import find_survey, read_once, survey_folder

from parallel_utils import machine
from zemosaic_align_stack import StackedRect, StackOptions, stack_frames
from zemosaic_align_stack_gpu import DeviceStacker
from zemosaic_backend import Device, find_devices, open_device
from zemosaic_fits_io import frame_wcs
from zemosaic_frame_source import StackFrame
from zemosaic_match import MatchOptions, match_frames, usual_feather_px
from zemosaic_measure import MeasuredFrame, cell_size_px, measure_frames
from zemosaic_noise_model import NoiseModel
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_reproject import Canvas, optimal_canvas
from zemosaic_stack_core import stack
from zemosaic_stack_cuda import PIXEL_BYTES
from zemosaic_synthetic import SurveySpec
from zemosaic_types import DeviceUnavailable, StackParams

PACKAGES = ("zemosaic", "numpy", "numba")
PARTS = ("parity", "memory", "tile", "run")
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- figures of benchmarks/bench_gpu.py: begin -->", "<!-- figures: end -->"
NO_GPU = 2

CHANNELS = 3
SKY, NOISE, OUTLIERS = 1000.0, 20.0, 0.002
METHODS = {
    "kappa_sigma, auto": StackParams(),
    "kappa_sigma, sample": StackParams(spread="sample"),
    "winsorized_sigma_clip": StackParams(reject="winsorized_sigma_clip"),
    "linear_fit_clip": StackParams(reject="linear_fit_clip"),
    "none": StackParams(reject="none"),
}
MEMORY_GOAL, TILE_GOAL = 6.0, 10.0


@dataclass(frozen=True)
class Figure:
    """One measured line of the document; `goal` is empty where nothing was promised."""

    what: str
    value: str
    goal: str = ""


@dataclass(frozen=True)
class Sizes:
    """How large the work is: two surveys, and the stack that the speed of the memory is held against."""

    parity: SurveySpec
    tile: SurveySpec
    stack_frames: int
    stack_side_px: int
    copied_bytes: int


USUAL = Sizes(
    SurveySpec(panels=(1, 2), frames_per_panel=12, frame_shape=(480, 640), color=True, nebula_adu=300.0),
    SurveySpec(panels=(1, 1), n_frames=100, frame_shape=(1080, 1920), color=True),
    stack_frames=200,
    stack_side_px=2048,
    copied_bytes=2**30,
)
QUICK = Sizes(
    SurveySpec(panels=(1, 1), frames_per_panel=5, frame_shape=(240, 320), color=True),
    SurveySpec(panels=(1, 1), n_frames=12, frame_shape=(480, 640), color=True),
    stack_frames=40,
    stack_side_px=512,
    copied_bytes=2**26,
)


def main() -> int:
    """Measure what was asked for and write it down; return the exit status."""
    arguments = _parser().parse_args()
    try:
        find_devices()
        device = open_device(arguments.device)
    except DeviceUnavailable as reason:
        print(f"no GPU: {reason}", file=sys.stderr)
        return NO_GPU
    environment = describe(device)
    print_environment(PACKAGES, **environment)
    in_work_folder(arguments, partial(_measure, device=device, environment=environment))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the GPU path and write the figures to docs/gpu.md.")
    add = parser.add_argument
    add("--quick", action="store_true", help="small surveys and stacks: does it run at all")
    add("--only", choices=PARTS, nargs="+", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--device", type=int, default=0, metavar="K", help="number of the GPU (default: %(default)s)")
    add("--best", type=positive_int, default=3, metavar="N", help="runs, the shortest counts (default: 3)")
    add("--work", type=Path, help="folder for the surveys, kept for the next time (default: temporary)")
    add(
        "--document",
        type=Path,
        default=DOCUMENT,
        metavar="FILE",
        help="where the figures go (default: docs/gpu.md)",
    )
    return parser


def _measure(arguments: argparse.Namespace, work: Path, *, device: Device, environment: dict[str, str]) -> None:
    sizes = QUICK if arguments.quick else USUAL
    measures = {
        "parity": lambda: parity(device, work / "parity", sizes),
        "memory": lambda: against_memory(device, sizes, arguments.best),
        "tile": lambda: whole_tile(device, work / "tile", sizes, arguments.best),
        "run": lambda: whole_run(work / "tile", sizes, arguments.best),
    }
    figures = [figure for part in PARTS if part in arguments.only for figure in measures[part]()]
    text = table(("", "measured", "goal"), [(f.what, f.value, f.goal) for f in figures])
    print(f"\n{text}")
    write_figures(arguments.document, figures, environment)
    print(f"written to {arguments.document}")


def describe(device: Device) -> dict[str, str]:
    """Return what a figure depends on, beside the size of the work."""
    info = device.info
    known = device.xp.cuda.runtime.driverGetVersion()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "GPU": f"{info.name}, {info.total_bytes / 2**30:.0f} GiB",
        "driver": f"{_driver()}knows CUDA {known // 1000}.{known % 1000 // 10}",
        "library": f"{info.library}, CUDA {info.runtime}",
        "host": f"{processor()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {installed(name)}" for name in PACKAGES),
    }


def _driver() -> str:
    """Return the version of the driver, nothing if its tool is missing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{done.stdout.split()[0]}, " if done.returncode == 0 and done.stdout.strip() else ""


# --- agreement -------------------------------------------------------------------------------------------------


def parity(device: Device, work: Path, sizes: Sizes) -> list[Figure]:
    """Stack a survey on both and compare, in units of the sky noise of a frame's sample."""
    frames, canvas = find_frames(work, sizes.parity)
    options = StackOptions(CHANNELS, feather_px=usual_feather_px(frames))  # as a run does
    host = stack_frames(frames, canvas, canvas.rect, options)
    there = on_device(DeviceStacker(device), frames, canvas, options)
    noise = np.median([frame.solution.noise for frame in frames], axis=0)[:, None, None]
    apart = np.abs(host.result.image.astype(np.float64) - there.result.image) / noise
    both = np.isfinite(apart)
    counts = [(getattr(s.result, name) for name in ("rejected_low", "rejected_high")) for s in (host, there)]
    flipped = sum(int(np.abs(a - b).sum()) for a, b in zip(*counts, strict=True))
    one_sided = int((np.isfinite(host.result.image) != np.isfinite(there.result.image)).sum())
    of = f"{len(frames)} GRBG frames on {canvas.shape[1]} x {canvas.shape[0]} px"
    return [
        Figure(f"largest difference from the CPU, sky noise of a frame ({of})", f"{apart[both].max():.1e}"),
        Figure("the same, rms", f"{np.sqrt(np.mean(np.square(apart[both]))):.1e}"),
        Figure(f"rejections that differ, of {int(host.result.tally.sum())} samples", str(flipped)),
        Figure("pixels that only one of them fills", str(one_sided), "0"),
    ]


def on_device(
    stacker: DeviceStacker, frames: list[StackFrame], canvas: Canvas, options: StackOptions
) -> StackedRect:
    """Stack on the GPU; it must not have fallen back.

    Raises
    ------
    SystemExit
        If it has, with the reason.
    """
    stacked = stack_frames(frames, canvas, canvas.rect, options, device=stacker)
    if stacker.failures:
        raise SystemExit(f"the GPU failed, so nothing was measured: {stacker.failures[0]}")
    return stacked


def find_frames(work: Path, spec: SurveySpec) -> tuple[list[StackFrame], Canvas]:
    """Return the frames of a survey, measured and matched, and their canvas."""
    survey = find_survey(work, spec)
    read_once(survey)
    folder = survey_folder(work, spec) / "frames"
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    canvas = optimal_canvas([(record.header.shape, frame_wcs(record.header)) for record in records])
    cell_px = cell_size_px([record.header.shape for record in records])
    measured = measure_frames(records, canvas, cell_px, CHANNELS)
    usable = [m for m in measured if isinstance(m, MeasuredFrame)]
    matched = match_frames(usable, canvas, MatchOptions())
    return matched.frames, matched.canvas


# --- the stacker against the memory ----------------------------------------------------------------------------


def against_memory(device: Device, sizes: Sizes, best: int) -> list[Figure]:
    """Time the stacking of samples that are in the GPU's memory, over the time of one pass through them."""
    bandwidth = copy_bandwidth(device, sizes.copied_bytes, best)
    data = samples(device, sizes.stack_frames, _side_that_fits(device, sizes))
    n, _, ny, nx = data.shape
    a_pass = data.nbytes / bandwidth
    weight = np.random.default_rng(2).uniform(0.5, 1.5, (n, CHANNELS))
    noise = NoiseModel(np.full((n, CHANNELS), NOISE))
    figures = [Figure("bandwidth of a copy in its memory, read and write", f"{bandwidth / 1e9:.0f} GB/s")]
    for name, params in METHODS.items():
        work = partial(_stack_and_wait, device, data, weight, noise, params)
        work()  # untimed: compiles
        seconds, _ = best_of(best, work)
        goal = f"<= {MEMORY_GOAL:.0f}" if params == StackParams() else ""
        what = f"{name}: {n} x {nx} x {ny} x {CHANNELS} samples, passes through the memory"
        figures.append(Figure(what, f"{seconds / a_pass:.1f} ({1e3 * seconds:.1f} ms)", goal))
    del data
    device.release()
    return figures


def copy_bandwidth(device: Device, size_bytes: int, best: int) -> float:
    """Return the bytes a second, read and written together, of a copy within the GPU's memory."""
    there = device.xp.zeros(size_bytes // 4, dtype=np.float32)
    copy = device.xp.empty_like(there)

    def work() -> None:
        for _ in range(10):
            device.xp.copyto(copy, there)
        device.synchronize()

    work()
    return 10 * 2 * there.nbytes / best_of(best, work)[0]


def samples(device: Device, n: int, side: int) -> Any:
    """Return seeded samples ``(n, c, side, side)`` on the GPU: a field of noise and outliers, shifted a frame."""
    rng = np.random.default_rng([n, side])
    field = rng.normal(SKY, NOISE, (CHANNELS, side, side)).astype(np.float32)
    field[rng.random(field.shape) < OUTLIERS] += np.float32(100.0 * NOISE)
    field[:, :, : side // 16] = np.nan  # as if each frame ended somewhere
    there = device.upload(field)
    data = device.xp.empty((n, *field.shape), dtype=np.float32)
    for k, (dy, dx) in enumerate(rng.integers(0, side, (n, 2)).tolist()):
        data[k] = device.xp.roll(there, (dy, dx), axis=(1, 2))
    return data


def _side_that_fits(device: Device, sizes: Sizes) -> int:
    """Return the side of the stack, halved until it fits into the free memory."""
    side = sizes.stack_side_px
    while CHANNELS * side**2 * (4 * (sizes.stack_frames + 4) + PIXEL_BYTES) > 0.9 * device.free_bytes():
        side //= 2
    if side < sizes.stack_side_px:
        print(f"only {device.free_bytes() / 2**30:.1f} GiB are free: the stack is {side} px wide")
    return side


def _stack_and_wait(device: Device, *given: Any) -> None:
    stack(*given, device=device)
    device.synchronize()


# --- a tile from files -----------------------------------------------------------------------------------------


def whole_tile(device: Device, work: Path, sizes: Sizes, best: int) -> list[Figure]:
    """Time frames on disk to stacked tile, on the GPU and on one core of the CPU."""
    frames, canvas = find_frames(work, sizes.tile)
    options = StackOptions(CHANNELS, feather_px=usual_feather_px(frames))  # as a run does
    run_there = partial(on_device, DeviceStacker(device), frames, canvas, options)
    run_here = partial(stack_frames, frames, canvas, canvas.rect, options)
    run_there()  # untimed: compiles
    here, _ = best_of(1, run_here)
    there, _ = best_of(best, run_there)
    of = f"{len(frames)} GRBG frames onto {canvas.shape[1]} x {canvas.shape[0]} px"
    return [
        Figure(f"one CPU core over the GPU: {of}, from files", f"{here / there:.1f}", f">= {TILE_GOAL:.0f}"),
        Figure("the times of both", f"{here:.1f} s, {there:.2f} s"),
    ]


# --- a whole run -----------------------------------------------------------------------------------------------


def whole_run(work: Path, sizes: Sizes, best: int) -> list[Figure]:
    """Time a run of Grid mode from its start to its end, with the GPU and without.

    Raises
    ------
    SystemExit
        If the GPU was not used, or fell back.
    """
    survey = find_survey(work, sizes.tile)
    read_once(survey)
    frames, workers = survey_folder(work, sizes.tile) / "frames", machine()[0]
    (here, _), (there, output) = (
        zemosaic(frames, work, workers, name=name, gpu=name == "gpu") for name in ("cpu", "gpu")
    )
    for program in (here, there):
        program.run()  # untimed: compiles
    of_cpu, of_gpu = (min(program.run().wall_s for _ in range(best)) for program in (here, there))
    log = (output / "zemosaic.log").read_text(encoding="utf-8")
    if "[GRID] GPU=ON" not in log or "falling back" in log:
        raise SystemExit(f"the run did not use the GPU: see {output / 'zemosaic.log'}")
    what = f"a whole Grid run of {sizes.tile.count} GRBG frames, {workers} workers, without and with the GPU"
    return [Figure(what, f"{of_cpu:.1f} s, {of_gpu:.1f} s")]


# --- the document ----------------------------------------------------------------------------------------------


def write_figures(document: Path, figures: list[Figure], environment: dict[str, str]) -> None:
    """Put the figures between the marks of the document, in place of older ones.

    Raises
    ------
    SystemExit
        If the document has no marks.
    """
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SystemExit(f"{document} has no place for figures: the lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in environment.items()), ""]
    lines += ["| figure | measured | goal |", "|---|---|---|"]
    lines += [f"| {f.what} | {f.value} | {f.goal} |" for f in figures]
    document.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
