"""Whole runs of ``zemosaic grid`` and of SWarp on one simulated survey, in turn: CPU, wall time, memory.

With ``--score`` both mosaics are also compared with the truth of the survey. See README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_helpers import BYTES_PER_MB, Usage, measure, median_usage, positive_int, print_environment, table

import zemosaic_synthetic
from zemosaic_fits_products import read_image, read_product_wcs
from zemosaic_outputs import ProductPaths
from zemosaic_synthetic import Survey, SurveySpec, make_survey, plan_survey, swarp_spec
from zemosaic_truth import MosaicScore, score_mosaic

PACKAGES = ("zemosaic", "numpy", "numba", "astropy", "reproject", "scipy")

# Fields of MosaicScore to show, what they are, and how to write them.
SCORES = (
    ("position_rms_px", "star positions, rms (px)", ".4f"),
    ("flux_scatter", "star fluxes, scatter", ".2%"),
    ("flux_photon", "  of it photon noise", ".2%"),
    ("flux_excess", "  beyond photon noise", ".2%"),
    ("flux_bias", "  bright against faint", "+.2%"),
    ("noise_ratio", "background noise of 8 px boxes / ideal", ".3f"),
    ("trail_residue", "trail residue (sigma of a pixel)", "+.3f"),
    ("level_rms", "level of 32 px boxes, rms (sigma)", ".3f"),
    ("level_max", "  largest (sigma)", ".2f"),
    ("coverage_error", "wrong pixels of coverage / covered", ".1e"),
)


@dataclass(frozen=True)
class Program:
    """A program under measurement: its command, where that runs, and how to read the mosaic it makes.

    `mosaic` returns the image with NaN where there is no data, the coverage, and the file with the WCS.
    """

    name: str
    command: list[str | Path]
    folder: Path
    mosaic: Callable[[], tuple[np.ndarray, np.ndarray, Path]]

    def run(self) -> Usage:
        """Run the command once, with nothing of ZeMosaic's configuration in the environment."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZEMOSAIC_")}
        return measure(self.command, folder=self.folder, env=env)


def main() -> None:
    """Make or find the survey, run both programs in turn, print the figures."""
    arguments = _parser().parse_args()
    if arguments.work is not None:
        _compare(arguments, arguments.work.resolve())
        return
    with tempfile.TemporaryDirectory(prefix="bench_swarp_") as work:
        _compare(arguments, Path(work).resolve())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run zemosaic grid and SWarp in turn on one simulated survey.")
    add = parser.add_argument
    add("--work", type=Path, help="folder for survey and mosaics, kept for the next time (default: temporary)")
    add("--runs", type=positive_int, default=2, metavar="N", help="measured runs of each (default: %(default)s)")
    add("--workers", type=positive_int, default=2, metavar="W", help="processes or threads (default: %(default)s)")
    add("--frames", type=positive_int, metavar="N", help="frames of the survey (default: 60)")
    panels = "pointings (default: as many as keep the depth, 60 frames on 9 panels, about the same)"
    add("--panels", type=positive_int, nargs=2, metavar=("ROWS", "COLUMNS"), help=panels)
    add("--color", action="store_true", help="GRBG frames; zemosaic only, SWarp takes mono only")
    add("--score", action="store_true", help="compare the mosaics with the truth")
    return parser


def _compare(arguments: argparse.Namespace, work: Path) -> None:
    swarp = None if arguments.color else _find_swarp()
    print_environment(PACKAGES, SWarp="left out: mono only" if swarp is None else _version(swarp))
    spec = _spec(arguments)
    survey = _survey(work, spec)
    frames = work / _survey_name(spec) / "frames"
    programs = [_zemosaic(frames, work, arguments.workers)]
    if swarp is not None:
        programs.append(_swarp(swarp, survey, work, arguments.workers))
    for program in programs:
        print(f"{program.name}: {' '.join(map(str, program.command))}")
    print("\nOne untimed run of zemosaic: after it, compiled code is cached and frames are in the page cache.")
    programs[0].run()
    _print_usage(_run_in_turn(programs, arguments.runs))
    if arguments.score:
        _print_scores({program.name: _score(program, survey) for program in programs})


def _find_swarp() -> str:
    path = shutil.which("SWarp") or shutil.which("swarp")
    if path is None:
        raise SystemExit("SWarp is not installed (Debian, Ubuntu: apt install swarp); --color does without it")
    return path


def _version(swarp: str) -> str:
    answer = subprocess.run([swarp, "-v"], capture_output=True, text=True, check=False)
    return (answer.stdout + answer.stderr).strip()


def _spec(arguments: argparse.Namespace) -> SurveySpec:
    usual = swarp_spec()
    count = arguments.frames or usual.count
    panels = tuple(arguments.panels) if arguments.panels else _panels(count * usual.n_panels / usual.count)
    return swarp_spec(n_frames=count, panels=panels, color=arguments.color)


def _panels(wanted: float) -> tuple[int, int]:
    """Return rows and columns of about as many panels as wanted, near a square."""
    rows = max(1, math.isqrt(int(wanted)))
    return rows, max(1, round(wanted / rows))


def _survey_name(spec: SurveySpec) -> str:
    rows, columns = spec.panels
    return f"survey_{spec.count}_{rows}x{columns}_{'color' if spec.color else 'mono'}"


def _survey(work: Path, spec: SurveySpec) -> Survey:
    """Return the survey in the work folder; make its frames unless they are there and of today's code."""
    frames, mark = work / _survey_name(spec) / "frames", work / _survey_name(spec) / "made_from.txt"
    code = hashlib.sha256(Path(zemosaic_synthetic.__file__).read_bytes()).hexdigest()
    recipe = f"{spec}\n{code}\n"
    ny, nx = spec.frame_shape
    colour = "GRBG" if spec.color else "mono"
    depth = spec.count / spec.n_panels
    print(f"survey: {spec.count} {colour} frames of {nx} x {ny} px, {depth:.1f} a panel, panels {spec.panels}")
    if mark.exists() and mark.read_text(encoding="utf-8") == recipe:
        return plan_survey(spec, folder=frames)
    mark.unlink(missing_ok=True)
    for path in frames.glob("Light_*.fit"):
        path.unlink()
    print("making its frames ...", flush=True)
    survey = make_survey(frames, spec)
    mark.write_text(recipe, encoding="utf-8")
    return survey


def _zemosaic(frames: Path, work: Path, workers: int) -> Program:
    folder, output = work / "zemosaic", work / "zemosaic" / "mosaic"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "defaults.json"  # not the user's own configuration
    config.write_text("{}\n", encoding="utf-8")
    command = [sys.executable, "-m", "zemosaic_cli", "grid", frames, output, "--workers", str(workers)]
    command += ["--overwrite", "--quiet", "--config", config]
    return Program("zemosaic", command, folder, lambda: _zemosaic_mosaic(ProductPaths(output)))


def _zemosaic_mosaic(paths: ProductPaths) -> tuple[np.ndarray, np.ndarray, Path]:
    return read_image(paths.mosaic, 0)[1], read_image(paths.coverage, 0)[1], paths.mosaic


def _swarp(swarp: str, survey: Survey, work: Path, threads: int) -> Program:
    """Return SWarp with a clipped Lanczos-3 coadd. It reads the 16-bit frames as they are."""
    folder = work / "swarp"
    folder.mkdir(parents=True, exist_ok=True)
    frames, image, weight = (folder / name for name in ("frames.txt", "coadd.fits", "coadd.weight.fits"))
    frames.write_text("".join(f"{frame.path}\n" for frame in survey.frames), encoding="utf-8")
    options = {
        "IMAGEOUT_NAME": image,
        "WEIGHTOUT_NAME": weight,
        "COMBINE_TYPE": "CLIPPED",
        "RESAMPLING_TYPE": "LANCZOS3",
        "SUBTRACT_BACK": "Y",
        "PROJECTION_TYPE": "TAN",
        "PIXELSCALE_TYPE": "MANUAL",
        "PIXEL_SCALE": survey.spec.pixel_scale_arcsec,
        "RESAMPLE_DIR": folder,
        "VMEM_DIR": folder,
        "NTHREADS": threads,
        "WRITE_XML": "N",
        "VERBOSE_TYPE": "QUIET",
    }
    given = [word for key, value in options.items() for word in (f"-{key}", str(value))]
    # An empty configuration file: what is not given here has the default that is built in.
    command = [swarp, f"@{frames}", "-c", os.devnull, *given]
    return Program("SWarp", command, folder, lambda: _swarp_mosaic(image, weight))


def _swarp_mosaic(image: Path, weight: Path) -> tuple[np.ndarray, np.ndarray, Path]:
    weights = read_image(weight, 0)[1]
    return np.where(weights > 0, read_image(image, 0)[1], np.float32(np.nan)), weights, image


def _run_in_turn(programs: list[Program], runs: int) -> dict[str, list[Usage]]:
    found: dict[str, list[Usage]] = {program.name: [] for program in programs}
    for number in range(1, runs + 1):
        for program in programs:
            print(f"run {number} of {runs}: {program.name} ...", flush=True)
            found[program.name].append(program.run())
    print()
    return found


def _print_usage(found: dict[str, list[Usage]]) -> None:
    """Print every run, the medians, and the ratio of the medians of the first program over the second."""
    header = ("run", "CPU s", "user s", "system s", "wall s", "peak MB")
    runs = [(f"{name} {k}", usage) for name, usages in found.items() for k, usage in enumerate(usages, 1)]
    medians = {name: median_usage(usages) for name, usages in found.items()}
    runs += [(f"{name}, median", usage) for name, usage in medians.items()]
    rows = [(label, *_figures(usage)) for label, usage in runs]
    if len(medians) == 2:
        (first, a), (second, b) = medians.items()
        ratios = [a.cpu_s / b.cpu_s, a.user_s / b.user_s, a.system_s / b.system_s, a.wall_s / b.wall_s]
        ratios.append(a.peak_bytes / b.peak_bytes)
        rows.append((f"{first} / {second}", *(f"{ratio:.2f}" for ratio in ratios)))
    print(table(header, rows))


def _figures(usage: Usage) -> list[str]:
    times = (usage.cpu_s, usage.user_s, usage.system_s, usage.wall_s)
    return [*(f"{seconds:.2f}" for seconds in times), f"{usage.peak_bytes / BYTES_PER_MB:.0f}"]


def _score(program: Program, survey: Survey) -> MosaicScore:
    image, coverage, path = program.mosaic()
    return score_mosaic(image, coverage, read_product_wcs(path), survey)


def _print_scores(scores: dict[str, MosaicScore]) -> None:
    channels = next(iter(scores.values())).channels
    label = "distance from the truth" + (f" ({', '.join(channels)})" if len(channels) > 1 else "")
    rows = [(text, *(_written(getattr(s, name), form) for s in scores.values())) for name, text, form in SCORES]
    print(table((label, *scores), rows))
    if "SWarp" in scores:
        print("SWarp subtracted a background map from every frame and scaled no frame for its transparency;")
        print("zemosaic keeps the sky and scales the frames. So their levels are not answers to one question.")


def _written(value: float | tuple[float, ...], form: str) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(format(v, form) if math.isfinite(v) else "-" for v in values)  # "-": too little to measure


if __name__ == "__main__":
    main()
