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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.time import Time
from erfa import ErfaError, ErfaWarning

from zemosaic_fits_products import (
    ImageStream,
    encode_grey,
    encode_picture,
    read_product_header,
    read_rows,
    write_bytes,
    write_hdus,
    write_text,
)
from zemosaic_preview import MAX_PREVIEW_PX, shrink_factor, shrink_rows, stretch, to_uint16
from zemosaic_reproject import Canvas
from zemosaic_stack_core import StackResult
from zemosaic_types import FrameError, Rect, RunResult

SOFTWARE = "ZeMosaic"

#: Quantities of the ledger that have a value a colour.
COLOURED = frozenset({"sky", "noise", "gain", "offset", "weight", "gradient_x", "gradient_y", "match_residual"})

#: Room of a product's header: two blocks; it has about 50 cards.
PRODUCT_CARDS = 71

COLOURS = "rgb"
_BAND_SAMPLES = 8_000_000  # of an image in memory while it is shrunk
_CONTENTS = {
    "image": ("adu", "as the frames, scaled by the match"),
    "weight": ("", "sum of the weights of the samples"),
    "coverage": ("count", "frames after rejection"),
}
_LONGEST_EXPOSURE_S = 86400.0


@dataclass(frozen=True)
class ProductPaths:
    """Where the products of a run go; `stem` is ``mosaic_grid`` in Grid mode, ``mosaic_classic`` in Classic."""

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
    def residual(self) -> Path:
        """How far the frames still disagree after the match, a pixel a coarse cell, in frame noises."""
        return self.folder / f"{self.stem}_residual.fits"

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
    def page(self) -> Path:
        """The report as a page, from ``zemosaic report``."""
        return self.folder / "report.html"

    @property
    def log(self) -> Path:
        """Log of the run."""
        return self.folder / "zemosaic.log"

    @property
    def tiles(self) -> Path:
        """Folder of the tiles."""
        return self.folder / "tiles"

    @property
    def groups(self) -> Path:
        """Which frames went together, in Classic."""
        return self.folder / "groups.json"

    @property
    def master_tiles(self) -> Path:
        """Folder of the master tiles, in Classic."""
        return self.folder / "master_tiles"

    def master_tile(self, number: int) -> Path:
        """Return the file of a master tile; numbers start at 1."""
        return self.master_tiles / f"master_tile_{number:03d}.fits"

    def tile(self, number: int) -> Path:
        """Return the file of a tile; numbers start at 1."""
        return self.tiles / f"tile_{number:04d}.fits"


@dataclass
class LedgerRow:
    """What became of one planned frame; colour values are tuples of one or three.

    `sky`, `noise` and `fwhm_px` are of the frame's own pixels; `gradient_x`, `gradient_y` (a canvas pixel) and
    `match_residual` are in units of the mosaic. `outline` holds the corners, ``x y`` four times, in mosaic pixels
    (0-based), `area_ratio` the sky area of a mosaic pixel over that of a frame pixel. `placed_by` is as in
    `FrameRecord`.
    """

    path: str
    line: int | None = None
    used: bool = False
    reason: str = ""
    frame_id: str = ""
    date_obs: str = ""
    exptime_s: float | None = None
    filter: str = ""
    camera: str = ""
    sky: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    fwhm_px: float | None = None
    elongation: float | None = None
    n_stars: int | None = None
    gain: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    weight: tuple[float, ...] = ()
    gradient_x: tuple[float, ...] = ()
    gradient_y: tuple[float, ...] = ()
    transparency: float | None = None
    match_residual: tuple[float, ...] = ()
    align_residual_px: float | None = None
    outline: str = ""
    area_ratio: float | None = None
    group: int | None = None
    gain_group: int | None = None
    n_tiles: int = 0
    n_samples: int = 0
    n_rejected_low: int = 0
    n_rejected_high: int = 0
    placed_by: str = ""

    @property
    def rejected_fraction(self) -> float | None:
        """Share of the frame's samples that were rejected, None without samples."""
        total = self.n_samples + self.n_rejected_low + self.n_rejected_high
        return (self.n_rejected_low + self.n_rejected_high) / total if total else None


def ledger_text(rows: list[LedgerRow], n_channels: int) -> str:
    """Return the ledger as CSV, a column a colour where a quantity has colours."""
    names = [f.name for f in fields(LedgerRow)]
    suffixes = [f"_{c}" for c in COLOURS] if n_channels == 3 else [""]
    header: list[str] = []
    for name in names:
        header += [name + s for s in suffixes] if name in COLOURED else [name]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, "rejected_fraction"])
    for row in rows:
        cells: list[str] = []
        for name in names:
            value = getattr(row, name)
            if name in COLOURED:
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
    """What headers and the report say about a run; `caveats` are sentences that belong to every product."""

    canvas: Canvas
    n_channels: int
    settings: dict
    rows: list[LedgerRow]
    saturation: float
    flats: tuple[dict, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def used(self) -> list[LedgerRow]:
        """Rows of the frames in the mosaic."""
        return [row for row in self.rows if row.used]

    @cached_property
    def span(self) -> tuple[Time, Time] | None:
        """Start of the first and end of the last exposure, None if no frame has a readable date."""
        return _span_of(self.used)

    @property
    def digest(self) -> str:
        """Short digest of the settings and of every frame's part in the mosaic."""
        names = ("frame_id", "gain", "offset", "weight", "gradient_x", "gradient_y", "outline")
        parts = [[getattr(row, name) for name in names] for row in self.used]
        return hashlib.sha256(repr((self.settings, self.flats, parts)).encode()).hexdigest()[:16]


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
    _add_times(header, summary.span)
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
    for sentence in summary.caveats:
        header.add_comment(sentence.encode("ascii", "replace").decode())
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


def _add_times(header: fits.Header, span: tuple[Time, Time] | None) -> None:
    if span is None:
        return
    first, last = span
    header["DATE-OBS"] = (first.isot, "start of the first exposure")
    header["DATE-BEG"] = (first.isot, "start of the first exposure")
    header["DATE-END"] = (last.isot, "end of the last exposure")
    header["EXPSTART"] = (first.jd, "[JD] start of the first exposure")
    header["EXPEND"] = (last.jd, "[JD] end of the last exposure")


def _span_of(rows: list[LedgerRow]) -> tuple[Time, Time] | None:
    """Return the start of the first and the end of the last exposure; times that make no sense say nothing."""
    if not rows:
        return None
    try:
        starts, ends = _starts_and_ends(rows)
    except (ValueError, ErfaError, ErfaWarning):
        if len(rows) == 1:
            return None
        # One row spoils the list, or the rows write their dates in different ways: parse one by one.
        spans = [span for span in (_span_of([row]) for row in rows) if span is not None]
        return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None
    return starts.min(), ends.max()


def _starts_and_ends(rows: list[LedgerRow]) -> tuple[Time, Time]:
    """Return when the exposures of some rows began and ended, to the millisecond."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ErfaWarning)
        starts = Time([row.date_obs for row in rows], scale="utc")
        exposures = np.array([min(row.exptime_s or 0.0, _LONGEST_EXPOSURE_S) for row in rows])
        return starts, Time((starts + exposures * u.s).isot, scale="utc")


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
def open_products(
    paths: ProductPaths, shape: tuple[int, int], n_channels: int
) -> Iterator[dict[str, ImageStream]]:
    """Open the full-canvas products for writing; those that `finish_products` did not finish are removed.

    Raises
    ------
    OutputError
        If a file cannot be made, or the disk has no room for them.
    """
    full = (n_channels, *shape) if n_channels > 1 else shape
    wanted = {
        "image": (paths.mosaic, np.float32),
        "weight": (paths.weight, np.float32),
        "coverage": (paths.coverage, np.int32),
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(ImageStream(path, full, dtype, n_cards=PRODUCT_CARDS))
            for name, (path, dtype) in wanted.items()
        }


def shrunk_image(path: Path, max_px: int = MAX_PREVIEW_PX) -> np.ndarray:
    """Return the image of a product shrunk to at most `max_px` a side, (c, ny, nx) float32, NaN = no data.

    It is read in bands of rows, so that it need not fit into memory.

    Raises
    ------
    FrameError
        If the file cannot be read.
    """
    header = read_product_header(path)
    if header.get("NAXIS", 0) < 2:
        raise FrameError(f"{path} cannot be read: it holds no image")
    ny, nx, c = header["NAXIS2"], header["NAXIS1"], header.get("NAXIS3", 1)
    factor = shrink_factor((ny, nx), max_px)
    step = factor * max(1, _BAND_SAMPLES // (factor * nx * c))
    bands = []
    for y in range(0, ny, step):
        bands.append(shrink_rows(read_rows(path, y, min(y + step, ny)).reshape(c, -1, nx), factor))
    return np.concatenate(bands, axis=1)


def finish_products(
    paths: ProductPaths, streams: dict[str, ImageStream], summary: RunSummary, picture: np.ndarray
) -> None:
    """Complete the full-canvas products and the preview; they appear when all of them are ready.

    Parameters
    ----------
    paths : ProductPaths
    streams : dict
        Products of `open_products` with all their pixels.
    summary : RunSummary
    picture : ndarray, shape (c, ny, nx), float32
        Means of blocks of the mosaic.

    Raises
    ------
    OutputError
        If the disk refuses, or pixels are missing.
    """
    for name, stream in streams.items():
        unit, what = _CONTENTS[name]
        tables = [inputs_table(summary)] if name == "image" else []
        stream.complete(product_header(summary, unit=unit, what=what), tables)
    with ThreadPoolExecutor(len(streams)) as threads:  # the disk works while the picture is drawn
        flushed = [threads.submit(stream.flush) for stream in streams.values()]
        shown = stretch(picture)
        preview = encode_grey(shown) if len(picture) == 1 else encode_picture(shown, "PNG", compress_level=1)
    for flush in flushed:
        flush.result()
    for stream in streams.values():
        stream.close()
    write_bytes(paths.preview, preview)


def write_viewer(paths: ProductPaths, summary: RunSummary, *, legacy: bool) -> None:
    """Write the 16-bit version of the finished mosaic."""
    rows = read_rows(paths.mosaic, 0, summary.canvas.shape[0])
    header = product_header(summary, unit="adu", what="rounded and clipped to 16 bits; 0 = no data")
    if summary.n_channels == 3 and not legacy:
        header["CHANNELS"] = ("RGB", "the three planes")
    write_hdus(paths.viewer, fits.HDUList([fits.PrimaryHDU(to_uint16(rows), header)]))


def write_residual(paths: ProductPaths, disagreement: np.ndarray, canvas: Canvas) -> None:
    """Write how far frames still disagree after the match: an image on the canvas's coarse cells."""
    header = canvas_header(canvas)
    header["BUNIT"] = ("sigma", "rms between frames, noises of a frame's pixel")
    header["SOFTNAME"] = SOFTWARE
    header["SOFTVERS"] = software_version()
    write_hdus(paths.residual, fits.HDUList([fits.PrimaryHDU(_planar(disagreement), header)]))


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
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Write ``report.json``: versions, settings, times, memory and counts of a run, and `more` of a pipeline."""
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
        "caveats": list(summary.caveats),
        "left_out": [asdict(item) for item in result.left_out],
        **more,
    }
    write_text(paths.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
