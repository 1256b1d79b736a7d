"""The surveys that whole runs are measured on: made once in a work folder, made anew when their code changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.io import fits

import zemosaic_preprocess
import zemosaic_synthetic
from zemosaic_preprocess import bayer_colours, demosaic
from zemosaic_synthetic import Survey, SurveySpec, make_survey, plan_survey, swarp_spec

BAYER = "GRBG"
PLANES = ("R", "G", "B")
USUAL_FRAMES = swarp_spec().count


def spec_of(count: int, *, panels: tuple[int, int] | None = None, color: bool = False) -> SurveySpec:
    """Return the benchmarks' survey with that many frames.

    Without `panels` there are as many as keep the frames a panel, so the depth, about the same.
    """
    usual = swarp_spec()
    panels = panels or near_square(count * usual.n_panels / usual.count)
    return swarp_spec(n_frames=count, panels=panels, color=color)


def near_square(wanted: float) -> tuple[int, int]:
    """Return rows and columns of about as many panels as wanted, near a square."""
    rows = max(1, math.isqrt(int(wanted)))
    return rows, max(1, round(wanted / rows))


def find_survey(work: Path, spec: SurveySpec) -> Survey:
    """Return the survey in the work folder; make its frames unless they are there and of today's code."""
    ny, nx = spec.frame_shape
    colour = BAYER if spec.color else "mono"
    depth = spec.count / spec.n_panels
    print(f"survey: {spec.count} {colour} frames of {nx} x {ny} px, {depth:.1f} a panel, panels {spec.panels}")
    frames = survey_folder(work, spec) / "frames"
    _make_unless_there(frames, _recipe(spec), lambda: make_survey(frames, spec))
    return plan_survey(spec, folder=frames)


def survey_folder(work: Path, spec: SurveySpec) -> Path:
    """Return where a survey and what is made of it lies."""
    rows, columns = spec.panels
    return work / f"survey_{spec.count}_{rows}x{columns}_{'color' if spec.color else 'mono'}"


def find_planes(work: Path, survey: Survey) -> list[list[Path]]:
    """Return the frames of a colour survey as three lists of mono frames, R, G and B; make them if need be.

    They are debayered by zemosaic's own `demosaic` and rounded to 16 bit, like the frames that come from a
    camera; header and WCS are those of the frame.
    """
    folder = survey_folder(work, survey.spec) / "planes"
    folders = [folder / name for name in PLANES]
    recipe = _recipe(survey.spec) + _code_of(zemosaic_preprocess)
    _make_unless_there(folder, recipe, lambda: [_debayer(frame.path, folders) for frame in survey.frames])
    return [[place / frame.name for frame in survey.frames] for place in folders]


def _debayer(path: Path, folders: list[Path]) -> None:
    with fits.open(path) as hdus:
        raw, header = hdus[0].data.astype(np.float32), hdus[0].header.copy()
    header.remove("BAYERPAT")
    for folder, plane in zip(folders, demosaic(raw, bayer_colours(BAYER)), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(np.rint(plane), 0, 65535).astype(np.uint16)
        fits.PrimaryHDU(pixels, header).writeto(folder / path.name, overwrite=True)


def _recipe(spec: SurveySpec) -> str:
    return f"{spec}\n{_code_of(zemosaic_synthetic)}"


def _code_of(module: object) -> str:
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest() + "\n"


def _make_unless_there(folder: Path, recipe: str, make: Callable[[], object]) -> None:
    """Fill a folder anew unless the mark beside it says that it holds all of this recipe's frames."""
    mark = folder.with_name(f"{folder.name}_made_from.txt")
    if mark.exists() and mark.read_text(encoding="utf-8") == recipe:
        return
    mark.unlink(missing_ok=True)
    for path in folder.rglob("Light_*.fit"):
        path.unlink()
    print(f"making its {folder.name} ...", flush=True)
    make()
    mark.write_text(recipe, encoding="utf-8")


def read_once(survey: Survey) -> None:
    """Read all frames, so that they are in the page cache for whoever is measured first."""
    for frame in survey.frames:
        frame.path.read_bytes()
