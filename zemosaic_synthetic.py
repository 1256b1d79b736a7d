"""Seeded simulated surveys with known truth: the one source of simulated sky for demo, tests and benchmarks.

Everything follows from a `SurveySpec`: stars, nebula, and each frame's pointing, seeing, sky, defects and
noise. Frame ``k`` is drawn from its own random stream, so it does not depend on how many frames there are.

Light is simulated in ADU. Stars are Gaussians integrated over the pixel (their total in a frame is flux times
transparency), the nebula is a smooth surface brightness in ADU a frame pixel, photon noise is Gaussian with
the variance of the electrons. Frames visit the panels in turn: frame ``k`` shows panel ``k % n_panels``.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy.interpolate import CubicSpline
from scipy.special import erf

from zemosaic_types import ConfigError, OutputError

SIGMA_PER_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))
BAYER_CHANNELS = np.array([[1, 0], [2, 1]])  # GRBG: plane (0 R, 1 G, 2 B) of each pixel of the 2 x 2 cell
SKY_COLOUR = (0.85, 1.0, 0.75)  # sky light of the R, G, B pixels relative to the frame's sky level
VIGNETTE_CENTRE = (0.08, -0.05)  # (x, y) of the brightest place, in half diagonals off the detector's centre
VIGNETTE_COLOUR = (0.92, 1.0, 1.1)  # how fast R, G, B fall off, relative to green
SIP_FRACTION = 0.003  # distortion at the corners, relative to their distance from the centre

_STAR_SLOPE = 0.5  # N(> flux) falls as flux ** -slope
_STAMP_SIGMAS = 5.5  # stars are drawn out to here: less than 1e-6 of the flux is lost
_LATTICE_PX = 5  # spacing of the nebula's exact values
_FRAMES_A_NIGHT = 240
_FIRST_EXPOSURE = datetime(2025, 3, 26, 20, 30)
# The first words of the random streams; the second is the seed, the third a frame index where there is one.
_STARS, _NEBULA, _DETECTOR, _FRAME, _COSMIC, _NOISE = range(1, 7)


@dataclass(frozen=True)
class SurveySpec:
    """What a simulated survey is made of; together with the code it decides every byte of the frames.

    Attributes
    ----------
    panels : tuple of int
        ``(rows, columns)`` of pointings.
    n_frames : int or None
        Total number of frames, if not ``frames_per_panel`` times the number of panels.
    frame_shape : tuple of int
        ``(ny, nx)``; even numbers for colour.
    overlap_fraction : float
        Part of a frame that neighbouring panels share, before dithers and rotation.
    color : bool
        True for GRBG Bayer frames (truth in three channels R, G, B), False for mono frames (one channel).
    dither_px : float
        Scatter of the pointings about their panel, one standard deviation of each axis.
    rotation_deg : float
        Frames are turned by a uniform angle within plus or minus this.
    mirrored : bool
        False for the usual parity of the sky (determinant of the CD matrix below zero).
    fwhm_px, transparency, sky_adu : tuple of float
        Ranges of the frames' seeing, transparency and sky level (green, above the pedestal).
    gradient_adu : float
        Peak to peak of each frame's linear gradient, in a random direction.
    star_density : float
        Stars per million frame pixels.
    star_flux : tuple of float
        Range of total flux in ADU at transparency 1 (green), a power law.
    nebula_adu : float
        Peak surface brightness of a galaxy, and about that of two nebulae, ADU a pixel; 0 for none.
    hot_pixels : float
        Hot pixels per million, at the same places in all frames.
    cosmic_rays : int
        Hits in each frame.
    trail_fraction, trail_adu, trail_sigma_px
        Fraction of frames with a satellite trail, range of the trails' peaks, width of their profile.
    vignetting : float
        Part of the light that the corners of the detector lose; see `vignette`.
    sip : bool
        Add a SIP distortion of `SIP_FRACTION` at the corners (about 3 px on a frame of 1080 x 1920).

    Raises
    ------
    ConfigError
        If the numbers cannot make a survey.
    """

    seed: int = 1
    panels: tuple[int, int] = (1, 2)
    frames_per_panel: int = 4
    n_frames: int | None = None
    frame_shape: tuple[int, int] = (240, 320)
    overlap_fraction: float = 0.25
    color: bool = False
    pixel_scale_arcsec: float = 2.4
    center_deg: tuple[float, float] = (192.72, 41.12)
    dither_px: float = 5.0
    rotation_deg: float = 5.0
    mirrored: bool = False
    fwhm_px: tuple[float, float] = (2.8, 3.4)
    transparency: tuple[float, float] = (0.75, 1.0)
    sky_adu: tuple[float, float] = (700.0, 1100.0)
    gradient_adu: float = 30.0
    electrons_per_adu: float = 1.0
    read_noise_e: float = 3.0
    pedestal_adu: float = 300.0
    star_density: float = 500.0
    star_flux: tuple[float, float] = (1000.0, 300000.0)
    nebula_adu: float = 0.0
    hot_pixels: float = 100.0
    cosmic_rays: int = 5
    trail_fraction: float = 0.2
    trail_adu: tuple[float, float] = (300.0, 3000.0)
    trail_sigma_px: float = 1.3
    vignetting: float = 0.0
    sip: bool = False
    exptime_s: float = 10.0

    def __post_init__(self) -> None:
        ny, nx = self.frame_shape
        if min(self.panels) < 1 or self.frames_per_panel < 1 or self.count < 1:
            raise ConfigError("a simulated survey needs at least one panel and one frame")
        if min(ny, nx) < 16 or (self.color and (ny % 2 or nx % 2)):
            raise ConfigError(f"frame_shape {ny} x {nx}: at least 16 px a side, even numbers for colour")
        if not 0.0 <= self.overlap_fraction < 1.0:
            raise ConfigError(f"overlap_fraction {self.overlap_fraction} is not in 0 <= overlap < 1")
        if not 0.0 <= self.vignetting < 0.9:
            raise ConfigError(f"vignetting {self.vignetting} is not in 0 <= vignetting < 0.9")
        for name in ("fwhm_px", "transparency", "sky_adu", "star_flux", "trail_adu"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high:
                raise ConfigError(f"{name} ({low}, {high}) is not a range of positive numbers")

    @property
    def n_panels(self) -> int:
        """Number of pointings."""
        return self.panels[0] * self.panels[1]

    @property
    def count(self) -> int:
        """Number of frames."""
        return self.n_panels * self.frames_per_panel if self.n_frames is None else self.n_frames

    @property
    def n_channels(self) -> int:
        """Number of colour planes of the truth: 3 or 1."""
        return 3 if self.color else 1


def demo_spec(**overrides) -> SurveySpec:
    """Return the survey of ``zemosaic demo``: six panels of colour frames, every kind of defect, nebulae."""
    values = dict(panels=(2, 3), frames_per_panel=7, frame_shape=(480, 640), color=True, nebula_adu=500.0)
    values |= dict(dither_px=8.0, rotation_deg=8.0, fwhm_px=(2.6, 3.6), transparency=(0.7, 1.0))
    values |= dict(star_density=600.0, cosmic_rays=12, trail_fraction=0.25)
    return SurveySpec(**values | overrides)


def small_spec(**overrides) -> SurveySpec:
    """Return a small mono survey for tests (two panels of three frames), changed by keyword."""
    values = dict(frames_per_panel=3, frame_shape=(160, 200), star_density=800.0)
    return SurveySpec(**values | overrides)


def swarp_spec(**overrides) -> SurveySpec:
    """Return the survey of the benchmarks: 60 mono frames of 1920 x 1080 in nine panels."""
    values = dict(panels=(3, 3), frames_per_panel=7, n_frames=60, frame_shape=(1080, 1920))
    values |= dict(overlap_fraction=0.08, dither_px=15.0, rotation_deg=15.0)
    values |= dict(fwhm_px=(3.3, 3.3), transparency=(0.7, 1.0))
    return SurveySpec(**values | overrides)


@dataclass(frozen=True)
class Trail:
    """A satellite's trail: a straight line through ``(x0, y0)``, Gaussian across (frame pixels, ADU)."""

    x0: float
    y0: float
    angle_rad: float
    peak_adu: float
    sigma_px: float


@dataclass(frozen=True)
class FrameTruth:
    """Everything that was drawn for one frame.

    Attributes
    ----------
    path : Path or None
        The file; None for a survey that was not written.
    wcs_text : str
        The WCS cards of the frame, one a line; `frame_wcs` makes the WCS.
    sky_adu, noise_adu : tuple of float
        Sky above the pedestal at the frame's centre, and one standard deviation of a pixel at that sky
        (photons, read-out and rounding), for each channel.
    gradient_adu_px : tuple of float
        Slope of the sky along x and y, ADU a pixel (green).
    """

    index: int
    panel: int
    number: int
    path: Path | None
    wcs_text: str
    pointing_deg: tuple[float, float]
    transparency: float
    fwhm_px: float
    sky_adu: tuple[float, ...]
    gradient_adu_px: tuple[float, float]
    noise_adu: tuple[float, ...]
    trail: Trail | None

    @property
    def name(self) -> str:
        """Name of the frame's file."""
        return f"Light_{self.panel:02d}_{self.number:04d}.fit"


@dataclass(frozen=True, eq=False)
class StarTable:
    """The stars: ``ra_deg (n,)``, ``dec_deg (n,)``, ``flux_adu (n, c)`` at transparency 1."""

    ra_deg: np.ndarray
    dec_deg: np.ndarray
    flux_adu: np.ndarray


@dataclass(frozen=True)
class Blob:
    """An elliptical cloud on the survey's tangent plane: Gaussian, or a galaxy's soft exponential disk."""

    x: float
    y: float
    major_px: float
    minor_px: float
    angle_rad: float
    peak_adu: tuple[float, ...]
    disk: bool = False

    def profile(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the brightness relative to the peak, at positions of the tangent plane in pixels."""
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        u = ((x - self.x) * cos + (y - self.y) * sin) / self.major_px
        v = ((y - self.y) * cos - (x - self.x) * sin) / self.minor_px
        return np.exp(0.7 - np.sqrt(u * u + v * v + 0.49)) if self.disk else np.exp(-0.5 * (u * u + v * v))


@dataclass(frozen=True)
class NebulaModel:
    """The diffuse light of a survey; call it for the surface brightness anywhere."""

    spec: SurveySpec
    blobs: tuple[Blob, ...]

    def __call__(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return ``(c, ...)`` ADU a frame pixel at transparency 1, for sky positions of one shape."""
        x, y = _plane_wcs(self.spec).wcs_world2pix(ra_deg, dec_deg, 0)
        total = np.zeros((self.spec.n_channels, *x.shape))
        for blob in self.blobs:
            total += np.multiply.outer(np.array(blob.peak_adu), blob.profile(x, y))
        return total


@dataclass(frozen=True, eq=False)
class Survey:
    """A simulated survey: its frames and the sky they show."""

    spec: SurveySpec
    frames: tuple[FrameTruth, ...]
    stars: StarTable
    nebula: NebulaModel


@dataclass(frozen=True, eq=False)
class FrameComponents:
    """A frame without noise, taken apart: ``(ny, nx)`` float64 in ADU, sampled by the Bayer cell for colour.

    `scene` holds pedestal, sky, gradient, nebula and stars; the other three what does not belong to the sky.
    """

    scene: np.ndarray
    trail: np.ndarray
    cosmic: np.ndarray
    hot: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """What the frame holds but for noise, rounding and saturation."""
        return self.scene + self.trail + self.cosmic + self.hot


def plan_survey(spec: SurveySpec, *, folder: Path | None = None) -> Survey:
    """Draw the truth of a survey without rendering a pixel; paths are set only if `folder` is given."""
    frames = tuple(_draw_frame(spec, index, folder) for index in range(spec.count))
    return Survey(spec, frames, _draw_stars(spec), NebulaModel(spec, _draw_blobs(spec)))


def make_survey(folder: Path, spec: SurveySpec) -> Survey:
    """Write a survey's frames, ``Light_<panel>_<number>.fit``, and return its truth.

    The truth needs no file: ``plan_survey(spec, folder=folder)`` draws it again.

    Parameters
    ----------
    folder : Path
        Made if missing; files of the same names are replaced.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    folder = Path(folder)
    survey = plan_survey(spec, folder=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for frame in survey.frames:
            hdu = fits.PrimaryHDU(expose_frame(survey, frame.index), frame_header(spec, frame))
            hdu.writeto(frame.path, overwrite=True)
    except OSError as err:
        raise OutputError(f"the simulated survey cannot be written to {folder}: {err}") from err
    return survey


def frame_wcs(frame: FrameTruth) -> WCS:
    """Return the exact WCS of a frame (shared: do not change it)."""
    return _wcs_of(frame.wcs_text)


def star_positions(survey: Survey, wcs: WCS, shape: tuple[int, int], *, margin_px: float = 0.0) -> tuple:
    """Return ``(ids, x, y)`` of the stars inside an image: indices into the table and exact 0-based pixels.

    Inside means within the pixels' area, ``-0.5 <= x < nx - 0.5``, enlarged by `margin_px`.
    """
    ra, dec = survey.stars.ra_deg, survey.stars.dec_deg
    x, y = wcs.wcs_world2pix(ra, dec, 0)  # without distortion: only to spare stars far outside
    ids = np.flatnonzero(_within(x, y, shape, margin_px + 2 * SIP_FRACTION * max(shape) + 2))
    if not ids.size:
        return ids, x[ids], y[ids]
    x, y = world_to_pixel(wcs, ra[ids], dec[ids])
    keep = _within(x, y, shape, margin_px)
    return ids[keep], x[keep], y[keep]


def world_to_pixel(wcs: WCS, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 0-based pixels of sky positions, distortion inverted to 1e-7 px."""
    return wcs.all_world2pix(ra_deg, dec_deg, 0, tolerance=1e-7, maxiter=40)


def render_sky(survey: Survey, wcs: WCS, shape: tuple[int, int], *, fwhm_px: float) -> np.ndarray:
    """Return stars and nebula at transparency 1 on any pixel grid, without sky or noise.

    Parameters
    ----------
    wcs, shape
        The grid, ``(ny, nx)``.
    fwhm_px : float
        Seeing in pixels of that grid.

    Returns
    -------
    ndarray
        ``(c, ny, nx)`` float64. A star's pixels add up to its flux in ADU; the nebula is in ADU a *frame*
        pixel, whatever the size of the grid's pixels.
    """
    planes = render_nebula(survey, wcs, shape)
    sigma = fwhm_px * SIGMA_PER_FWHM
    half = int(np.ceil(_STAMP_SIGMAS * sigma))
    ids, x, y = star_positions(survey, wcs, shape, margin_px=half)
    _add_stars(planes, x, y, survey.stars.flux_adu[ids], sigma)
    return planes


def render_nebula(survey: Survey, wcs: WCS, shape: tuple[int, int]) -> np.ndarray:
    """Return the nebula on a pixel grid, ``(c, ny, nx)`` float64: exact on a lattice, cubic between."""
    ny, nx = shape
    if not survey.nebula.blobs:
        return np.zeros((survey.spec.n_channels, ny, nx))
    rows = np.arange(-_LATTICE_PX, ny + 2 * _LATTICE_PX, _LATTICE_PX, dtype=float)
    cols = np.arange(-_LATTICE_PX, nx + 2 * _LATTICE_PX, _LATTICE_PX, dtype=float)
    y, x = np.meshgrid(rows, cols, indexing="ij")
    nodes = survey.nebula(*wcs.all_pix2world(x, y, 0))
    tall = CubicSpline(rows, nodes, axis=1)(np.arange(ny))
    return np.ascontiguousarray(CubicSpline(cols, tall, axis=2)(np.arange(nx)))


def render_planes(source: Survey | SurveySpec, index: int) -> np.ndarray:
    """Return a frame's noiseless scene in every channel at every pixel, ``(c, ny, nx)`` float64 in ADU."""
    survey = _as_survey(source)
    spec, frame = survey.spec, survey.frames[index]
    ny, nx = spec.frame_shape
    planes = render_sky(survey, frame_wcs(frame), spec.frame_shape, fwhm_px=frame.fwhm_px)
    planes *= frame.transparency
    slope_x, slope_y = frame.gradient_adu_px
    ramp = slope_x * (np.arange(nx) - (nx - 1) / 2) + slope_y * (np.arange(ny) - (ny - 1) / 2)[:, None]
    for plane, sky, colour in zip(planes, frame.sky_adu, _channels(spec, 1.0, SKY_COLOUR), strict=True):
        plane += spec.pedestal_adu + sky + colour * ramp
    if spec.vignetting:
        planes = spec.pedestal_adu + (planes - spec.pedestal_adu) * vignette(spec)
    return planes


def vignette(spec: SurveySpec) -> np.ndarray:
    """Return the share of the light that reaches each pixel, ``(c, ny, nx)`` float64.

    It falls with the fourth power of the cosine of an angle, around a point a little off the centre, a little
    faster for blue light than for red, and is about ``1 - vignetting`` at the corners of the green plane.
    Trails and cosmic rays are drawn without it.
    """
    ny, nx = spec.frame_shape
    corner = np.hypot(nx, ny) / 2
    x = (np.arange(nx) - (nx - 1) / 2) / corner - VIGNETTE_CENTRE[0]
    y = (np.arange(ny)[:, None] - (ny - 1) / 2) / corner - VIGNETTE_CENTRE[1]
    squared = x * x + y * y
    steepness = 1.0 / np.sqrt(1.0 - spec.vignetting) - 1.0  # cos**4 = (1 + tan**2)**-2
    corners = squared[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    tints = np.array(_channels(spec, 1.0, VIGNETTE_COLOUR))[:, None, None]
    return (1.0 + tints * steepness * squared / corners) ** -2.0


def sample_bayer(planes: np.ndarray) -> np.ndarray:
    """Return what a GRBG sensor sees of ``(3, ny, nx)`` planes, ``(ny, nx)``; a single plane is returned."""
    if len(planes) == 1:
        return planes[0]
    mosaic = np.empty_like(planes[0])
    for row in (0, 1):
        for col in (0, 1):
            mosaic[row::2, col::2] = planes[BAYER_CHANNELS[row, col], row::2, col::2]
    return mosaic


def render_frame(source: Survey | SurveySpec, index: int) -> FrameComponents:
    """Return frame `index` without noise, taken apart into scene, trail, cosmic rays and hot pixels."""
    survey = _as_survey(source)
    return FrameComponents(
        scene=sample_bayer(render_planes(survey, index)),
        trail=_render_trail(survey.frames[index].trail, survey.spec.frame_shape),
        cosmic=_render_cosmic(survey.spec, index),
        hot=_render_hot(survey.spec),
    )


def expose_frame(source: Survey | SurveySpec, index: int) -> np.ndarray:
    """Return frame `index` as the camera writes it, ``(ny, nx)`` uint16: with noise, rounded and clipped."""
    survey = _as_survey(source)
    spec = survey.spec
    image = render_frame(survey, index).total
    noise = np.random.default_rng([_NOISE, spec.seed, index]).standard_normal(image.shape)
    image += noise * np.sqrt(_variance(spec, image - spec.pedestal_adu))
    return np.clip(np.rint(image), 0, 65535).astype(np.uint16)


def frame_header(spec: SurveySpec, frame: FrameTruth) -> fits.Header:
    """Return the header of a frame: the keywords of a Seestar, and the WCS in CD form."""
    night, slot = divmod(frame.index, _FRAMES_A_NIGHT)
    when = _FIRST_EXPOSURE + timedelta(days=night, seconds=120 * slot)
    scale_mm, pixel_um = 206.265 / spec.pixel_scale_arcsec, 2.9
    cards = [("CREATOR", "ZeMosaic", "simulated frame"), ("INSTRUME", "Synthetic S50")]
    cards += [("FOCALLEN", round(scale_mm * pixel_um, 2), "[mm] focal length"), ("IMAGETYP", "Light")]
    cards += [(key, pixel_um, "[um] pixel size") for key in ("XPIXSZ", "YPIXSZ")]
    cards += [(key, spec.exptime_s, "[s] exposure time") for key in ("EXPOSURE", "EXPTIME")]
    cards += [(key, angle, "[deg] pointing") for key, angle in zip(("RA", "DEC"), frame.pointing_deg, strict=True)]
    cards += [("DATE-OBS", when.isoformat(timespec="milliseconds")), ("FILTER", "IRCUT"), ("GAIN", 80)]
    cards += [("TELESCOP", "Synthetic"), ("OBJECT", "Simulated sky")]
    header = fits.Header(cards + ([("BAYERPAT", "GRBG")] if spec.color else []))
    header.extend(fits.Header.fromstring(frame.wcs_text, sep="\n"))
    return header


@functools.lru_cache(maxsize=512)
def _wcs_of(text: str) -> WCS:
    return WCS(fits.Header.fromstring(text, sep="\n"))


@functools.lru_cache(maxsize=16)
def _plane_wcs(spec: SurveySpec) -> WCS:
    """Return the tangent plane at the survey's centre: north up, pixel (0, 0) at the centre."""
    scale = spec.pixel_scale_arcsec / 3600.0
    return _wcs_of(_tan_text(spec.center_deg, (1.0, 1.0), scale * np.array([[-1.0, 0.0], [0.0, 1.0]])))


def _tan_text(crval: tuple, crpix: tuple, cd: np.ndarray, sip: dict[str, float] | None = None) -> str:
    suffix = "-SIP" if sip else ""
    cards = {"WCSAXES": 2, "CTYPE1": "RA---TAN" + suffix, "CTYPE2": "DEC--TAN" + suffix}
    cards |= {"CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS"}
    cards |= {"CRVAL1": float(crval[0]), "CRVAL2": float(crval[1]), "CRPIX1": crpix[0], "CRPIX2": crpix[1]}
    cards |= {f"CD{i + 1}_{j + 1}": float(cd[i, j]) for i in (0, 1) for j in (0, 1)}
    return fits.Header(list((cards | (sip or {})).items())).tostring(sep="\n", endcard=False, padding=False)


@functools.lru_cache(maxsize=64)
def _sip_cards(shape: tuple[int, int]) -> dict[str, float]:
    """Return SIP cards: pincushion and some tilt, and the inverse polynomials fitted to them."""
    half_y, half_x = shape[0] / 2, shape[1] / 2
    corner = np.hypot(half_x, half_y)
    k3, k2 = 0.7 * SIP_FRACTION / corner**2, 0.3 * SIP_FRACTION / corner
    a = {(3, 0): k3, (1, 2): k3, (2, 0): k2, (1, 1): -0.5 * k2}
    b = {(0, 3): k3, (2, 1): k3, (0, 2): -0.6 * k2, (2, 0): 0.4 * k2}
    grid = np.linspace(-1.0, 1.0, 25)
    v, u = (g.ravel() for g in np.meshgrid(half_y * grid, half_x * grid))
    shift = {n: sum(k * u**p * v**q for (p, q), k in c.items()) for n, c in (("A", a), ("B", b))}
    powers = [(p, q) for p in range(5) for q in range(5 - p) if p + q]
    # Scaled by the corner, the columns are of one size and the fit is well conditioned.
    columns = [((u + shift["A"]) / corner) ** p * ((v + shift["B"]) / corner) ** q for p, q in powers]
    design = np.stack(columns, axis=1)
    cards = {}  # ten digits, so that the last bits of a fit cannot reach a file
    for letter, forward in (("A", a), ("B", b)):
        inverse = np.linalg.lstsq(design, -shift[letter], rcond=None)[0]
        cards |= {f"{letter}_ORDER": 3, f"{letter}P_ORDER": 4}
        cards |= {f"{letter}_{p}_{q}": float(k) for (p, q), k in forward.items()}
        scaled = zip(powers, inverse, strict=True)
        cards |= {f"{letter}P_{p}_{q}": float(f"{k / corner ** (p + q):.9e}") for (p, q), k in scaled}
    return cards


def _channels(spec: SurveySpec, value: float, colour: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(value * factor for factor in colour) if spec.color else (value,)


def _variance(spec: SurveySpec, light_adu: np.ndarray | float) -> np.ndarray:
    """Return the variance in ADU^2 of photons and read-out at a light level in ADU."""
    gain = spec.electrons_per_adu
    return np.maximum(light_adu, 0.0) / gain + (spec.read_noise_e / gain) ** 2


def _within(x: np.ndarray, y: np.ndarray, shape: tuple[int, int], margin: float) -> np.ndarray:
    low, (ny, nx) = -0.5 - margin, shape
    return (x >= low) & (x < nx - 0.5 + margin) & (y >= low) & (y < ny - 0.5 + margin)


def _as_survey(source: Survey | SurveySpec) -> Survey:
    return plan_survey(source) if isinstance(source, SurveySpec) else source


def _panel_steps(spec: SurveySpec) -> tuple[float, float]:
    return tuple(n * (1.0 - spec.overlap_fraction) for n in spec.frame_shape)


def _draw_frame(spec: SurveySpec, index: int, folder: Path | None) -> FrameTruth:
    rng = np.random.default_rng([_FRAME, spec.seed, index])
    number, panel = divmod(index, spec.n_panels)
    dither = rng.normal(0.0, spec.dither_px, 2)
    rotation = rng.uniform(-spec.rotation_deg, spec.rotation_deg)
    transparency, sky, fwhm = (
        float(rng.uniform(*limits)) for limits in (spec.transparency, spec.sky_adu, spec.fwhm_px)
    )
    direction = rng.uniform(0.0, 2.0 * np.pi)
    slope = np.array([np.cos(direction), np.sin(direction)])
    slope *= spec.gradient_adu / (np.abs(slope) @ (np.array(spec.frame_shape[::-1]) - 1))
    pointing, wcs_text = _point_frame(spec, panel, dither, rotation)
    skies = _channels(spec, sky, SKY_COLOUR)
    frame = FrameTruth(
        index=index,
        panel=panel,
        number=number,
        path=None,
        wcs_text=wcs_text,
        pointing_deg=pointing,
        transparency=transparency,
        fwhm_px=fwhm,
        sky_adu=skies,
        gradient_adu_px=(float(slope[0]), float(slope[1])),
        noise_adu=tuple(float(np.sqrt(_variance(spec, level) + 1.0 / 12.0)) for level in skies),
        trail=_draw_trail(spec, rng),
    )
    return frame if folder is None else dataclasses.replace(frame, path=folder / frame.name)


def _point_frame(spec: SurveySpec, panel: int, dither: np.ndarray, rotation: float) -> tuple:
    """Return the pointing and the WCS cards of a frame that is aligned with the survey but for `rotation`."""
    row, col = divmod(panel, spec.panels[1])
    step_y, step_x = _panel_steps(spec)
    x = (col - (spec.panels[1] - 1) / 2) * step_x + dither[0]
    y = (row - (spec.panels[0] - 1) / 2) * step_y + dither[1]
    ra, dec = _plane_wcs(spec).wcs_pix2world([x, x], [y, y + 1.0], 0)
    # The plane's y axis is not north everywhere: north turns across the survey, most of all near a pole.
    angle = _position_angle(np.radians(ra), np.radians(dec)) + np.radians(rotation)
    cos, sin = np.cos(angle), np.sin(angle)
    parity = -1.0 if spec.mirrored else 1.0
    cd = spec.pixel_scale_arcsec / 3600.0 * np.array([[-cos * parity, sin], [sin * parity, cos]])
    ny, nx = spec.frame_shape
    sip = _sip_cards(spec.frame_shape) if spec.sip else None
    pointing = (float(ra[0]), float(dec[0]))
    return pointing, _tan_text(pointing, ((nx + 1) / 2, (ny + 1) / 2), cd, sip)


def _position_angle(ra: np.ndarray, dec: np.ndarray) -> float:
    """Return the direction of the second position seen from the first, from north over east, in radians."""
    turn = ra[1] - ra[0]
    north = np.cos(dec[0]) * np.sin(dec[1]) - np.sin(dec[0]) * np.cos(dec[1]) * np.cos(turn)
    return float(np.arctan2(np.sin(turn) * np.cos(dec[1]), north))


def _draw_trail(spec: SurveySpec, rng: np.random.Generator) -> Trail | None:
    ny, nx = spec.frame_shape
    has_trail = rng.uniform() < spec.trail_fraction
    x0, y0 = rng.uniform(0.2 * nx, 0.8 * nx), rng.uniform(0.2 * ny, 0.8 * ny)
    angle, peak = rng.uniform(0.0, np.pi), rng.uniform(*spec.trail_adu)
    return Trail(x0, y0, angle, peak, spec.trail_sigma_px) if has_trail else None


def _draw_stars(spec: SurveySpec) -> StarTable:
    rng = np.random.default_rng([_STARS, spec.seed, 0])
    reach = 0.5 * np.hypot(*spec.frame_shape) + 4.0 * spec.dither_px + 30.0
    half = [(n - 1) / 2 * step + reach for n, step in zip(spec.panels, _panel_steps(spec), strict=True)]
    count = round(spec.star_density * 4.0 * half[0] * half[1] / 1e6)
    x, y = rng.uniform(-half[1], half[1], count), rng.uniform(-half[0], half[0], count)
    low, high = (limit**-_STAR_SLOPE for limit in spec.star_flux)
    flux = rng.uniform(high, low, count) ** (-1.0 / _STAR_SLOPE)
    warmth = rng.normal(0.0, 0.2, count)
    colours = [np.exp(warmth), np.ones(count), np.exp(-warmth)] if spec.color else [np.ones(count)]
    ra, dec = _plane_wcs(spec).wcs_pix2world(x, y, 0)
    return StarTable(ra, dec, np.stack([flux * colour for colour in colours], axis=1))


def _draw_blobs(spec: SurveySpec) -> tuple[Blob, ...]:
    """Return two lumpy nebulae and a galaxy, placed within the middle of the survey."""
    if spec.nebula_adu <= 0.0:
        return ()
    rng = np.random.default_rng([_NEBULA, spec.seed, 0])
    size = max(480, min(spec.frame_shape))  # never too small for the lattice they are interpolated from
    (rows, cols), (step_y, step_x) = spec.panels, _panel_steps(spec)
    blobs = []
    for colour, fx, fy in (((1.0, 0.35, 0.45), -0.28, 0.05), ((0.35, 0.6, 1.0), 0.3, -0.12)):
        lean = rng.uniform(0.0, np.pi)
        for _ in range(18):
            along, across = rng.normal(0.0, (0.45 * size, 0.14 * size))
            x = fx * cols * step_x + along * np.cos(lean) - across * np.sin(lean)
            y = fy * rows * step_y + along * np.sin(lean) + across * np.cos(lean)
            major, ratio = size * rng.uniform(0.06, 0.2), rng.uniform(0.5, 0.9)
            peak = _channels(spec, spec.nebula_adu * rng.uniform(0.1, 0.35), colour)
            blobs.append(Blob(x, y, major, major * ratio, lean + rng.normal(0.0, 0.6), peak))
    peak = _channels(spec, spec.nebula_adu, (1.0, 0.9, 0.8))
    x, y = 0.08 * cols * step_x, 0.24 * rows * step_y
    return (*blobs, Blob(x, y, 0.07 * size, 0.035 * size, 0.6, peak, disk=True))


def _add_stars(planes: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, sigma: float) -> None:
    """Add pixel-integrated Gaussians of total `flux (n, c)` to ``(c, ny, nx)`` planes."""
    ny, nx = planes.shape[1:]
    half = int(np.ceil(_STAMP_SIGMAS * sigma))
    offsets = np.arange(-half, half + 1)
    cols, rows = (np.rint(p).astype(int)[:, None] + offsets for p in (x, y))
    across, down = (_pixel_integrals(k - p[:, None], sigma) for k, p in ((cols, x), (rows, y)))
    across[(cols < 0) | (cols >= nx)] = 0.0
    down[(rows < 0) | (rows >= ny)] = 0.0
    stamps = down[:, :, None] * across[:, None, :]
    pixels = np.clip(rows, 0, ny - 1)[:, :, None] * nx + np.clip(cols, 0, nx - 1)[:, None, :]
    for plane, total in zip(planes, flux.T, strict=True):
        weights = (stamps * total[:, None, None]).ravel()
        plane += np.bincount(pixels.ravel(), weights, ny * nx).reshape(ny, nx)


def _pixel_integrals(distance: np.ndarray, sigma: float) -> np.ndarray:
    scale = 1.0 / (np.sqrt(2.0) * sigma)
    return 0.5 * (erf((distance + 0.5) * scale) - erf((distance - 0.5) * scale))


def _render_trail(trail: Trail | None, shape: tuple[int, int]) -> np.ndarray:
    if trail is None:
        return np.zeros(shape)
    cos, sin = np.cos(trail.angle_rad), np.sin(trail.angle_rad)
    distance = (np.arange(shape[1]) - trail.x0) * sin - ((np.arange(shape[0]) - trail.y0) * cos)[:, None]
    return trail.peak_adu * np.exp(-0.5 * (distance / trail.sigma_px) ** 2)


def _render_cosmic(spec: SurveySpec, index: int) -> np.ndarray:
    """Return short straight tracks of one to five pixels, each pixel hit with its own charge."""
    rng = np.random.default_rng([_COSMIC, spec.seed, index])
    ny, nx = spec.frame_shape
    image = np.zeros((ny, nx))
    for _ in range(spec.cosmic_rays):
        steps = np.arange(rng.integers(1, 6))
        angle = rng.uniform(0.0, 2.0 * np.pi)
        cols = np.rint(rng.uniform(0, nx - 1) + steps * np.cos(angle)).astype(int)
        rows = np.rint(rng.uniform(0, ny - 1) + steps * np.sin(angle)).astype(int)
        charge = 400.0 + rng.exponential(3000.0, steps.size)
        keep = (cols >= 0) & (cols < nx) & (rows >= 0) & (rows < ny)
        image[rows[keep], cols[keep]] += charge[keep]
    return image


def _render_hot(spec: SurveySpec) -> np.ndarray:
    rng = np.random.default_rng([_DETECTOR, spec.seed, 0])
    image = np.zeros(spec.frame_shape)
    places = rng.choice(image.size, round(spec.hot_pixels * image.size / 1e6), replace=False)
    image.ravel()[places] = 10.0 ** rng.uniform(2.5, 4.3, places.size)
    return image
