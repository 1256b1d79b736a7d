"""The demonstration: a small synthetic survey, its mosaic, and how far that is from the truth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from grid_mode import GridSettings, run_grid
from zemosaic_events import CancelToken
from zemosaic_fits_products import ensure_writable_folder, read_image, read_product_wcs
from zemosaic_outputs import ProductPaths
from zemosaic_synthetic import demo_spec, make_survey
from zemosaic_truth import MosaicScore, score_mosaic
from zemosaic_types import OutputError, RunResult

_MARKER = "made_by_zemosaic_demo"


def run_demo(
    folder: Path,
    settings: GridSettings,
    *,
    listener: Callable | None = None,
    cancel: CancelToken | None = None,
) -> tuple[RunResult, MosaicScore]:
    """Make the survey in ``folder/frames`` and its mosaic in ``folder/mosaic``; compare it with the truth.

    A folder that an earlier demo made is replaced.

    Raises
    ------
    OutputError
        If the folder holds something else.
    """
    frames = _fresh_folder(folder) / "frames"
    survey = make_survey(frames, demo_spec())
    output = folder / "mosaic"
    result = run_grid(frames, output, replace(settings, overwrite=True), listener=listener, cancel=cancel)
    paths = ProductPaths(output)
    _, mosaic = read_image(paths.mosaic, 0)
    _, coverage = read_image(paths.coverage, 0)
    return result, score_mosaic(mosaic, coverage, read_product_wcs(paths.mosaic), survey)


def _fresh_folder(folder: Path) -> Path:
    marker = folder / _MARKER
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise OutputError(f"{folder} holds something that the demo did not make; name another folder")
        for part in ("frames", "mosaic"):
            shutil.rmtree(folder / part, ignore_errors=True)
    ensure_writable_folder(folder)
    marker.touch()
    return folder
