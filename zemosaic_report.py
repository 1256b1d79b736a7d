"""The report of a finished run: its products are read here, judged by its ledger and written as ``report.html``.

Only products in the output folder are read, never a frame. The page names frames relative to their common folder
and tells no absolute path.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits

from zemosaic_drawings import ICE, VIRIDIS, coloured, css_gradient, number
from zemosaic_fits_products import encode_picture, read_product_header, write_text
from zemosaic_harm import Levels
from zemosaic_ledger import AS_SUGGESTED, Judgement, judge, read_ledger
from zemosaic_outputs import LedgerRow, ProductPaths, shrunk_image
from zemosaic_preview import shrink_factor, stretch
from zemosaic_report_page import MapFigure, PageContent, page, suggestion_lines
from zemosaic_types import PlanError

_PICTURE_PX = 1600
_MAP_PX = 640
_COVERAGE = "_coverage.fits"
_LISTED_REASONS = 10
_MOST_CAMERAS = 4
_HIDDEN_SETTINGS = frozenset({"gpu_decided_by", "overwrite", "workers"})
# The folders in front of a file's name, wherever an absolute path begins.
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\\/\n;:*?\"<>|]+[\\/])+")


def write_page(folder: Path) -> list[str]:
    """Write ``report.html`` beside the products of a run.

    Parameters
    ----------
    folder : Path
        Output folder of a finished run.

    Returns
    -------
    list of str
        Where the page is and what it suggests, a line each.

    Raises
    ------
    PlanError
        If there is no finished run in the folder.
    FrameError, OutputError
        If a product cannot be read, or the page not written.
    """
    run = _read_run(folder)
    paths = find_products(folder, run)
    rows, n_channels = read_ledger(paths.ledger)
    judgement = judge(rows, n_channels)
    content = _content(paths, run, rows, judgement)
    write_text(paths.page, page(content))
    lines = suggestion_lines(judgement, content.names)
    told = [f"report:     {paths.page}", f"suggestion: {lines[0]}"]
    told += [f"  {line}" for line in lines[1 : _LISTED_REASONS + 1]]
    if len(lines) > _LISTED_REASONS + 1:
        told.append(f"  and {len(lines) - _LISTED_REASONS - 1} more")
    if unusual := judgement.unusual():
        told.append(f"unusual, but not worth leaving out: {len(unusual)}, named in the report")
    if judgement.suggested:
        command = "classic" if paths.stem.endswith("classic") else "grid"
        told.append(f"to act on it: zemosaic {command} INPUT OUTPUT --drop-suggested --overwrite")
    return told


def _read_run(folder: Path) -> dict:
    """Return what ``report.json`` says."""
    path = ProductPaths(folder).report
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"no finished run in {folder}: {path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path} is damaged: {error}") from error
    missing = {"canvas", "frames", "tiles", "settings", "digest"} - set(run if isinstance(run, dict) else ())
    if missing:
        raise PlanError(f"{path} is not the report of a run: it lacks {', '.join(sorted(missing))}")
    return run


def find_products(folder: Path, run: dict) -> ProductPaths:
    """Return the products of the run that ``report.json`` describes, whatever pipeline made them.

    Raises
    ------
    PlanError
        If they are not there.
    """
    stems = sorted(path.name.removesuffix(_COVERAGE) for path in folder.glob(f"*{_COVERAGE}"))
    found = [paths for paths in (ProductPaths(folder, stem) for stem in stems) if paths.mosaic.is_file()]
    if len(found) > 1:
        found = [p for p in found if read_product_header(p.mosaic).get("CFGDIGST") == run["digest"]]
    if not found:
        raise PlanError(f"{folder} has no mosaic and coverage map of the run that report.json describes")
    return found[0]


def _content(paths: ProductPaths, run: dict, rows: list[LedgerRow], judgement: Judgement) -> PageContent:
    canvas = run["canvas"]
    shape, scale = tuple(canvas["shape"]), 3600.0 * canvas["scale_deg"]
    header = read_product_header(paths.mosaic)
    coverage = shrunk_image(paths.coverage, _MAP_PX).mean(axis=0)
    names = dict(zip((row.path for row in rows), names_of([row.path for row in rows]), strict=True))
    left_out = [(names[row.path], without_folders(row.reason)) for row in rows if not row.used]
    left_out += [(names[row.path], without_folders(row.reason)) for row in rows if row.used and row.reason]
    failed = [(str(f["tile"]), without_folders(f["reason"])) for f in run["tiles"]["failed"]]
    return PageContent(
        title=f"Report of {paths.stem}",
        maker=f"ZeMosaic {run.get('software', {}).get('zemosaic', '')}, {header.get('SOFTDATE', '')}",
        facts=_facts(run, header, rows, judgement.levels, coverage, scale),
        maps=_maps(paths, coverage, canvas, outlined=bool(judgement.suggested)),
        shape=shape,
        scale_arcsec=scale,
        judgement=judgement,
        names=[names[row.path] for row in judgement.rows],
        left_out=left_out,
        failed_tiles=failed,
        settings=[(k, without_folders(str(v))) for k, v in run["settings"].items() if k not in _HIDDEN_SETTINGS],
    )


def names_of(paths: Sequence[str]) -> list[str]:
    """Return files relative to the folder that they have in common; their bare names if there is none."""
    plain = [path.replace("\\", "/") for path in paths]
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in plain])  # noqa: PTH120 - not of this system
    except ValueError:  # drives, or relative and absolute ones
        return [path.rsplit("/", 1)[-1] for path in plain]
    return [path.removeprefix(common).lstrip("/") for path in plain]


def without_folders(text: str) -> str:
    """Return a sentence in which absolute paths are cut down to the names of their files."""
    return _FOLDERS.sub("", text)


# ---- what is shown ---------------------------------------------------------------------------------------


def _facts(
    run: dict,
    header: fits.Header,
    rows: list[LedgerRow],
    levels: Levels,
    coverage: np.ndarray,
    scale_arcsec: float,
) -> list[tuple[str, str]]:
    used = [row for row in rows if row.used]
    exposure = sum(row.exptime_s or 0.0 for row in used)
    ny, nx = run["canvas"]["shape"]
    wide, tall = (size * scale_arcsec / 3600.0 for size in (nx, ny))
    ra, dec = run["canvas"]["crval_deg"]
    centre = SkyCoord(ra, dec, unit="deg").to_string("hmsdms", precision=0)
    inside = coverage[coverage > 0]
    depth = f"{float(np.median(inside)):.1f} frames" if inside.size else "none"
    dropped = sum(row.reason.startswith(AS_SUGGESTED) for row in rows)
    as_told = f", {dropped:,} left out as suggested" if dropped else ""
    return [
        ("frames", f"{len(used):,} of {len(rows):,} used{as_told}"),
        ("exposure together", _duration(exposure)),
        ("median depth", depth),
        ("size", f"{nx:,} × {ny:,} px, {wide:.2f}° × {tall:.2f}°"),
        ("scale", f"{scale_arcsec:.3f}″ a pixel"),
        ("projection centre (ICRS)", centre),
        ("orientation", _orientation(run["canvas"].get("angle_deg", 0.0))),
        ("noise of a pixel, rms", f"{number(levels.noise)} ADU"),
        ("seams, rms", f"{number(levels.seam)} ADU" if levels.seam > 0 else "not known"),
        ("FWHM", f"{number(levels.fwhm_px)} px, {number(levels.fwhm_px * scale_arcsec)}″"),
        ("observed (UTC)", _span(header)),
        *_parts(used),
        ("run", f"{_duration(sum(run.get('seconds', {}).values()))}, {_memory(run)}"),
    ]


def _parts(used: list[LedgerRow]) -> list[tuple[str, str]]:
    """Return what the frames fall into, where they do: cameras, groups that share no sky, or no stars."""
    cameras = Counter(row.camera for row in used if row.camera)
    parts = [("cameras", "; ".join(f"{name}: {n:,}" for name, n in cameras.most_common(_MOST_CAMERAS)))]
    for what, name in (("group", "groups that share no sky"), ("gain_group", "groups that share too few stars")):
        numbers = Counter(getattr(row, what) for row in used if getattr(row, what) is not None)
        parts.append((name, f"{len(numbers):,}, the largest of {max(numbers.values(), default=0):,} frames"))
        if len(numbers) < 2:
            parts.pop()
    return parts if len(cameras) > 1 else parts[1:]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _memory(run: dict) -> str:
    peaks = run.get("peak_memory_bytes", {"": 0}).values()
    return f"at most {max(peaks) / 1024**2:.0f} MB a process"


def _orientation(angle_deg: float) -> str:
    return "north up, east left" if abs(angle_deg) < 0.01 else f"turned by {angle_deg:.1f}° from north up"


def _span(header: fits.Header) -> str:
    begin, end = (str(header.get(key, ""))[:16].replace("T", " ") for key in ("DATE-BEG", "DATE-END"))
    return f"{begin} to {end[11:] if end[:10] == begin[:10] else end}" if begin else "not known"


def _maps(paths: ProductPaths, coverage: np.ndarray, canvas: dict, *, outlined: bool) -> list[MapFigure]:
    shape = tuple(canvas["shape"])
    whole = (0.0, 0.0, float(shape[1]), float(shape[0]))
    picture = stretch(shrunk_image(paths.mosaic, _PICTURE_PX))
    mosaic = _data_uri(encode_picture(picture[..., :3], "JPEG", quality=88), "jpeg")
    note = "Stretched for the eye." + (" Outlined: frames suggested to be left out." if outlined else "")
    figures = [MapFigure("Mosaic", note, mosaic, whole)]
    top = float(coverage.max())
    depth = coloured(np.where(coverage > 0, coverage, np.nan), (0.0, top), VIRIDIS)
    note = "Frames a pixel after rejection, mean of the colours."
    figures.append(
        MapFigure("Coverage", note, _png(depth), whole, css_gradient(VIRIDIS), "0", f"{top:.0f} frames")
    )
    if paths.residual.is_file():
        figures.append(_residual_map(paths.residual, canvas))
    return figures


def _residual_map(path: Path, canvas: dict) -> MapFigure:
    planes = shrunk_image(path, _MAP_PX)
    known = np.isfinite(planes)
    total = np.where(known, np.square(planes), 0.0).sum(axis=0)
    values = np.where(known.any(axis=0), np.sqrt(total / np.maximum(known.sum(axis=0), 1)), np.nan)
    top = float(np.nanpercentile(values, 99.5)) if known.any() else 1.0
    note = "How far the frames still disagree after the match, in noises of a frame’s pixel; rms of the colours."
    return MapFigure(
        "Residual background",
        note,
        _png(coloured(values, (0.0, top), ICE)),
        _box_on_canvas(read_product_header(path), values.shape, canvas),
        css_gradient(ICE),
        "0",
        f"{number(top, 2)} σ",
        pixelated=True,
    )


def _box_on_canvas(header: fits.Header, small: tuple[int, int], canvas: dict) -> tuple[float, float, float, float]:
    """Return where a small map lies on the canvas: as its WCS says, else all over it."""
    ny, nx = canvas["shape"]
    if not {"CDELT2", "CRPIX1", "CRPIX2"} <= set(header):
        return 0.0, 0.0, float(nx), float(ny)
    cell = abs(header["CDELT2"]) / canvas["scale_deg"]
    x0, y0 = (canvas["crpix"][k] - 0.5 - cell * (header[f"CRPIX{k + 1}"] - 0.5) for k in (0, 1))
    pixel = cell * shrink_factor((header["NAXIS2"], header["NAXIS1"]), _MAP_PX)
    return x0, ny - y0 - pixel * small[0], pixel * small[1], pixel * small[0]


def _png(rgba: np.ndarray) -> str:
    return _data_uri(encode_picture(rgba, "PNG", compress_level=9), "png")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
