"""Whole runs of ``zemosaic grid`` and of SWarp on one simulated survey, in turn: CPU, wall time, memory.

With ``--score`` both mosaics are also compared with the truth of the survey. See README.md.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_helpers import positive_int, print_environment, table
from bench_programs import (
    PACKAGES,
    Program,
    add_common_options,
    in_work_folder,
    print_usage,
    run_in_turn,
    zemosaic,
)
from bench_surveys import PLANES, USUAL_FRAMES, find_planes, find_survey, read_once, spec_of, survey_folder

from zemosaic_fits_products import read_image, read_product_wcs
from zemosaic_outputs import ProductPaths
from zemosaic_synthetic import Survey
from zemosaic_truth import MosaicScore, score_mosaic

# Image with NaN where there is no data, coverage or weights, and the file with the WCS.
Mosaic = tuple[np.ndarray, np.ndarray, Path]

# Fields of MosaicScore to show, what they are, and how to write them.
SCORES = (
    ("position_rms_px", "star positions, rms (px)", ".4f"),
    ("flux_scatter", "star fluxes, scatter", ".2%"),
    ("flux_photon", "  of it photon noise", ".2%"),
    ("flux_excess", "  beyond photon noise", ".2%"),
    ("flux_slow", "  slow variation over the field", ".2%"),
    ("flux_bias", "  bright against faint", "+.2%"),
    ("flux_bias_error", "    its error from photon noise", ".2%"),
    ("noise_ratio", "background noise of 8 px boxes / ideal", ".3f"),
    ("trail_residue", "trail residue (sigma of a pixel)", "+.3f"),
    ("outlier_ppm", "pixels off by more than 6 sigma (ppm)", ".1f"),
    ("false_rejections", "good samples lost beyond noise", "+.2%"),
    ("false_rejections_sky", "  on the sky", "+.2%"),
    ("false_rejections_steep", "  on flanks of stars", "+.2%"),
    ("false_rejections_peaks", "  on peaks of stars", "+.2%"),
    ("level_rms", "level of 32 px boxes, rms (sigma)", ".3f"),
    ("level_max", "  largest (sigma)", ".2f"),
    ("level_step", "  from one box to the next (sigma)", ".3f"),
    ("coverage_error", "wrong pixels of coverage / covered", ".1e"),
)


def main() -> None:
    """Make or find the survey, run both programs in turn, print the figures."""
    in_work_folder(_parser().parse_args(), _compare)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run zemosaic grid and SWarp in turn on one simulated survey.")
    add_common_options(parser)
    add = parser.add_argument
    add("--frames", type=positive_int, default=USUAL_FRAMES, metavar="N", help="frames (default: %(default)s)")
    panels = f"pointings (default: as many as keep the depth, {USUAL_FRAMES} frames on 9 panels, about the same)"
    add("--panels", type=positive_int, nargs=2, metavar=("ROWS", "COLUMNS"), help=panels)
    add("--color", action="store_true", help="GRBG frames; SWarp has three runs, on the debayered planes")
    add("--score", action="store_true", help="compare the mosaics with the truth")
    return parser


def _compare(arguments: argparse.Namespace, work: Path) -> None:
    swarp = _find_swarp()
    print_environment(PACKAGES, SWarp=_version(swarp))
    spec = spec_of(arguments.frames, panels=arguments.panels and tuple(arguments.panels), color=arguments.color)
    survey = find_survey(work, spec)
    ours, output = zemosaic(survey_folder(work, spec) / "frames", work, arguments.workers)
    theirs, mosaics = _swarp(swarp, survey, work, arguments.workers)
    for program in (ours, theirs):
        program.show()
    print("\nOne untimed run of zemosaic: after it, compiled code is cached and frames are in the page cache.")
    ours.run()
    read_once(survey)
    medians = print_usage(run_in_turn([ours, theirs], arguments.runs))
    ratio = medians[ours.name].cpu_s / medians[theirs.name].cpu_s
    sets = f"the sum of {len(mosaics)} runs of SWarp" if len(mosaics) > 1 else "SWarp"
    print(f"CPU seconds of zemosaic over {sets}, {spec.count} frames: {ratio:.2f}\n")
    if arguments.score:
        readers = {ours.name: lambda: _zemosaic_mosaic(ProductPaths(output))}
        readers[theirs.name] = lambda: _swarp_mosaic(mosaics)
        _print_scores({name: _score(read, survey) for name, read in readers.items()})


def _find_swarp() -> str:
    path = shutil.which("SWarp") or shutil.which("swarp")
    if path is None:
        raise SystemExit("SWarp is not installed (Debian, Ubuntu: apt install swarp)")
    return path


def _version(swarp: str) -> str:
    answer = subprocess.run([swarp, "-v"], capture_output=True, text=True, check=False)
    return (answer.stdout + answer.stderr).strip()


def _zemosaic_mosaic(paths: ProductPaths) -> Mosaic:
    return read_image(paths.mosaic, 0)[1], read_image(paths.coverage, 0)[1], paths.mosaic


def _swarp(swarp: str, survey: Survey, work: Path, threads: int) -> tuple[Program, list[tuple[Path, Path]]]:
    """Return SWarp, and the image and weight files that it makes: one run, or one for each colour.

    It reads 16-bit frames as they are; those of a colour survey are debayered before anything is measured.
    """
    folder = work / "swarp"
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"": [frame.path for frame in survey.frames]}
    if survey.spec.color:
        sets = {f"_{name}": paths for name, paths in zip(PLANES, find_planes(work, survey), strict=True)}
    commands, mosaics = [], []
    for suffix, paths in sets.items():
        names = (f"frames{suffix}.txt", f"coadd{suffix}.fits", f"coadd{suffix}.weight.fits")
        frames, image, weight = (folder / name for name in names)
        frames.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        # An empty configuration file: what is not given has the default that is built in.
        options = _swarp_options(image, weight, survey.spec.pixel_scale_arcsec, threads)
        commands.append([swarp, f"@{frames}", "-c", os.devnull, *options])
        mosaics.append((image, weight))
    return Program("SWarp", tuple(commands), folder), mosaics


def _swarp_options(image: Path, weight: Path, scale_arcsec: float, threads: int) -> list[str]:
    """Return the options of a clipped Lanczos-3 coadd at the frames' pixel scale."""
    options = {
        "IMAGEOUT_NAME": image,
        "WEIGHTOUT_NAME": weight,
        "COMBINE_TYPE": "CLIPPED",
        "RESAMPLING_TYPE": "LANCZOS3",
        "SUBTRACT_BACK": "Y",
        "PROJECTION_TYPE": "TAN",
        "PIXELSCALE_TYPE": "MANUAL",
        "PIXEL_SCALE": scale_arcsec,
        "RESAMPLE_DIR": image.parent,
        "VMEM_DIR": image.parent,
        "NTHREADS": threads,
        "WRITE_XML": "N",
        "VERBOSE_TYPE": "QUIET",
    }
    return [word for key, value in options.items() for word in (f"-{key}", str(value))]


def _swarp_mosaic(mosaics: list[tuple[Path, Path]]) -> Mosaic:
    images = np.stack([read_image(image, 0)[1] for image, _ in mosaics])
    weights = np.stack([read_image(weight, 0)[1] for _, weight in mosaics])
    return np.where(weights > 0, images, np.float32(np.nan)), weights, mosaics[0][0]


def _score(read: Callable[[], Mosaic], survey: Survey) -> MosaicScore:
    image, coverage, path = read()
    return score_mosaic(image, coverage, read_product_wcs(path), survey)


def _print_scores(scores: dict[str, MosaicScore]) -> None:
    channels = next(iter(scores.values())).channels
    label = "distance from the truth" + (f" ({', '.join(channels)})" if len(channels) > 1 else "")
    rows = [(text, *(_written(getattr(s, name), form) for s in scores.values())) for name, text, form in SCORES]
    print(table((label, *scores), rows))
    print("SWarp subtracted a background map from every frame and scaled no frame for its transparency;")
    print("zemosaic keeps the sky and scales the frames. So their levels are not answers to one question.")


def _written(value: float | tuple[float, ...], form: str) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(format(v, form) if math.isfinite(v) else "-" for v in values)  # "-": not measurable


if __name__ == "__main__":
    main()
