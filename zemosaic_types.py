"""The words of ZeMosaic: frozen records and exceptions that cross modules and processes.

Nothing here holds an array, opens a file or knows a library beyond the standard one, so that every other
module, and every worker process, can import it for free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

#: The standard deviation of normal values over their median absolute deviation.
MAD_TO_SIGMA = 1.482602218505602

#: Is told between the steps of a long piece of work which share of it is done, 0 to 1; it may end the work by
#: raising `RunCancelled`.
Tell = Callable[[float], None]


def tell_nobody(share: float) -> None:
    """Hear nothing: the `Tell` of work that nobody watches."""


def part_of(tell: Tell, first: float, last: float) -> Tell:
    """Return what a part of the work tells, which goes from the share `first` to the share `last` of the whole."""
    return lambda share: tell(first + (last - first) * share)


class ZeMosaicError(Exception):
    """Base of every error that ZeMosaic raises with a reason a user can act on."""


class ConfigError(ZeMosaicError):
    """A configuration key or value cannot be used."""


class PlanError(ZeMosaicError):
    """A plan, or the folder it is made from, gives no usable frame."""


class FrameError(ZeMosaicError):
    """One frame cannot be used; the message is the reason that goes into the ledger."""


class SolveError(ZeMosaicError):
    """A frame could not be plate-solved; the message is the reason, where there are such in the solver's words."""


class SolverMissing(ZeMosaicError):
    """A plate solver, or what it needs, is not there; the message says what is missing."""


class OutputError(ZeMosaicError):
    """A product cannot be written."""


class ProductExistsError(OutputError):
    """The output folder already holds a product, and overwriting was not asked for."""


class DeviceUnavailable(ZeMosaicError):
    """No GPU can be used; the message says what is missing."""


class RunDied(ZeMosaicError):
    """The process of a run ended without a result; the message holds its last words."""


class RunCancelled(ZeMosaicError):
    """The user asked the run to stop."""


def mosaic_stem(pipeline: str) -> str:
    """Return what the names of a pipeline's products begin with; `pipeline` is ``"grid"`` or ``"classic"``."""
    return f"mosaic_{pipeline}"


@dataclass(frozen=True, slots=True)
class Rect:
    """A half-open rectangle of pixels, rows ``y0:y1`` and columns ``x0:x1``."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(ny, nx)``, never negative."""
        return max(0, self.y1 - self.y0), max(0, self.x1 - self.x0)

    @property
    def empty(self) -> bool:
        """Whether the rectangle holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of an array that share the rectangle's origin of coordinates."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def intersect(self, other: Rect) -> Rect:
        """Return the common part, which may be empty."""
        return Rect(max(self.y0, other.y0), min(self.y1, other.y1), max(self.x0, other.x0), min(self.x1, other.x1))

    def grown(self, margin: int) -> Rect:
        """Return the rectangle enlarged by `margin` pixels on every side."""
        return Rect(self.y0 - margin, self.y1 + margin, self.x0 - margin, self.x1 + margin)

    def shifted(self, dy: int, dx: int) -> Rect:
        """Return the rectangle moved by whole pixels."""
        return Rect(self.y0 + dy, self.y1 + dy, self.x0 + dx, self.x1 + dx)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One row of ``stack_plan.csv``: a frame the user wants in the mosaic.

    `line` is the line number in the file (1-based, header included); text fields are empty and numbers are
    ``None`` where the plan says nothing.
    """

    line: int
    path: Path
    exposure_s: float | None = None
    filter: str = ""
    batch_id: str = ""
    mount: str = ""
    bortle: str = ""
    telescope: str = ""
    session_date: str = ""
    order: int | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something the user asked for that is not in the mosaic, and why.

    `harmless` marks what costs the mosaic nothing: a second row of a frame that is already there; `asked` what the
    user wanted left out.
    """

    path: str
    reason: str
    line: int | None = None
    harmless: bool = False
    asked: bool = False

    @property
    def missed(self) -> bool:
        """Whether the mosaic lacks something that it should have."""
        return not (self.harmless or self.asked)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What the header of an exposure says, read without touching its pixels.

    Attributes
    ----------
    hdu : int
        Index of the image HDU.
    layout : str
        ``"mono"`` (ny, nx), ``"bayer"`` (ny, nx) behind a colour filter array, ``"chw"`` or ``"hwc"``.
    shape : tuple of int
        ``(ny, nx)`` of the image plane.
    bayer : str
        Four letters of the 2 x 2 cell as stored (row 0 first), empty unless `layout` is ``"bayer"``.
    wcs_text : str
        The header cards that the WCS is built from, empty without a celestial WCS.
    wcs_path : str
        File that `wcs_text` came from (the frame or its sidecar).
    alpha_hdu : int or None
        Index of an ALPHA extension.
    weight_hdu : int or None
        Index of the weights of a frame that was stacked from others, a plane of the image's shape or one for each
        of its colours; such a frame has no bad pixels any more.
    saturation : float
        Value at and above which a pixel is taken as saturated, in the frame's units; inf if unknown.
    electrons_per_adu : float or None
        Inverse gain of the camera (EGAIN), None if the header does not say.
    ra_deg, dec_deg : float or None
        Where the telescope is said to point, in degrees of the system that `equinox` names.
    equinox : str
        What `ra_deg` and `dec_deg` are said to refer to (a year, ``"ICRS"``, ``"JNOW"``); often empty.
    scale_arcsec : float or None
        Nominal pixel scale, from pixel size and focal length.
    """

    hdu: int
    layout: str
    shape: tuple[int, int]
    bayer: str = ""
    wcs_text: str = ""
    wcs_path: str = ""
    alpha_hdu: int | None = None
    weight_hdu: int | None = None
    saturation: float = float("inf")
    electrons_per_adu: float | None = None
    exptime_s: float | None = None
    date_obs: str = ""
    filter: str = ""
    telescope: str = ""
    instrument: str = ""
    object_name: str = ""
    mount: str = ""
    ra_deg: float | None = None
    dec_deg: float | None = None
    equinox: str = ""
    scale_arcsec: float | None = None

    @property
    def n_channels(self) -> int:
        """Number of colour planes the frame gives: 1 or 3."""
        return 1 if self.layout == "mono" else 3

    @property
    def camera(self) -> tuple:
        """What frames of one detector behind one telescope and filter have in common."""
        return self.telescope, self.instrument, self.shape, self.layout, self.bayer, self.filter

    @property
    def camera_name(self) -> str:
        """The same in words, without the filter."""
        size = f"{self.shape[1]} x {self.shape[0]} {self.bayer or self.layout}"
        return ", ".join(filter(None, (self.telescope, self.instrument, size)))


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """A frame of the run: where it is and what its header says.

    `frame_id` orders the frames of a run. It depends on the file's place and name only, never on the order of
    the plan's rows, so that sums of frames are formed in one order whatever the plan looks like. `unplaced` says
    why the place of the frame on the sky is not known; it is empty where it is. `placed_by` says which stars gave
    it its place, or that the place is provisional; it is empty if the WCS is the frame's own or a plate solver's.
    """

    frame_id: str
    path: str
    header: FrameHeader
    exptime_s: float
    line: int | None = None
    unplaced: str = ""
    placed_by: str = ""


@dataclass(frozen=True, slots=True)
class StackParams:
    """How the samples of a pixel become one value; see `zemosaic_stack_core`."""

    reject: str = "kappa_sigma"
    kappa_low: float = 3.0
    kappa_high: float = 3.0
    winsor_limits: tuple[float, float] = (0.05, 0.05)
    spread: str = "auto"
    max_iterations: int = 5
    combine: str = "mean"


@dataclass(frozen=True, slots=True)
class FrameSolution:
    """Photometric coefficients of one frame, one value a channel of the mosaic.

    A sample enters the stack as ``gain * value + offset``; after that, in mosaic units, `noise` is one standard
    deviation of a sample of its sky, `level` that sky, and `photon` the variance that a unit of signal above it
    adds. `weight` is the frame's relative weight, `blur` by how much the variance of its point spread function,
    in square pixels of the canvas, differs from the usual one of the run. To the offset comes a plane of the slope
    `gradient` (x, y; mosaic units a pixel of the canvas) that is 0 at the canvas position `centre` (x, y).
    """

    gain: tuple[float, ...]
    offset: tuple[float, ...]
    noise: tuple[float, ...]
    weight: tuple[float, ...]
    photon: tuple[float, ...]
    level: tuple[float, ...]
    blur: tuple[float, ...]
    gradient: tuple[tuple[float, float], ...] = ()
    centre: tuple[float, float] = (0.0, 0.0)

    def moved(self, dy: int, dx: int) -> FrameSolution:
        """Return the same solution on a canvas whose origin is elsewhere: positions grow by whole pixels."""
        return replace(self, centre=(self.centre[0] + dx, self.centre[1] + dy))


@dataclass(frozen=True, slots=True)
class FlatModel:
    """What undoes the vignetting of an instrument: a value becomes ``pedestal + (value - pedestal) * Q``.

    ``Q`` is the sum of ``coefficients[c][j][i] * v**j * u**i`` for colour plane c of the frame; ``(u, v)`` is the
    pixel's distance (x, y) from the middle of the detector in units of half its diagonal. `shape` is the frames'
    ``(ny, nx)``. See `zemosaic_flat`.
    """

    shape: tuple[int, int]
    coefficients: tuple[tuple[tuple[float, ...], ...], ...]
    pedestal: float = 0.0


@dataclass(frozen=True, slots=True)
class TileFailure:
    """A tile that is missing from the mosaic, and why."""

    tile: int
    reason: str


@dataclass(frozen=True)
class RunResult:
    """What a finished run left behind."""

    mosaic_path: Path
    preview_path: Path
    n_used: int
    n_planned: int
    left_out: tuple[LeftOut, ...] = ()
    failed_tiles: tuple[TileFailure, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every frame that was wanted and every tile is in the mosaic."""
        return not self.failed_tiles and not any(item.missed for item in self.left_out)
