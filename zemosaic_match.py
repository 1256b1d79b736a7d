"""Measured frames in, frames of the stack out: the match, weights and expected noise of a whole run.

Whatever decides the value of a pixel is settled here, for every frame at once, before a tile is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zemosaic_cameras import Cameras, classes_of
from zemosaic_fits_io import frame_wcs
from zemosaic_frame_source import StackFrame
from zemosaic_measure import FWHM_OF_SIGMA, MeasuredFrame
from zemosaic_photometry import Geometry, Match, cell_place, solve_match
from zemosaic_reproject import Canvas, centre_icrs, pixel_scale_deg, sample_noise
from zemosaic_tiling import separate_isolated
from zemosaic_types import FrameRecord, FrameSolution, LeftOut, Rect, Tell, part_of, tell_nobody

#: A frame this much fainter than the usual one of its camera (clouds) adds noise only.
MAX_GAIN = 20.0
#: So is one whose sky, levelled as well as a plane can, is still this uneven, in noises of a pixel.
MAX_RESIDUAL = 3.0

#: Frames whose pixels are so many times larger or smaller than the others' have a wrong WCS.
MAX_SCALE_RATIO = 10.0
#: A distortion of this share of the frame's diagonal at its corners is nonsense.
MAX_BEND = 0.1

# An exposure of more than a day is a mistake of the header; a plan says 1 s where nobody knows.
_LONGEST_S, _UNKNOWN_S = 86400.0, 1.0
# Frames whose pixels' areas differ by this factor (a power of 2), with none between, are binned otherwise.
_ANOTHER_BINNING = 0.5
# So few frames of a camera have no usual one among them; the brightest is taken for it.
_FEW = 3
# Weights are best for means of so many pixels a side: the scale at which an uneven sky begins to show.
_PATCH_PX = 8
# Of the work, while no frame is left out.
_SHARE_OF_FIRST = 0.8


@dataclass(frozen=True)
class MatchOptions:
    """Choices of the match; the names of the methods are those of the configuration."""

    normalise: str = "global"
    weight: str = "noise_variance"
    kernel: str = "lanczos3"
    rgb_equalize: bool = False

    @property
    def knows_gains(self) -> bool:
        """Whether gains are solved."""
        return self.normalise in ("linear_fit", "global")

    @property
    def levels(self) -> bool:
        """Whether gradients are taken off, so that what is left of a sky tells of clouds."""
        return self.normalise == "global"


@dataclass(frozen=True)
class MatchedFrames:
    """The frames of the stack with their solution, in frame order, and what was left out on the way.

    `measured`, `frames`, `transparency` and the rows of `match` belong together. `canvas` is what the frames
    cover, and they lie on it. `transparency` is 1 for the usual frame of a camera, `disagreement` from
    `coarse_map`.
    """

    measured: list[MeasuredFrame]
    frames: list[StackFrame]
    canvas: Canvas
    match: Match
    transparency: list[float]
    disagreement: tuple[np.ndarray, Canvas]
    left_out: list[LeftOut]


def drop_misfits(records: list[FrameRecord]) -> tuple[list[FrameRecord], list[LeftOut]]:
    """Return the frames that belong to one mosaic, and those that would spoil its canvas, with reasons.

    Left out are frames whose distortion or pixel scale makes no sense beside the others', and those too far away
    from all others.
    """
    looks = [_look_at(record) for record in records]
    usual = float(np.median([look.scale_deg for look in looks]))
    reasons = [_nonsense(look, usual) for look in looks]
    bent = [LeftOut(r.path, reason, r.line) for r, reason in zip(records, reasons, strict=True) if reason]
    sound = [pair for pair, why in zip(zip(records, looks, strict=True), reasons, strict=True) if not why]
    records, isolated = _drop_isolated(sound)
    return records, bent + isolated


@dataclass(frozen=True, slots=True)
class _Look:
    """A frame on the sky in a few numbers: all that decides whether it belongs to the others, from one look.

    `bend_px` is how far its distortion moves its corners, `on_sky` whether all of it has a place.
    """

    scale_deg: float
    centre_deg: tuple[float, float]
    diagonal_px: float
    on_sky: bool
    bend_px: float


def _look_at(record: FrameRecord) -> _Look:
    wcs, (ny, nx) = frame_wcs(record.header), record.header.shape
    x, y = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5]), np.array([-0.5, -0.5, ny - 0.5, ny - 0.5])
    world = wcs.all_pix2world(x, y, 0)
    centre = centre_icrs(wcs, (ny, nx))
    on_sky = bool(np.isfinite(world).all() and np.isfinite(centre).all())
    bend = 0.0
    if on_sky and wcs.has_distortion:
        straight = wcs.wcs_world2pix(*world, 0)
        bend = float(np.hypot(straight[0] - x, straight[1] - y).max())
    return _Look(pixel_scale_deg(wcs), centre, float(np.hypot(ny, nx)), on_sky, bend)


def _nonsense(look: _Look, usual_scale: float) -> str:
    """Return what is wrong with the shape of a frame on the sky, an empty text if nothing is."""
    if not usual_scale / MAX_SCALE_RATIO < look.scale_deg < usual_scale * MAX_SCALE_RATIO:
        here, others = look.scale_deg * 3600, usual_scale * 3600
        return f"its pixel scale, {here:.3g} arcsec, is far from that of the others, {others:.3g}"
    if not look.on_sky:
        return "its WCS puts parts of it off the sky"
    if not look.bend_px < MAX_BEND * look.diagonal_px:
        return f"its distortion moves its corners by {look.bend_px:.3g} px"
    return ""


def _drop_isolated(frames: list[tuple[FrameRecord, _Look]]) -> tuple[list[FrameRecord], list[LeftOut]]:
    if not frames:
        return [], []
    centre = np.array([look.centre_deg for _, look in frames])
    inside, distance = separate_isolated(centre, np.array([k.diagonal_px * k.scale_deg for _, k in frames]))
    left_out = [
        LeftOut(r.path, f"too far from the mosaic: its nearest frame is {far:.1f} deg away", r.line)
        for (r, _), keep, far in zip(frames, inside, distance, strict=True)
        if not keep
    ]
    return [record for (record, _), keep in zip(frames, inside, strict=True) if keep], left_out


def match_frames(
    measured: list[MeasuredFrame], canvas: Canvas, options: MatchOptions, *, tell: Tell = tell_nobody
) -> MatchedFrames:
    """Solve gains, offsets and gradients of all frames and derive their weights.

    Frames that clouds have all but blotted out, or whose sky is so uneven that no plane levels it, are left out,
    and the others solved again without them; `tell` hears the share that is done, and may end the work.
    `frames` is empty if none is left.
    """
    left_out: list[LeftOut] = []
    cell_px = measured[0].cell_px
    tell(0.0)
    done = _SHARE_OF_FIRST
    match, geometry = _solve(measured, options, part_of(tell, 0.0, done))
    while spoilt := _spoilt(measured, match, geometry, options):
        for k, reason in spoilt.items():
            left_out.append(LeftOut(measured[k].record.path, reason, measured[k].record.line))
        measured = [m for k, m in enumerate(measured) if k not in spoilt]
        if not measured:
            return MatchedFrames([], [], canvas, match, [], coarse_map(match, canvas, cell_px), left_out)
        before, done = done, 0.5 * (1.0 + done)  # nobody knows how often
        match, geometry = _solve(measured, options, part_of(tell, before, done))
    if options.rgb_equalize:
        match = _equalised(measured, match)
    blur = _blur(measured)
    frames = [_stack_frame(m, match, geometry, k, blur[k], options) for k, m in enumerate(measured)]
    transparency = (1.0 / _dimming(measured, match, geometry)).mean(axis=1).tolist()
    disagreement = coarse_map(match, canvas, cell_px)
    canvas, frames = trim_canvas(canvas, frames)
    tell(1.0)
    return MatchedFrames(measured, frames, canvas, match, transparency, disagreement, left_out)


def _cameras(measured: list[MeasuredFrame]) -> Cameras:
    """Return which frames see a second of light alike.

    Crops of a camera's frames are of one, binned ones of another. On a wide canvas the sizes of pixels differ a
    little. An exposure that is not known is the usual one.
    """
    keys: dict[tuple, int] = {}
    seconds = np.array([_exposure_s(m.record) for m in measured])
    number = np.empty(len(measured), dtype=np.int64)
    scales = classes_of(np.log2([m.placement.area_ratio for m in measured]), _ANOTHER_BINNING)
    for k, m in enumerate(measured):
        h = m.record.header
        key = h.telescope, h.instrument, h.layout, h.bayer, h.filter, int(scales[k])
        number[k] = keys.setdefault(key, len(keys))
    cameras = Cameras(number, seconds)
    for members in cameras.members():
        known = np.isfinite(seconds[members])
        seconds[members[~known]] = np.median(seconds[members[known]]) if known.any() else 1.0
    return cameras


def _exposure_s(record: FrameRecord) -> float:
    """Return the exposure of a frame, NaN if it is not known."""
    told = record.header.exptime_s is not None or record.exptime_s != _UNKNOWN_S
    return record.exptime_s if told and 0 < record.exptime_s < _LONGEST_S else np.nan


def _dimming(measured: list[MeasuredFrame], match: Match, geometry: Geometry) -> np.ndarray:
    """Return how many times fainter stars are in a second of each frame than is usual for its camera, (n, c).

    Where that makes a cloud of a frame whose stars are as bright as in the others, its exposure is mistyped.
    """
    cameras, whole = _cameras(measured), match.gain / geometry.area_ratio[:, None]
    second = whole * cameras.seconds[:, None]
    for members in cameras.members():
        for gain in (whole, second):
            usual = np.median if members.size >= _FEW else np.min
            gain[members] /= usual(gain[members], axis=0)
    return np.where(second > MAX_GAIN, np.minimum(second, whole), second)


def coarse_map(match: Match, canvas: Canvas, cell_px: int) -> tuple[np.ndarray, Canvas]:
    """Return how far the frames still disagree as an image, a pixel a coarse cell, and its canvas.

    The image is (c, ny, nx) float32, in noises of a frame's pixel, NaN where fewer than two frames see the cell.
    """
    row, column = cell_place(match.cell)
    if not row.size:  # frames smaller than a cell: one pixel that says nothing
        row = column = np.zeros(1, dtype=np.int64)
        match = replace(match, disagreement=np.full((1, match.gain.shape[1]), np.nan))
    y0, x0 = int(row.min()), int(column.min())
    shape = int(row.max()) - y0 + 1, int(column.max()) - x0 + 1
    image = np.full((match.disagreement.shape[1], *shape), np.nan, dtype=np.float32)
    image[:, row - y0, column - x0] = match.disagreement.T
    # The centre of cell (0, 0) is that of the canvas's first pixel, whose number in FITS is 1.
    crpix = tuple((p - 1.0) / cell_px - first + 1.0 for p, first in zip(canvas.crpix, (x0, y0), strict=True))
    return image, replace(canvas, crpix=crpix, scale_deg=canvas.scale_deg * cell_px, shape=shape)


def _solve(measured: list[MeasuredFrame], options: MatchOptions, tell: Tell) -> tuple[Match, Geometry]:
    geometry = Geometry.of([m.placement for m in measured], measured[0].cell_px)
    how = {"method": options.normalise, "cameras": _cameras(measured), "tell": tell}
    return solve_match([m.measure for m in measured], geometry, **how), geometry


def _spoilt(
    measured: list[MeasuredFrame], match: Match, geometry: Geometry, options: MatchOptions
) -> dict[int, str]:
    """Return which frames would spoil the mosaic, and why, by what the method knows of them."""
    gain = _dimming(measured, match, geometry).max(axis=1)
    noise = match.gain * np.array([m.measure.noise for m in measured])
    uneven = np.nan_to_num(match.residual / noise).max(axis=1)  # NaN in one colour hides no other
    reasons = {}
    for k in range(len(measured)):
        if options.knows_gains and not gain[k] < MAX_GAIN:
            reasons[k] = f"its stars are {gain[k]:.0f} times fainter than in the other frames (clouds?)"
        elif options.levels and uneven[k] > MAX_RESIDUAL:
            reasons[k] = (
                f"its sky cannot be levelled: what is left is {uneven[k]:.1f} times the noise of a pixel "
                "(clouds, moonlight?)"
            )
    return reasons


def _equalised(measured: list[MeasuredFrame], match: Match) -> Match:
    """Scale the channels so that their matched skies are equal; the middle one stays."""
    sky = np.array([m.measure.sky for m in measured])
    level = (match.gain * sky + match.offset).mean(axis=0)
    if not (level > 0).all():
        return match
    scale = np.median(level) / level
    scaled = {name: getattr(match, name) * scale for name in ("gain", "offset", "residual")}
    return replace(match, gradient=match.gradient * scale[:, None], **scaled)


def _blur(measured: list[MeasuredFrame]) -> np.ndarray:
    """Return by how much each frame is more blurred than usual, as variance in square canvas pixels.

    The change of a peak's height, which goes with the inverse variance, counts; it is 0 for frames without stars,
    of which it is not known.
    """
    variance = np.square(np.array([_width_px(m) for m in measured]) / FWHM_OF_SIGMA)
    known = np.isfinite(variance)
    if not known.any():
        return np.zeros(known.size)
    usual = np.median(variance[known])
    return np.where(known, usual * (1.0 - usual / variance), 0.0)


def _stack_frame(
    m: MeasuredFrame, match: Match, geometry: Geometry, k: int, blur: float, options: MatchOptions
) -> StackFrame:
    gain, offset = match.gain[k], match.offset[k]
    noise = gain * m.measure.noise
    # What the match could not take away is no noise of single pixels, but of any patch of some pixels a side.
    # Without gradients in the match every honest slope of the sky would be left, and say nothing.
    left = np.nan_to_num(match.residual[k]) if options.levels else 0.0
    # Nor is the noise of a pixel larger than the mosaic's, which all samples of it share.
    shared = noise / np.sqrt(min(1.0, m.placement.area_ratio))
    uneven = np.hypot(shared, _PATCH_PX * left)
    factor = sample_noise(options.kernel, bool(m.record.header.bayer), gain.size)
    solution = FrameSolution(
        gain=tuple(gain.tolist()),
        offset=tuple(offset.tolist()),
        noise=tuple((noise * factor).tolist()),
        weight=tuple(_weight(options.weight, uneven, _width_px(m)).tolist()),
        photon=tuple((gain * _photon_variance(m) * factor**2).tolist()),
        level=tuple((gain * m.measure.sky + offset).tolist()),
        blur=(float(blur),) * gain.size,
        gradient=tuple(map(tuple, match.gradient[k].tolist())) if match.gradient[k].any() else (),
        centre=tuple(geometry.centre[k].tolist()),
    )
    sky, noise = (tuple(values.tolist()) for values in (m.measure.sky, m.measure.noise))
    return StackFrame(m.record, m.placement, solution, sky, noise, m.flat)


def _width_px(m: MeasuredFrame) -> float:
    """Return the FWHM of a frame's stars in canvas pixels, NaN without stars."""
    return m.measure.fwhm_px / np.sqrt(m.placement.area_ratio)


def _photon_variance(m: MeasuredFrame) -> np.ndarray:
    """Return the variance that a unit of light adds to an original pixel, a value a channel, frame units.

    The inverse of the camera's gain where the header says it, and not of pixels that were scaled since: an
    electron is not more than the noise. Else the sky's variance over its level, as if that were photon noise alone
    and its level all light: read-out noise makes it larger, an offset smaller.
    """
    sky, noise = m.measure.sky, m.measure.noise
    known = m.record.header.electrons_per_adu
    estimate = np.square(noise) / np.maximum(sky, noise)
    if known is None or not known > 0:
        return estimate
    return np.where(1.0 / known <= noise, 1.0 / known, estimate)


def _weight(method: str, noise: np.ndarray, fwhm_px: float) -> np.ndarray:
    """Return the weight of a frame: 1, the inverse variance of its matched sky, or that over FWHM squared.

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    if method == "none":
        return np.ones_like(noise)
    if method == "noise_variance":
        return 1.0 / np.square(noise)
    if method == "noise_fwhm":
        # A frame without stars has no FWHM; it is taken as very blurred.
        return 1.0 / np.square(noise * (fwhm_px if np.isfinite(fwhm_px) else 10.0))
    raise ValueError(f"unknown weighting {method!r}; known: none, noise_variance, noise_fwhm")


def trim_canvas(canvas: Canvas, frames: list[StackFrame]) -> tuple[Canvas, list[StackFrame]]:
    """Cut the canvas to what its frames cover, on the same pixel grid; frames move by whole pixels.

    Frames whose WCS was corrected may reach over its rim; then it grows.
    """
    outline = np.concatenate([np.array(frame.placement.polygon) for frame in frames])
    (x0, y0), (x1, y1) = np.floor(outline.min(axis=0)), np.ceil(outline.max(axis=0))
    rect = Rect(int(y0), int(y1) + 1, int(x0), int(x1) + 1)
    if rect.intersect(canvas.rect.grown(1)) == rect:  # a pixel is rounding
        rect = rect.intersect(canvas.rect)
    if rect == canvas.rect:
        return canvas, frames
    moved = []
    for frame in frames:
        p = frame.placement
        polygon = tuple((x - rect.x0, y - rect.y0) for x, y in p.polygon)
        placement = replace(p, bounds=p.bounds.shifted(-rect.y0, -rect.x0), polygon=polygon)
        moved.append(replace(frame, placement=placement, solution=frame.solution.moved(-rect.y0, -rect.x0)))
    return canvas.window(rect), moved


def lowest_saturation(frames: Sequence[StackFrame]) -> float:
    """Return the level in units of the mosaic at which the first of the frames saturates, inf if none says."""
    levels = [
        np.min(np.array(frame.solution.gain) * frame.record.header.saturation + np.array(frame.solution.offset))
        for frame in frames
    ]
    return float(min(levels))


def extent_px(frame: StackFrame) -> tuple[int, int]:
    """Return the size ``(ny, nx)`` of a frame in canvas pixels, without its rotation."""
    scale = 1.0 / np.sqrt(frame.placement.area_ratio)
    ny, nx = frame.record.header.shape
    return round(ny * scale), round(nx * scale)


def usual_feather_px(frames: list[StackFrame]) -> int:
    """Return the feather of frames of which none is asked for: a sixtieth of their short side, 4 px at least."""
    short = float(np.median([min(frame.record.header.shape) for frame in frames]))
    return max(4, round(short / 60.0))
