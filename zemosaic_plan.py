"""The plan of a run: which frames the user wants in the mosaic, and what their headers say.

``stack_plan.csv`` is read and written here, a folder is scanned for a new one, and the rows of a plan become
the `FrameRecord`s that the rest of a run works with. Headers are read, pixels never.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PureWindowsPath

from zemosaic_events import CancelToken, tagged_logger
from zemosaic_fits_io import frame_wcs, read_frame_header
from zemosaic_fits_products import write_text
from zemosaic_plan_table import ALIASES, FITS_NAME, PlanTable, clean_cell, read_table
from zemosaic_sky_systems import check_system, to_icrs
from zemosaic_types import FrameError, FrameHeader, FrameRecord, LeftOut, PlanError, PlanRow

logger = tagged_logger("ZeMosaicWorker.plan")

PLAN_COLUMNS = tuple(ALIASES)
_NO_NAME = "the name is not valid UTF-8 and cannot be written into a plan; rename the file"
NO_WCS = "no celestial WCS in the file or beside it"

Progress = Callable[[int, int], None]
ReadHeader = Callable[[Path], FrameHeader]

_TEXT_COLUMNS = ("batch_id", "mount", "bortle", "telescope", "session_date", "filter")
_MAX_REASONS = 3
_OWN_MOSAIC = re.compile(r"mosaic_(grid|classic).*\.fits$", re.IGNORECASE)
_OWN_TILE = re.compile(r"(master_)?tile_.*\.fits$", re.IGNORECASE)
_SERIAL = re.compile(r"[_#].*|[\s-]*\b(?=[a-f]*\d)[0-9a-f]{6,}\b", re.IGNORECASE)
_LIMITS = {"exposure": (math.nextafter(0, 1), math.inf), "ra": (0, 360), "dec": (-90, 90)}
_MOUNTS = {
    **dict.fromkeys(("EQ", "EQUATORIAL", "GEM", "GERMAN", "1"), "EQ"),
    **dict.fromkeys(("ALTZ", "ALTAZ", "ALTAZM", "ALTITUDEAZIMUTH", "0"), "ALTZ"),
}


# ---- reading a plan -------------------------------------------------------------------------------------


def read_plan(csv_path: Path) -> tuple[list[PlanRow], list[LeftOut]]:
    """Read a plan.

    Columns are found by the names in `ALIASES` in any case; a file without a header is accepted when its
    first row holds the path of a FITS file. A number that cannot be read is logged and taken as not given.

    Parameters
    ----------
    csv_path : Path
        The file: UTF-8 (Windows-1252 for lines that are not) or UTF-16 with a byte order mark, with cells
        separated by comma, semicolon, bar, tab or space.

    Returns
    -------
    rows : list of PlanRow
        One row a file that exists, in the order of the plan, each with an absolute path; never empty.
    left_out : list of LeftOut
        Rows that cannot be used, with their line number: no path, no such file, or a file named before.

    Raises
    ------
    PlanError
        If the file cannot be read, is empty, has no column of paths, or has no usable row.
    """
    table = read_table(csv_path)
    folder = csv_path.absolute().parent
    rows: list[PlanRow] = []
    left_out: list[LeftOut] = []
    first_lines: dict[Path, int] = {}
    n_elsewhere = 0
    for line, cells in table.records:
        text = table.cell(cells, "file_path")
        path, as_written = _resolve(text, folder)
        if path is None:
            reason = f"file not found: {text}" if text else "no file path"
            left_out.append(LeftOut(text or f"{csv_path.name} line {line}", reason, line))
            continue
        first = first_lines.setdefault(_real(path), line)
        if first != line:
            left_out.append(LeftOut(text, f"duplicate of line {first}", line, harmless=True))
            continue
        n_elsewhere += not as_written
        rows.append(_plan_row(table, line, cells, _plain(path)))
    if n_elsewhere:
        logger.info("%d Windows paths were found below the folder of %s", n_elsewhere, csv_path.name)
    if not rows:
        raise PlanError(_no_usable(f"{csv_path} has no usable row", left_out))
    return rows, left_out


def _no_usable(what: str, left_out: Sequence[LeftOut]) -> str:
    """Return a sentence with the first few reasons."""
    reasons = [
        (f"line {item.line}: " if item.line else f"{item.path}: ") + item.reason
        for item in left_out[:_MAX_REASONS]
    ]
    if len(left_out) > _MAX_REASONS:
        reasons.append(f"and {len(left_out) - _MAX_REASONS} more")
    return f"{what}: {'; '.join(reasons)}"


def _plan_row(table: PlanTable, line: int, cells: list[str], path: Path) -> PlanRow:
    texts = {name: table.cell(cells, name) for name in _TEXT_COLUMNS}
    numbers = {name: _number(table, line, cells, name) for name in ("exposure", "order", "ra", "dec")}
    order = numbers["order"]
    return PlanRow(
        line=line,
        path=path,
        **texts | {"mount": _mount(texts["mount"])},
        exposure_s=numbers["exposure"],
        order=None if order is None else int(order),
        ra_deg=numbers["ra"],
        dec_deg=numbers["dec"],
    )


def _number(table: PlanTable, line: int, cells: list[str], column: str) -> float | None:
    """Return the number in a column, or None; a text that is no sensible number is logged."""
    text = table.cell(cells, column)
    if not text:
        return None
    try:
        # A semicolon file comes from a country with decimal commas.
        value = float(text.replace(",", ".") if table.delimiter == ";" else text)
    except ValueError:
        value = math.nan
    low, high = _LIMITS.get(column, (-math.inf, math.inf))
    if low <= value <= high and math.isfinite(value) and (column != "order" or value.is_integer()):
        return value
    logger.warning("line %d of the plan: %s %r is not usable and is ignored", line, column, text)
    return None


def _mount(text: str) -> str:
    """Return ``"EQ"``, ``"ALTZ"`` or, for anything else, an empty text."""
    return _MOUNTS.get(re.sub(r"[\s/_-]", "", text).upper(), "")


# ---- paths ----------------------------------------------------------------------------------------------


def _resolve(text: str, folder: Path) -> tuple[Path | None, bool]:
    """Return the file a plan's text means, None without one, and whether it is where the text says.

    A path of another machine's Windows is looked for below the plan's folder by its tail: first all of it
    after the drive, then less and less, and the bare name last.
    """
    if not text:
        return None, False
    path = folder / text
    if _is_file(path):
        return path, True
    windows = PureWindowsPath(text)
    if "\\" not in text and not windows.drive:
        return None, False
    parts = windows.parts[1:] if windows.anchor else windows.parts
    tails = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next(((tail, False) for tail in tails if _is_file(tail)), (None, False))


def _is_file(path: Path) -> bool:
    """Whether there is a file; a path that the system refuses to look at is none."""
    try:
        return path.is_file()
    except (OSError, ValueError) as err:
        logger.debug("%r cannot be looked at: %s", str(path)[:200], err)
        return False


def _real(path: Path) -> Path:
    """Return the path without links; unlike `Path.resolve` it survives links that form a loop."""
    return Path(os.path.realpath(path))


def frame_id(path: Path, plan_folder: Path) -> str:
    """Return the name that orders the frames of a run, with forward slashes.

    It is `path` relative to `plan_folder` if the frame is below it (as the two are written, or else with links
    followed), and the absolute path otherwise.
    """
    path, folder = _plain(path), _plain(plan_folder)
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    real, real_folder = _real(path), _real(folder)
    if real.is_relative_to(real_folder):
        return real.relative_to(real_folder).as_posix()
    return path.as_posix()


def _plain(path: Path) -> Path:
    """Return the path, absolute and without ``..``; links are kept where that is safe."""
    return _real(path) if ".." in path.parts else path.absolute()


# ---- a plan from a folder -------------------------------------------------------------------------------


def scan_folder(
    folder: Path,
    *,
    exclude: Path | None = None,
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Path]:
    """Find the FITS files of a folder and all folders below it.

    Hidden files and folders, macOS' ``._`` files and ZeMosaic's own products are passed over. Links are
    followed; a folder or file that is reached in several ways is listed once.

    Parameters
    ----------
    folder : Path
        Where to look.
    exclude : Path, optional
        A folder not to look into, as a rule the run's output.
    on_progress : callable, optional
        Called with ``(number of files found so far, 0)`` after each folder; the total is not known.
    cancel : CancelToken, optional
        Looked at before each folder.

    Returns
    -------
    list of Path
        Absolute paths with the extensions .fit, .fits or .fts, also with .fz or .gz after them, sorted by
        their path relative to `folder`; empty if there are none.

    Raises
    ------
    PlanError
        If `folder` is not a folder.
    RunCancelled
        If `cancel` was set.
    """
    root = folder.absolute()
    if not root.is_dir():
        raise PlanError(f"{folder} is not a folder")
    found: dict[Path, Path] = {}
    links: list[Path] = []
    for here, real, entries in _walk(root, exclude, cancel):
        for entry in entries:
            if not FITS_NAME.search(entry.name) or _own_product(here, entry.name):
                continue
            if entry.is_symlink():
                links.append(here / entry.name)
            elif not _is_pipe(entry):
                found.setdefault(real / entry.name, here / entry.name)
        if on_progress is not None:
            on_progress(len(found), 0)
    for path in links:
        found.setdefault(_real(path), path)
    return sorted(found.values(), key=lambda path: path.relative_to(root).as_posix())


def _walk(
    root: Path, exclude: Path | None, cancel: CancelToken | None
) -> Iterator[tuple[Path, Path, list[os.DirEntry]]]:
    """Yield ``(folder, the same without links, its files)``, each folder once, those behind links last."""
    real_root = _real(root)
    # A link to a folder that holds the root is a loop, so those count as seen.
    seen = set(real_root.parents)
    if exclude is not None:
        seen |= {_real(exclude)} - {real_root}
    folders, links = deque([root]), deque()
    while folders or links:
        _check(cancel)
        here = folders.popleft() if folders else links.popleft()
        real = _real(here)
        if real in seen:
            continue
        seen.add(real)
        files = []
        for entry in _entries(here):
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(here / entry.name)
            else:
                files.append(entry)
        yield here, real, files


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None:
        cancel.check()


def _entries(folder: Path) -> list[os.DirEntry]:
    """Return what is in a folder and not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as err:
        logger.warning("the folder %s cannot be read: %s", folder, err.strerror)
        return []


def _is_pipe(entry: os.DirEntry) -> bool:
    """Whether opening a file would wait for somebody to write into it."""
    try:
        return stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode)
    except OSError:  # it is told when it is read
        return False


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as err:  # a link in a loop, or to where one may not look
        logger.debug("%s cannot be followed: %s", entry.path, err.strerror)
        return False


def _own_product(folder: Path, name: str) -> bool:
    in_tiles = folder.name.lower() in ("tiles", "master_tiles")
    return bool(_OWN_MOSAIC.match(name) or (in_tiles and _OWN_TILE.match(name)))


def find_frames(
    folder: Path, *, exclude: Path | None = None, cancel: CancelToken | None = None
) -> tuple[list[Path], list[LeftOut]]:
    """Return the files of a folder that may be frames, and those that are none by their names alone.

    Parameters
    ----------
    folder, exclude, cancel
        See `scan_folder`.

    Returns
    -------
    paths : list of Path
        Not opened yet; may be empty if `left_out` is not.
    left_out : list of LeftOut
        Compressed copies of a frame beside them, and names that cannot be written into a plan.

    Raises
    ------
    PlanError
        If there is no FITS file.
    RunCancelled
        If `cancel` was set.
    """
    paths = scan_folder(folder, exclude=exclude, cancel=cancel)
    if not paths:
        raise PlanError(f"no FITS file (.fit, .fits, .fts, also .fz and .gz) in {folder}")
    copies = _compressed_copies(paths)
    left_out = [
        LeftOut(frame_id(path, folder), f"compressed copy of {path.stem}", harmless=True) for path in copies
    ]
    unnamed = dict.fromkeys(path for path in paths if _printable(str(path)) != str(path))
    left_out += [LeftOut(_printable(frame_id(path, folder)), _NO_NAME) for path in unnamed if path not in copies]
    return [path for path in paths if path not in copies and path not in unnamed], left_out


def plan_from_folder(
    folder: Path,
    *,
    exclude: Path | None = None,
    read: ReadHeader = read_frame_header,
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[PlanRow], list[LeftOut]]:
    """Make a plan of all frames in a folder, from their headers.

    Parameters
    ----------
    folder, exclude
        Where to look, and where not; see `scan_folder`.
    read : callable
        Reads the header of a file, as `read_frame_header`.
    on_progress, cancel : optional
        Called with ``(done, total)`` after each header; looked at before each.

    Returns
    -------
    rows : list of PlanRow
        In order of time, then path; frames without a WCS are among them. `ra_deg` and `dec_deg` are the centre
        of the WCS (ICRS) if there is one, the header's pointing otherwise. Never empty.
    left_out : list of LeftOut
        Files that are not readable as frames, and compressed copies of a frame beside them.

    Raises
    ------
    PlanError
        If there is no FITS file or none of them is a frame.
    RunCancelled
        If `cancel` was set.
    """
    paths, left_out = find_frames(folder, exclude=exclude, cancel=cancel)
    entries: list[tuple[tuple[bool, datetime, str], PlanRow]] = []
    for done, path in enumerate(paths, 1):
        _check(cancel)
        name = frame_id(path, folder)
        try:
            header = read(path)
        except FrameError as err:
            left_out.append(LeftOut(_printable(name), str(err)))
        else:
            taken = _utc(header.date_obs)
            key = (taken is None, taken or datetime.min, name)  # frames without a date come last
            entries.append((key, _row_of(header, path)))
        if on_progress is not None:
            on_progress(done, len(paths))
    if not entries:
        raise PlanError(_no_usable(f"no usable frame in {folder}", left_out))
    entries.sort(key=lambda entry: entry[0])
    # Line 1 of the file will be the header.
    rows = [replace(row, order=order, line=order + 1) for order, (_, row) in enumerate(entries, 1)]
    return rows, left_out


def _compressed_copies(paths: Sequence[Path]) -> dict[Path, None]:
    """Return, in order, the paths with .fz or .gz whose file without it is among them."""
    known = set(paths)
    packed = [path for path in paths if path.suffix.lower() in (".fz", ".gz")]
    return dict.fromkeys(path for path in packed if path.with_suffix("") in known)


def _printable(text: str) -> str:
    """Return the text with a question mark for each byte of a file name that is not UTF-8."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _row_of(header: FrameHeader, path: Path) -> PlanRow:
    telescope, date = _telescope(header), _session_date(header.date_obs)
    ra_deg, dec_deg = _centre(header)
    return PlanRow(
        line=0,
        path=path,
        exposure_s=_header_exposure(header),
        filter=header.filter.strip(),
        batch_id="_".join(re.sub(r"\s+", "-", part) or "-" for part in (telescope, date, header.filter.strip())),
        mount=_mount(header.mount),
        telescope=telescope,
        session_date=date,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
    )


def _telescope(header: FrameHeader) -> str:
    """Return the instrument, or the telescope without what looks like a serial number (it is personal)."""
    if header.instrument.strip():
        return header.instrument.strip()
    return _SERIAL.sub("", header.telescope).strip()


def _utc(date_obs: str) -> datetime | None:
    """Return DATE-OBS as a datetime without zone, in UTC, or None if it is not one."""
    try:
        taken = datetime.fromisoformat(date_obs.strip())
        return taken.astimezone(UTC).replace(tzinfo=None) if taken.tzinfo else taken
    except (ValueError, OverflowError):
        return None


def _session_date(date_obs: str) -> str:
    """Return the date on which the night began (12 h before the exposure), or an empty text."""
    taken = _utc(date_obs)
    if taken is None or taken.year == 1:
        return ""
    has_time = ":" in date_obs
    return (taken - timedelta(hours=12 if has_time else 0)).date().isoformat()


def _centre(header: FrameHeader) -> tuple[float | None, float | None]:
    """Return right ascension and declination of the frame's centre in degrees, 1e-6 degrees fine."""
    if header.wcs_text:
        ny, nx = header.shape
        try:
            wcs = frame_wcs(header)
            ra, dec = to_icrs(wcs, *wcs.all_pix2world([(nx - 1) / 2], [(ny - 1) / 2], 0))
        except FrameError as err:
            logger.debug("%s: %s; its pointing is used in the plan", header.wcs_path, err)
        else:
            centre = round(float(ra[0]), 6), round(float(dec[0]), 6)
            if all(map(math.isfinite, centre)):
                return centre
    return header.ra_deg, header.dec_deg


def _header_exposure(header: FrameHeader) -> float | None:
    value = header.exptime_s
    return value if value is not None and math.isfinite(value) and value > 0 else None


# ---- writing a plan, and the frames of a run -------------------------------------------------------------


def write_plan(path: Path, rows: Sequence[PlanRow]) -> None:
    """Write a plan that `read_plan` reads back as the same rows.

    Parameters
    ----------
    path : Path
        The file; it is replaced as a whole or not at all.
    rows : sequence of PlanRow
        The frames. Those below the folder of `path` are written relative to it, others absolute.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PLAN_COLUMNS)
    folder = path.absolute().parent
    for row in rows:
        file_path = frame_id(row.path, folder)
        if clean_cell(file_path) != file_path:  # blanks or quotes at the ends would be lost in reading
            file_path = f"./{file_path}"
        # The csv module writes None as an empty cell and a float so that it reads back as the same number.
        texts = (getattr(row, name) for name in _TEXT_COLUMNS)
        writer.writerow([row.order, *texts, row.exposure_s, file_path, row.ra_deg, row.dec_deg])
    write_text(path, text.getvalue())


def load_frames(
    rows: Sequence[PlanRow],
    plan_folder: Path,
    *,
    keep_unplaced: bool = False,
    read: ReadHeader = read_frame_header,
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[FrameRecord], list[LeftOut]]:
    """Read the header of every row's frame.

    Parameters
    ----------
    rows : sequence of PlanRow
        The frames that the user wants.
    plan_folder : Path
        The folder that `FrameRecord.frame_id` is relative to.
    keep_unplaced : bool
        Whether a frame without a usable celestial WCS is a record too, with the reason in `FrameRecord.unplaced`
        and no WCS in its header, for a plate solver.
    read : callable
        Reads the header of a file, as `read_frame_header`.
    on_progress, cancel : optional
        Called with ``(done, total)`` after each header; looked at before each.

    Returns
    -------
    records : list of FrameRecord
        Frames with a usable celestial WCS, and those that `keep_unplaced` keeps, sorted by `frame_id` whatever the
        order of `rows`. The exposure is the plan's, else the header's, else 1 s.
    left_out : list of LeftOut
        The other frames, by the path of their row, and why; sorted by their `frame_id` too.

    Raises
    ------
    RunCancelled
        If `cancel` was set.
    """
    records: list[FrameRecord] = []
    left_out: list[tuple[str, LeftOut]] = []
    n_without_exposure = 0
    for done, row in enumerate(rows, 1):
        _check(cancel)
        name = frame_id(row.path, plan_folder)
        try:
            header, unplaced = _placed_header(read(row.path))
        except FrameError as err:
            header, unplaced = None, str(err)
        if header is None or (unplaced and not keep_unplaced):
            left_out.append((name, LeftOut(str(row.path), unplaced, row.line)))
        else:
            exptime_s = row.exposure_s or _header_exposure(header)
            n_without_exposure += exptime_s is None
            records.append(FrameRecord(name, str(row.path), header, exptime_s or 1.0, row.line, unplaced))
        if on_progress is not None:
            on_progress(done, len(rows))
    if n_without_exposure:
        logger.warning("%d frames have no exposure in plan or header; 1 s is used", n_without_exposure)
    return sorted(records, key=lambda r: r.frame_id), [
        item for _, item in sorted(left_out, key=lambda named: named[0])
    ]


def _placed_header(header: FrameHeader) -> tuple[FrameHeader, str]:
    """Return the header of a frame and why its place on the sky is not known, which is empty where it is."""
    if not header.wcs_text:
        return header, NO_WCS
    try:
        check_system(frame_wcs(header))
    except FrameError as err:  # a WCS that means nothing
        return replace(header, wcs_text="", wcs_path=""), str(err)
    return header, ""
