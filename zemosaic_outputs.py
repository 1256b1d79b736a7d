"""The product set of a run: names, headers, tile files, ledger, report. The same for every pipeline.

What a file holds is decided here; how it reaches the disk is `zemosaic_fits_products`'s business.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.time import Time
from erfa import ErfaError, ErfaWarning

from zemosaic_fits_products import ImageStream, read_rows, write_hdus, write_png, write_text
from zemosaic_preview import shrink_factor, shrink_rows, stretch, to_uint16
from zemosaic_reproject import Canvas
from zemosaic_stack_core import StackResult
from zemosaic_types import Rect, RunResult

SOFTWARE = "ZeMosaic"

_COLOURS = "rgb"
_BAND_ROWS = 64
_LONGEST_EXPOSURE_S = 86400.0


@dataclass(frozen=True)
class ProductPaths:
    """Where the products of a run go; `stem` is ``mosaic_grid`` in Grid mode."""

    folder: Path
    stem: str = "mosaic_grid"

    @property
    def mosaic(self) -> Path:
        """The mosaic."""
        return self.folder / f"{self.stem}.fits"

    @property
    def coverage(self) -> Path:
        """Frames per pixel after rejection."""
        return self.folder / f"{self.stem}_coverage.fits"

    @property
    def weight(self) -> Path:
        """Sum of weights."""
        return self.folder / f"{self.stem}_weight.fits"

    @property
    def viewer(self) -> Path:
        """16-bit version for viewers."""
        return self.folder / f"{self.stem}_viewer.fits"

    @property
    def preview(self) -> Path:
        """Stretched picture."""
        return self.folder / f"{self.stem}_preview.png"

    @property
    def ledger(self) -> Path:
        """A row a planned frame."""
        return self.folder / "ledger.csv"

    @property
    def report(self) -> Path:
        """Numbers of the run."""
        return self.folder / "report.json"

    @property
    def log(self) -> Path:
        """Log of the run."""
        return self.folder / "zemosaic.log"

    @property
    def tiles(self) -> Path:
        """Folder of the tiles."""
        return self.folder / "tiles"

    def tile(self, number: int) -> Path:
        """Return the file of a tile; numbers start at 1."""
        return self.tiles / f"tile_{number:04d}.fits"


@dataclass
class LedgerRow:
    """What became of one planned frame; colour values are tuples of one or three."""

    path: str
    line: int | None = None
    used: bool = False
    reason: str = ""
    frame_id: str = ""
    date_obs: str = ""
    exptime_s: float | None = None
    filter: str = ""
    sky: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    fwhm_px: float | None = None
    elongation: float | None = None
    n_stars: int | None = None
    gain: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    weight: tuple[float, ...] = ()
    group: int | None = None
    gain_group: int | None = None
    n_tiles: int = 0
    n_samples: int = 0
    n_rejected_low: int = 0
    n_rejected_high: int = 0

    @property
    def rejected_fraction(self) -> float | None:
        """Share of the frame's samples that were rejected, None without samples."""
        total = self.n_samples + self.n_rejected_low + self.n_rejected_high
        return (self.n_rejected_low + self.n_rejected_high) / total if total else None


def ledger_text(rows: list[LedgerRow], n_channels: int) -> str:
    """Return the ledger as CSV, a column a colour where a quantity has colours."""
    names = [f.name for f in fields(LedgerRow)]
    coloured = {"sky", "noise", "gain", "offset", "weight"}
    suffixes = [f"_{c}" for c in _COLOURS] if n_channels == 3 else [""]
    header: list[str] = []
    for name in names:
        header += [name + s for s in suffixes] if name in coloured else [name]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, "rejected_fraction"])
    for row in rows:
        cells: list[str] = []
        for name in names:
            value = getattr(row, name)
            if name in coloured:
                value = value or (None,) * len(suffixes)
                cells += [_cell(v) for v in value[: len(suffixes)]]
            else:
                cells.append(_cell(value))
        writer.writerow([*cells, _cell(row.rejected_fraction)])
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class RunSummary:
    """What headers and the report say about a run."""

    canvas: Canvas
    n_channels: int
    settings: dict
    rows: list[LedgerRow]
    saturation: float
    flats: tuple[dict, ...] = ()

    @property
    def used(self) -> list[LedgerRow]:
        """Rows of the frames in the mosaic."""
        return [row for row in self.rows if row.used]

    @property
    def digest(self) -> str:
        """Short digest of the settings and of every frame's part in the mosaic."""
        parts = [(row.frame_id, row.gain, row.offset, row.weight) for row in self.used]
        return hashlib.sha256(repr((self.settings, parts)).encode()).hexdigest()[:16]


def software_version() -> str:
    """Return the installed version of ZeMosaic."""
    return metadata.version("zemosaic")


def product_header(summary: RunSummary, *, unit: str, what: str) -> fits.Header:
    """Return the header of a full-canvas product: WCS, times, counts, provenance.

    Camera serial numbers and the observer's position are not copied.
    """
    header = canvas_header(summary.canvas)
    header["BUNIT"] = (unit, what)
    header["ROWORDER"] = ("BOTTOM-UP", "first row is the bottom of the picture")
    used = summary.used
    header["NCOMBINE"] = (len(used), "frames in the mosaic")
    header["STACKCNT"] = (len(used), "frames in the mosaic")
    exposures = [row.exptime_s for row in used if row.exptime_s]
    if exposures:
        header["EXPTIME"] = (float(np.median(exposures)), "[s] median exposure of a frame")
        header["LIVETIME"] = (float(np.sum(exposures)), "[s] exposure of all frames together")
        header["TOTALEXP"] = (float(np.sum(exposures)), "[s] exposure of all frames together")
    _add_times(header, used)
    if np.isfinite(summary.saturation):
        header["SATURATE"] = (summary.saturation, "level at which the frames saturate")
    _add_common_text(header, used)
    settings = summary.settings
    header["SOFTNAME"] = (SOFTWARE, "software that made this file")
    header["SOFTVERS"] = (software_version(), "its version")
    header["SOFTDATE"] = (datetime.now(UTC).strftime("%Y-%m-%d"), "date of the run")
    header["COMBINET"] = (
        f"{settings['reject']}+{settings['combine']}".upper(),
        "combination of a pixel's samples",
    )
    header["RESAMPT1"] = (settings["kernel"].upper(), "resampling along x")
    header["RESAMPT2"] = (settings["kernel"].upper(), "resampling along y")
    header["CFGDIGST"] = (summary.digest, "digest of settings and frames")
    kappas = f"kappa {settings['kappa_low']:g}/{settings['kappa_high']:g}, spread {settings['spread']}"
    for stage, detail in (("normalise", ""), ("weight", ""), ("reject", f", {kappas}"), ("combine", "")):
        header.add_history(f"{SOFTWARE} {stage}: {settings[stage]}{detail}")
    header.add_history(f"{SOFTWARE} resample: {settings['kernel']}, canvas {settings['orientation']}")
    return header


def canvas_header(canvas: Canvas) -> fits.Header:
    """Return the WCS cards of a canvas: TAN, PC and CDELT, ICRS, no distortion."""
    header = fits.Header()
    (ra, dec), (px, py) = canvas.crval_deg, canvas.crpix
    pc = canvas.wcs().wcs.get_pc()
    header["WCSAXES"] = 2
    for axis, kind, value, pixel, step in (
        (1, "RA---TAN", ra, px, -canvas.scale_deg),
        (2, "DEC--TAN", dec, py, canvas.scale_deg),
    ):
        header[f"CTYPE{axis}"] = kind
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = value
        header[f"CRPIX{axis}"] = pixel
        header[f"CDELT{axis}"] = step
    for i in (0, 1):
        for j in (0, 1):
            header[f"PC{i + 1}_{j + 1}"] = float(pc[i, j])
    header["RADESYS"] = "ICRS"
    header["EQUINOX"] = 2000.0
    return header


def _add_times(header: fits.Header, used: list[LedgerRow]) -> None:
    """Write the span of the observations; frames without a readable date say nothing."""
    starts = []
    for row in used:
        moments = _start_and_end(row)
        if moments is not None:
            starts.append(moments)
    if not starts:
        return
    first = min(start for start, _ in starts)
    last = max(end for _, end in starts)
    header["DATE-OBS"] = (first.isot, "start of the first exposure")
    header["DATE-BEG"] = (first.isot, "start of the first exposure")
    header["DATE-END"] = (last.isot, "end of the last exposure")
    header["EXPSTART"] = (first.jd, "[JD] start of the first exposure")
    header["EXPEND"] = (last.jd, "[JD] end of the last exposure")


def _start_and_end(row: LedgerRow) -> tuple[Time, Time] | None:
    """Return when a frame's exposure began and ended, None if its times make no sense."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ErfaWarning)
        try:
            start = Time(row.date_obs, scale="utc")
            end = start + min(row.exptime_s or 0.0, _LONGEST_EXPOSURE_S) * u.s
            return start, Time(end.isot, scale="utc")
        except (ValueError, ErfaError, ErfaWarning):
            return None


def _add_common_text(header: fits.Header, used: list[LedgerRow]) -> None:
    filters = {row.filter for row in used if row.filter}
    if len(filters) == 1:
        header["FILTER"] = (filters.pop(), "filter of every frame")


def inputs_table(summary: RunSummary) -> fits.BinTableHDU:
    """Return the table of the frames in the mosaic (extension INPUTS)."""
    used = summary.used
    c = summary.n_channels

    def numbers(name: str) -> fits.Column:
        values = np.array([getattr(row, name) for row in used], dtype=np.float32).reshape(len(used), c)
        return fits.Column(name.upper(), f"{c}E", array=values)

    def text(name: str) -> fits.Column:
        values = [getattr(row, name).encode("ascii", "replace").decode() for row in used]
        return fits.Column(name.upper(), f"{max([len(v) for v in values] + [1])}A", array=values)

    columns = [text("frame_id"), text("date_obs"), text("filter")]
    exposure = np.array([row.exptime_s or np.nan for row in used], dtype=np.float32)
    columns.append(fits.Column("EXPTIME", "E", unit="s", array=exposure))
    columns += [numbers(name) for name in ("sky", "noise", "gain", "offset", "weight")]
    rejected = np.array([row.rejected_fraction or 0.0 for row in used], dtype=np.float32)
    columns.append(fits.Column("REJECTED", "E", array=rejected))
    return fits.BinTableHDU.from_columns(columns, name="INPUTS")


def tile_hdus(result: StackResult, canvas: Canvas, rect: Rect, core: Rect, number: int) -> fits.HDUList:
    """Return the file of a tile: image, WEIGHT and COVERAGE, cut from the canvas's pixel grid.

    `rect` is what the file holds, `core` the part of it that enters the mosaic; the cards X0, Y0 and CX0.. CY1
    give both in canvas pixels (0-based, half-open).
    """
    header = canvas_header(canvas.window(rect))
    header["BUNIT"] = "adu"
    header["TILE"] = (number, "number of the tile")
    header["X0"] = (rect.x0, "canvas column of the first pixel, 0-based")
    header["Y0"] = (rect.y0, "canvas row of the first pixel, 0-based")
    for name, value in (("CX0", core.x0), ("CX1", core.x1), ("CY0", core.y0), ("CY1", core.y1)):
        header[name] = (value, "part that enters the mosaic, 0-based")
    header["NFRAMES"] = (int((result.tally.sum(axis=1) > 0).sum()), "frames with samples here")
    header["SOFTNAME"] = SOFTWARE
    header["SOFTVERS"] = software_version()
    wcs = canvas_header(canvas.window(rect))
    return fits.HDUList(
        [
            fits.PrimaryHDU(_planar(result.image), header),
            fits.ImageHDU(_planar(result.weight), wcs, name="WEIGHT"),
            fits.ImageHDU(_planar(result.coverage), wcs, name="COVERAGE"),
        ]
    )


def _planar(array: np.ndarray) -> np.ndarray:
    """Return (c, ny, nx), or (ny, nx) for one channel."""
    return array[0] if array.shape[0] == 1 else array


@contextmanager
def open_products(paths: ProductPaths, summary: RunSummary) -> Iterator[dict[str, ImageStream]]:
    """Open the full-canvas products for writing; they appear, complete, when the block ends without error."""
    shape = summary.canvas.shape
    full = (summary.n_channels, *shape) if summary.n_channels > 1 else shape
    wanted = {
        "image": (paths.mosaic, np.float32, "adu", "as the frames, scaled by the match"),
        "weight": (paths.weight, np.float32, "", "sum of the weights of the samples"),
        "coverage": (paths.coverage, np.int32, "count", "frames after rejection"),
    }
    with ExitStack() as stack:
        streams = {}
        for name, (path, dtype, unit, what) in wanted.items():
            header = product_header(summary, unit=unit, what=what)
            streams[name] = stack.enter_context(ImageStream(path, header, full, dtype))
        yield streams
        streams["image"].close([inputs_table(summary)])


def write_pictures(paths: ProductPaths, summary: RunSummary, *, uint16: bool, legacy: bool) -> None:
    """Write the preview and, if asked for, the 16-bit viewer file, from the finished mosaic."""
    shape = summary.canvas.shape
    factor = shrink_factor(shape)
    bands = []
    for y in range(0, shape[0], factor * _BAND_ROWS):
        rows = read_rows(paths.mosaic, y, min(y + factor * _BAND_ROWS, shape[0]))
        bands.append(shrink_rows(rows.reshape(summary.n_channels, -1, shape[1]), factor))
    write_png(paths.preview, stretch(np.concatenate(bands, axis=1)))
    if uint16:
        _write_viewer(paths, summary, legacy)


def _write_viewer(paths: ProductPaths, summary: RunSummary, legacy: bool) -> None:
    rows = read_rows(paths.mosaic, 0, summary.canvas.shape[0])
    header = product_header(summary, unit="adu", what="rounded and clipped to 16 bits; 0 = no data")
    if summary.n_channels == 3 and not legacy:
        header["CHANNELS"] = ("RGB", "the three planes")
    write_hdus(paths.viewer, fits.HDUList([fits.PrimaryHDU(to_uint16(rows), header)]))


def write_ledger(paths: ProductPaths, summary: RunSummary) -> None:
    """Write ``ledger.csv``."""
    write_text(paths.ledger, ledger_text(summary.rows, summary.n_channels))


def _finite(values: dict) -> dict:
    """Return values as JSON knows them: None for what is not known."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def write_report(
    paths: ProductPaths,
    summary: RunSummary,
    result: RunResult,
    *,
    peak_memory_bytes: dict[str, int],
    n_tiles: int,
) -> None:
    """Write ``report.json``: versions, settings, times, memory and counts of a run."""
    libraries = ("numpy", "astropy", "scipy", "numba", "reproject", "sep", "shapely")
    versions = {"zemosaic": software_version(), "python": platform.python_version()}
    report = {
        "software": versions | {name: metadata.version(name) for name in libraries},
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "settings": summary.settings,
        "digest": summary.digest,
        "canvas": asdict(summary.canvas),
        "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes,
        "frames": {"planned": result.n_planned, "used": result.n_used},
        "flats": [_finite(flat) for flat in summary.flats],
        "tiles": {"total": n_tiles, "failed": [asdict(failure) for failure in result.failed_tiles]},
        "left_out": [asdict(item) for item in result.left_out],
    }
    write_text(paths.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
