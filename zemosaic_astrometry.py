"""Plate solving: where a frame without a WCS lies on the sky, found by astrometry.net or ASTAP.

A solver is a program of others and is not trusted. It gets a small, plain picture of the frame's stars in a folder
of its own, never the frame; it has a limited time; and what it says is checked before anyone uses it.
"""

from __future__ import annotations

import math
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from astropy.coordinates import FK5, ICRS, SkyCoord
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from scipy.spatial import KDTree

from zemosaic_background import sky_and_noise
from zemosaic_config import Config
from zemosaic_events import CancelToken
from zemosaic_fits_io import frame_wcs, pixel_scale_arcsec, read_frame_header
from zemosaic_fits_products import read_table, write_hdus, write_text
from zemosaic_measure import luminance
from zemosaic_programs import (
    Finished,
    find_astap,
    find_indexes,
    find_solve_field,
    find_star_database,
    run_boxed,
    star_files,
)
from zemosaic_registration import (
    StarList,
    centroid_errors,
    find_stars,
    subtract_background,
    windowed_centres,
)
from zemosaic_reproject import centre_icrs
from zemosaic_types import FrameError, FrameHeader, FrameRecord, SolveError, SolverMissing

#: How far a solution's pixel scale may be from the nominal one, and what is plausible where nothing is known.
SCALE_TOLERANCE = 0.2
PLAUSIBLE_SCALES_ARCSEC = (0.1, 60.0)

_MOST_SQUEEZED = 1.1
_FEWEST_STARS = 6
_FEWEST_MATCHES = 5
_MATCHED_SHARE = 0.5
_STAR_REACH_PX = 3.0

_PEDESTAL, _LEVELS_A_SIGMA = 1000.0, 5.0
_LONG_SIDE_PX = 2500
_MOST_WORDS = 200
_BESIDE_THE_POINT = re.compile(r"\W*$|usage:|https?://", re.IGNORECASE)
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """What a user can choose about plate solving; the names are those of the configuration."""

    method: str = "auto"
    astap_path: str = ""
    astap_data_dir: str = ""
    astrometry_local_path: str = ""
    search_radius_deg: float = 3.0
    timeout_s: float = 60.0
    downsample: int = 0
    max_instances: int = 0
    retry_failed: bool = False
    resolve_all: bool = False
    align_by_stars: bool = True

    @classmethod
    def from_config(cls, config: Config) -> SolveOptions | None:
        """Return the options that a resolved configuration asks for, None if no frame shall be given a place.

        The method is ``"none"`` where frames are to be placed by their stars only.
        """
        method = config["solver_method"] if config["solve_missing_wcs"] else "none"
        if method == "none" and not config["align_by_stars"]:
            return None
        return cls(
            method=method,
            astap_path=config["astap_path"],
            astap_data_dir=config["astap_data_dir"],
            astrometry_local_path=config["astrometry_local_path"],
            search_radius_deg=config["astap_search_radius_deg"],
            timeout_s=config["solve_timeout_s"],
            downsample=config["solver_downsample"],
            max_instances=config["astap_max_instances"],
            retry_failed=config["solve_retry_failed"],
            resolve_all=config["force_resolve_existing_wcs"] and method != "none",
            align_by_stars=config["align_by_stars"],
        )

    def concerns(self, records: list[FrameRecord]) -> bool:
        """Whether there is anything to solve."""
        return self.resolve_all or any(record.unplaced for record in records)


#: SExtractor's settings belong to the process.
_detection = threading.Lock()


# ---- what is known before --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hint:
    """What the header of a frame lets expect: its centre (ICRS, degrees) and its pixel scale; None = not known."""

    centre_deg: tuple[float, float] | None
    scale_arcsec: float | None
    radius_deg: float

    def scales_arcsec(self) -> tuple[float, float]:
        """Return the smallest and largest pixel scale to be believed."""
        if self.scale_arcsec is None:
            return PLAUSIBLE_SCALES_ARCSEC
        return self.scale_arcsec * (1.0 - SCALE_TOLERANCE), self.scale_arcsec * (1.0 + SCALE_TOLERANCE)


def hint_of(header: FrameHeader, radius_deg: float) -> Hint:
    """Return what a frame's header lets a solver expect.

    Parameters
    ----------
    header : FrameHeader
    radius_deg : float
        How far from its pointing a frame is looked for.
    """
    low, high = PLAUSIBLE_SCALES_ARCSEC
    scale = header.scale_arcsec
    return Hint(pointing_icrs(header), scale if scale is not None and low <= scale <= high else None, radius_deg)


def pointing_icrs(header: FrameHeader) -> tuple[float, float] | None:
    """Return where a header says that the telescope points, in ICRS, degrees; None if it does not say.

    Without a word on their equinox RA and DEC are taken as J2000, but as of date if they are a Seestar's, which
    differ by a third of a degree by now. They are precessed from DATE-OBS; nutation and aberration, 0.01 degrees
    together, are neglected.
    """
    ra, dec = header.ra_deg, header.dec_deg
    if ra is None or dec is None or ra == dec == 0.0:  # what programs write that know nothing
        return None
    year = _equinox_year(header)
    if year is None:
        return ra, dec
    sky = SkyCoord(ra, dec, unit="deg", frame=FK5(equinox=Time(year, format="jyear"))).transform_to(ICRS())
    return float(sky.ra.deg), float(sky.dec.deg)


def _equinox_year(header: FrameHeader) -> float | None:
    """Return the Julian year that a pointing refers to; None for ICRS, or near enough."""
    word = header.equinox.strip()
    year = re.fullmatch(r"[BJ]?(\d{4}(\.\d*)?)", word)
    if year is not None:
        return None if float(year[1]) == 2000.0 else float(year[1])
    makes = f"{header.instrument} {header.telescope}".lower()
    if word in ("JNOW", "DATE", "APPARENT") or (not word and "seestar" in makes):
        return _year_of(header.date_obs)
    return None


def _year_of(date_obs: str) -> float | None:
    """Return DATE-OBS as a Julian year; None if it is none, or none of today's cameras."""
    try:
        year = float(Time(date_obs.strip().removesuffix("Z"), scale="tt").jyear)  # a minute is nothing here
    except ValueError:
        return None
    return year if 1900.0 < year < 2200.0 else None


# ---- what a solver gets ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StarPicture:
    """The picture of a frame that a solver gets, and the stars that ZeMosaic finds in it.

    Attributes
    ----------
    levels : ndarray, shape (ny, nx), uint16
        The background is gone, one sigma of noise is a few units.
    binning : int
        Picture pixel ``p`` is centred at frame pixel ``binning * p + (binning - 1) / 2``.
    star_x, star_y : ndarray, shape (m,)
        Centres of stars in picture pixels, brightest first.
    """

    levels: np.ndarray
    binning: int
    star_x: np.ndarray
    star_y: np.ndarray


def star_picture(record: FrameRecord) -> StarPicture:
    """Return the picture of a frame for a solver.

    Raises
    ------
    FrameError
        If the frame cannot be read, or its pixels are missing, constant or saturated.
    SolveError
        If it shows too few stars.
    """
    residual, noise, binning, stars = _detected(record)
    if stars.x.size < _FEWEST_STARS:
        raise SolveError(f"only {stars.x.size} stars are found in it")
    levels = np.rint(_PEDESTAL + _LEVELS_A_SIGMA / noise * residual)
    return StarPicture(np.clip(levels, 0, 65535).astype(np.uint16), binning, stars.x, stars.y)


@dataclass(frozen=True)
class FrameStars:
    """The stars of a frame, brightest first, in pixels of its picture; see `StarPicture`.

    `shape` is that of the picture, `sigma` the standard error of a star's centre along an axis.
    """

    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray
    shape: tuple[int, int]
    binning: int


def frame_stars(record: FrameRecord) -> FrameStars:
    """Return the stars of a frame, few as they may be; raise `FrameError` as `star_picture`."""
    residual, noise, binning, stars = _detected(record)
    x, y = windowed_centres(residual, stars)
    return FrameStars(x, y, centroid_errors(stars, noise), residual.shape, binning)


def _detected(record: FrameRecord) -> tuple[np.ndarray, float, int, StarList]:
    """Return the picture of a frame without its background, its noise and binning, and its stars."""
    plane, binning = luminance(record)
    _, noise = sky_and_noise(plane)
    if not noise > 0:
        raise FrameError("constant image: its pixels show no noise")
    with _detection:
        residual, mask = subtract_background(plane)
        return residual, noise, binning, find_stars(residual, mask, noise)


# ---- the solvers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a solver says: a WCS of the picture, and where the catalogue stars are that it matched, if it tells.

    `matched_deg` has the shape (m, 2): right ascension and declination.
    """

    wcs: WCS
    matched_deg: np.ndarray | None = None


class PlateSolver(Protocol):
    """A program that finds the WCS of a picture."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What, besides the picture and the hint, decides whether it fails again where it failed before."""

    def solve(self, picture: StarPicture, hint: Hint, folder: Path, cancel: CancelToken | None) -> Answer:
        """Solve a picture, working in a folder that is the solver's alone.

        Raises
        ------
        SolveError
            If there is no solution, in the solver's own words.
        RunCancelled
        """


def choose_solver(options: SolveOptions) -> PlateSolver:
    """Return the plate solver that a user wants; ``"auto"``: ASTAP if it has a star database, else astrometry.net.

    Raises
    ------
    SolverMissing
        If it is not there; the message says what is missing.
    """
    makers = {"astap": Astap.find, "astrometry_net": AstrometryNet.find}
    missing = []
    for name, make in makers.items():
        if options.method in ("auto", name):
            try:
                return make(options)
            except SolverMissing as reason:
                named = "" if options.method == "auto" else f"solver_method is {name}, which is not there"
                missing.append(str(reason) or named)
    raise SolverMissing("; ".join(filter(None, missing)))


@dataclass(frozen=True)
class AstrometryNet:
    """astrometry.net's ``solve-field`` (D. Lang et al., AJ 139, 1782, 2010), with index files on this machine."""

    program: str
    local_path: str
    timeout_s: float
    downsample: int
    identity: Mapping[str, str]
    name: str = "astrometry.net"

    @classmethod
    def find(cls, options: SolveOptions) -> AstrometryNet:
        """Return the one of this machine; raise `SolverMissing` if it, or its index files, are not there."""
        program = str(Path(find_solve_field()).absolute())
        indexes = find_indexes(options.astrometry_local_path)
        if indexes is not None and not indexes:
            raise SolverMissing("solve-field has no index files (Debian: apt-get install astrometry-data-tycho2)")
        identity = _identity(cls.name, program, indexes or [], options)
        return cls(program, options.astrometry_local_path, options.timeout_s, options.downsample, identity)

    def solve(self, picture: StarPicture, hint: Hint, folder: Path, cancel: CancelToken | None) -> Answer:
        """Solve a picture; see `PlateSolver`."""
        image = _write_picture(picture, folder)
        finished = _run(self.command(picture, hint, image), folder, self.timeout_s, cancel)
        wcs = _read_answer(image, finished)
        try:
            table = read_table(image.with_suffix(".corr"), 1)
            matched = np.column_stack([table["index_ra"], table["index_dec"]]).astype(np.float64)
        except (FrameError, KeyError, ValueError) as err:
            raise SolveError(f"{self.name} gave a solution without the stars it rests on") from err
        return Answer(wcs, matched)

    def command(self, picture: StarPicture, hint: Hint, image: Path) -> list[str]:
        """Return the program and its arguments."""
        low, high = (f"{scale * picture.binning:.6g}" for scale in hint.scales_arcsec())
        parts = [self.program, "--overwrite", "--no-plots", "--no-verify", "--no-tweak", "--crpix-center"]
        parts += ["--scale-units", "arcsecperpix", "--scale-low", low, "--scale-high", high]
        parts += ["--downsample", str(_shrink(picture, self.downsample))]
        parts += ["--cpulimit", str(math.ceil(self.timeout_s))]
        if hint.centre_deg is not None:
            ra, dec = hint.centre_deg
            parts += ["--ra", f"{ra:.5f}", "--dec", f"{dec:.5f}", "--radius", f"{hint.radius_deg:g}"]
        if self.local_path:
            parts += ["--config", str(self._config_in(image.parent))]
        folder = str(image.parent)
        return [*parts, "--dir", folder, "--temp-dir", folder, "--new-fits", "none", str(image)]

    def _config_in(self, folder: Path) -> Path:
        """Return the program's configuration: what the user names, or one made for the folder that he names."""
        named = Path(self.local_path).absolute()
        if not named.is_dir():
            return named
        made = folder / "astrometry.cfg"
        write_text(made, f"add_path {named}\nautoindex\n")
        return made


@dataclass(frozen=True)
class Astap:
    """ASTAP's command line. It does not tell which stars it matched, so a match of stars cannot be checked."""

    program: str
    database: Path
    timeout_s: float
    downsample: int
    identity: Mapping[str, str]
    name: str = "ASTAP"

    @classmethod
    def find(cls, options: SolveOptions) -> Astap:
        """Return the one of this machine; raise `SolverMissing` if it, or a star database, is not there."""
        program = str(Path(find_astap(options.astap_path)).absolute())
        try:
            database = find_star_database(program, options.astap_data_dir).absolute()
        except SolverMissing as reason:
            raise SolverMissing(f"ASTAP is at {program}, but {reason}") from None
        identity = _identity(cls.name, program, star_files(database), options)
        return cls(program, database, options.timeout_s, options.downsample, identity)

    def solve(self, picture: StarPicture, hint: Hint, folder: Path, cancel: CancelToken | None) -> Answer:
        """Solve a picture; see `PlateSolver`."""
        image = _write_picture(picture, folder)
        finished = _run(self.command(picture, hint, image), folder, self.timeout_s, cancel)
        notes = image.with_suffix(".ini")
        if notes.is_file():
            told = re.findall(r"^(?:ERROR|WARNING)=(.+)$", notes.read_text("utf-8", "replace"), re.MULTILINE)
            finished = replace(finished, output="\n".join([finished.output, *reversed(told)]))
        return Answer(_read_answer(image, finished))

    def command(self, picture: StarPicture, hint: Hint, image: Path) -> list[str]:
        """Return the program and its arguments; a field of view of 0 lets ASTAP try all of them."""
        height_deg = 0.0
        if hint.scale_arcsec is not None:
            height_deg = hint.scale_arcsec * picture.binning * picture.levels.shape[0] / 3600.0
        parts = [self.program, "-f", str(image), "-o", str(image.with_suffix("")), "-wcs"]
        parts += [
            "-d",
            str(self.database),
            "-z",
            str(_shrink(picture, self.downsample)),
            "-fov",
            f"{height_deg:.5f}",
        ]
        if hint.centre_deg is None:
            return [*parts, "-r", "180"]
        ra, dec = hint.centre_deg
        return [*parts, "-ra", f"{ra / 15.0:.6f}", "-spd", f"{dec + 90.0:.5f}", "-r", f"{hint.radius_deg:g}"]


def _identity(name: str, program: str, catalogue: list[str], options: SolveOptions) -> dict[str, str]:
    """Return a solver's identity: a program or catalogue that is exchanged is another solver."""
    about = Path(program).stat()
    return {
        "solver": name,
        "version": f"{program}, {about.st_size} bytes of {about.st_mtime_ns}",
        "catalogue": f"{len(catalogue)} files from {catalogue[0]}" if catalogue else "its own",
        "settings": f"{options.timeout_s:g} s, {options.search_radius_deg:g} deg, downsample {options.downsample}",
    }


def _shrink(picture: StarPicture, downsample: int) -> int:
    """Return by how much a solver shall shrink a picture further; what a user asks for counts in frame pixels."""
    wanted = downsample / picture.binning if downsample else max(picture.levels.shape) / _LONG_SIDE_PX
    return min(4, max(1, round(wanted)))


def _write_picture(picture: StarPicture, folder: Path) -> Path:
    path = folder / "frame.fits"
    write_hdus(path, fits.HDUList([fits.PrimaryHDU(picture.levels)]))
    return path


def _run(command: list[str], folder: Path, timeout_s: float, cancel: CancelToken | None) -> Finished:
    try:
        return run_boxed(command, folder, timeout_s=timeout_s, cancel=cancel)
    except OSError as err:
        raise SolveError(f"{command[0]} cannot be started: {err.strerror or err}") from err


def _read_answer(image: Path, finished: Finished) -> WCS:
    """Return the WCS that a solver has put beside a picture, or raise `SolveError` with its last words."""
    if finished.stopped:
        raise SolveError(f"stopped {finished.stopped} without a solution")
    words = last_words(finished.output, image.parent) or "it ended without a word"
    if not image.with_suffix(".wcs").is_file() or finished.status:
        raise SolveError(f"{words} (exit status {finished.status})" if finished.status else words)
    try:
        wcs = frame_wcs(read_frame_header(image))
    except FrameError as err:
        raise SolveError(f"its solution cannot be used: {err}") from err
    if wcs.has_distortion or list(wcs.wcs.ctype) != ["RA---TAN", "DEC--TAN"]:
        raise SolveError(f"its solution is of a kind that was not asked for: {', '.join(wcs.wcs.ctype)}")
    return wcs


def last_words(output: str, folder: Path) -> str:
    """Return the last line of a program's output that says something, in printable ASCII, without its folder."""
    lines = (_CONTROL.sub(" ", line) for line in output.replace(f"{folder}/", "").splitlines())
    said = [line for line in (" ".join(line.split()) for line in lines) if not _BESIDE_THE_POINT.match(line)]
    return said[-1][:_MOST_WORDS] if said else ""


# ---- solving a frame -------------------------------------------------------------------------------------


def solve_frame(record: FrameRecord, solver: PlateSolver, hint: Hint, cancel: CancelToken | None = None) -> str:
    """Return the cards of a frame's WCS: TAN, ICRS, in frame pixels.

    Parameters
    ----------
    record : FrameRecord
        The frame; its file is only read.
    solver : PlateSolver
    hint : Hint
    cancel : CancelToken, optional
        Ends the solver within a fraction of a second.

    Raises
    ------
    FrameError
        If the frame cannot be read, or its pixels are no picture.
    SolveError
        If it cannot be solved, or the solution cannot be true; see `check_place` and `check_stars`.
    RunCancelled
    """
    picture = star_picture(record)
    with _own_folder() as folder:
        answer = solver.solve(picture, hint, folder, cancel)
    check_stars(answer, picture)
    text = cards_of(answer.wcs, picture.binning, record.header.shape)
    check_place(text, record.header.shape, hint)
    return text


@contextmanager
def _own_folder() -> Iterator[Path]:
    # What a killed solver still writes must not keep the folder from being removed.
    with tempfile.TemporaryDirectory(prefix="zemosaic_solve_", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def cards_of(wcs: WCS, binning: int, shape: tuple[int, int]) -> str:
    """Return the cards of a picture's TAN WCS in the pixels of its frame, 80 characters each.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Of the picture, without distortions.
    binning : int
        See `StarPicture`.
    shape : tuple of int
        ``(ny, nx)`` of the frame.
    """
    header = fits.Header([("NAXIS", 2), ("NAXIS1", shape[1]), ("NAXIS2", shape[0])])
    ctype, crval, crpix, matrix = wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.pixel_scale_matrix / binning
    for axis in (1, 2):
        header[f"CTYPE{axis}"] = ctype[axis - 1]
        header[f"CRVAL{axis}"] = float(crval[axis - 1])
        # Of pixels counted from 1, as the cards do.
        header[f"CRPIX{axis}"] = float(binning * crpix[axis - 1] - 0.5 * (binning - 1))
        for other in (1, 2):
            header[f"CD{axis}_{other}"] = float(matrix[axis - 1, other - 1])
    header["RADESYS"] = "ICRS"
    return "".join(f"{card.image:<80}" for card in header.cards)


# ---- checks of a solution --------------------------------------------------------------------------------


def wcs_of(text: str, shape: tuple[int, int]) -> WCS:
    """Return the WCS of some cards, or raise `SolveError`."""
    try:
        return frame_wcs(FrameHeader(0, "mono", shape, wcs_text=text))
    except FrameError as err:
        raise SolveError(f"its solution cannot be used: {err}") from err


def check_place(text: str, shape: tuple[int, int], hint: Hint) -> None:
    """Raise `SolveError` for a solution whose pixel scale, shape of pixels or place on the sky cannot be true.

    Parameters
    ----------
    text : str
        Cards of the WCS in frame pixels.
    shape : tuple of int
        ``(ny, nx)`` of the frame.
    hint : Hint
        The scale must be within `SCALE_TOLERANCE` of its own, the centre within its radius and the frame's reach.
    """
    wcs = wcs_of(text, shape)
    scale = pixel_scale_arcsec(wcs)
    low, high = hint.scales_arcsec()
    if not low <= scale <= high:
        raise SolveError(
            f"refused: the solution has {scale:.3g} arcsec per pixel, expected are {low:.3g} to {high:.3g}"
        )
    largest, smallest = np.linalg.svd(wcs.pixel_scale_matrix, compute_uv=False)
    if largest > _MOST_SQUEEZED * smallest:
        raise SolveError(f"refused: the solution has pixels {largest / smallest:.2f} times longer than wide")
    ny, nx = shape
    corners = wcs.all_pix2world([[-0.5, -0.5], [nx - 0.5, -0.5], [-0.5, ny - 0.5], [nx - 0.5, ny - 0.5]], 0)
    centre = centre_icrs(wcs, shape)
    if not (np.isfinite(corners).all() and np.isfinite(centre).all()):
        raise SolveError("refused: the solution lies off the sky")
    if hint.centre_deg is not None:
        away = SkyCoord(*centre, unit="deg").separation(SkyCoord(*hint.centre_deg, unit="deg")).deg
        reach = hint.radius_deg + 0.5 * math.hypot(*shape) * scale / 3600.0
        if away > reach:
            raise SolveError(
                f"refused: the solution lies {away:.1f} degrees from where the header says the telescope pointed"
            )


def check_stars(answer: Answer, picture: StarPicture) -> None:
    """Raise `SolveError` unless the stars that a solver matched are where ZeMosaic finds stars too.

    At least half of them, and five, must have a star of the picture within 3 px. A solver that does not tell its
    stars (ASTAP) is believed.
    """
    if answer.matched_deg is None:
        return
    x, y = answer.wcs.all_world2pix(answer.matched_deg, 0).T if len(answer.matched_deg) else (np.empty(0),) * 2
    ok = np.isfinite(x) & np.isfinite(y)
    tree = KDTree(np.column_stack([picture.star_x, picture.star_y]))
    distance, _ = tree.query(np.column_stack([x[ok], y[ok]])) if ok.any() else (np.empty(0), None)
    found = int((distance <= _STAR_REACH_PX).sum())
    if found < max(_FEWEST_MATCHES, _MATCHED_SHARE * len(answer.matched_deg)):
        raise SolveError(
            f"refused: of the {len(answer.matched_deg)} stars that the solution rests on, {found} are in the frame"
        )


def odd_parities(parities: list[int]) -> list[int]:
    """Return the places of those few frames of one instrument that are mirrored against all others.

    Parameters
    ----------
    parities : list of int
        1 or -1 of each frame.

    Returns
    -------
    list of int
        A lone one of three or more, or up to a tenth of many; empty if it cannot be told who is odd.
    """
    odd = [k for k, parity in enumerate(parities) if parity != (1 if sum(parities) > 0 else -1)]
    few = len(odd) <= max(1, len(parities) // 10)
    return odd if few and len(odd) * 2 < len(parities) else []


def parity_of(wcs: WCS) -> int:
    """Return 1 or -1, the sign of the determinant of a WCS's matrix."""
    return 1 if np.linalg.det(wcs.pixel_scale_matrix) > 0 else -1
